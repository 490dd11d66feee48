package faults_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A walk is a command with the names that it passes, in order, and how often.
type walk struct {
	what   string // for the long form, which has many
	args   []string
	points string // failpoints that it needs to pass them
	names  []string
	also   []string // at which it dies as well, in the full form: those that other runs pass too
	count  map[string]int
	took   time.Duration
	write  string       // on the source after each death
	before func(r *rig) // brings a migration to where the command begins
	end    func(r *rig) // nil: the command is repeated until it is done
	after  func(r *rig) // looks at what has become of the migration
}

// position is a name's first, middle or last hit, of so many.
func position(place string, hits int) int {
	return map[string]int{"first": 1, "middle": (hits + 1) / 2, "last": hits}[place]
}

var (
	applyArgs    = []string{"apply", "--auto-approve"}
	rollbackArgs = []string{"rollback", "--auto-approve"}
	finishArgs   = []string{"finish", "--auto-approve", "--now"}
	abortArgs    = []string{"abort", "--auto-approve", "--drop-target"}
	untilArm     = []string{"apply", "--auto-approve", "--until", "arm"}
)

var undisturbed struct {
	sync.Once
	apply, rollback, finish, abort walk
}

// discover makes undisturbed runs of every command, once, and remembers what they pass.
func discover(t *testing.T) {
	t.Helper()
	undisturbed.Do(func() { t.Run("discover", discovers) })
	if undisturbed.finish.args == nil {
		t.Fatal("the undisturbed runs failed")
	}
}

func discovers(t *testing.T) {
	r, u := newRig(t), &undisturbed
	traced := func(args []string) walk {
		w := r.traced(walk{args: args, what: args[0]})
		w.names = slices.DeleteFunc(w.names, isElsewhere)
		return w
	}
	r.finally(untilArm...)
	u.abort = traced(abortArgs)
	u.apply = traced(applyArgs)
	r.moved(0, 1)
	r.turn(1)
	u.rollback = traced(rollbackArgs)
	r.moved(1, 0)
	r.turn(0)
	again := traced(applyArgs)
	r.moved(0, 1)
	finish := traced(finishArgs)
	r.balance(r.target)
	if slices.Contains(again.names, "schema.dumped") {
		t.Error("a second cutover restores the schema again")
	}
	u.apply.before, u.apply.after = func(*rig) {}, func(r *rig) { r.moved(0, 1); r.writing(1); r.balance(r.target) }
	u.rollback.before, u.rollback.after = func(r *rig) { r.finally(applyArgs...); r.moved(0, 1); r.turn(1) }, func(r *rig) { r.moved(1, 0); r.writing(0); r.balance(r.source) }
	finish.before, finish.after = func(r *rig) { r.finally(applyArgs...); r.moved(0, 1) }, func(r *rig) { r.balance(r.target) }
	u.abort.before, u.abort.after = func(r *rig) { r.finally(untilArm...) }, func(r *rig) { r.writing(0); r.balance(r.source) }
	u.finish = finish
}

// traced runs a walk to its end and counts what it passes.
func (r *rig) traced(w walk) walk {
	r.t.Helper()
	p := r.start(w.points, w.args...)
	o := p.end()
	if o.code != 0 && !(r.waits && o.code == 14) {
		r.t.Fatalf("%s, undisturbed: %s\n%s", w.args, o, o.text)
	}
	names, count := p.hits()
	if w.names == nil {
		w.names = names
	}
	w.count, w.took = count, o.took
	return w
}

// TestEveryFailpoint kills the runner at each of them. In the short form many deaths share a
// migration: each run dies at the next name. With PGRUNBOOK_SOAK each name has a migration of its
// own for its first, middle and last hit, in every command.
func TestEveryFailpoint(t *testing.T) {
	all := registered(t)
	discover(t)
	apply, rollback, finish, abort := undisturbed.apply, undisturbed.rollback, undisturbed.finish, undisturbed.abort
	for _, name := range all {
		if !slices.Contains(slices.Concat(apply.names, rollback.names, finish.names, abort.names), name) && !isElsewhere(name) {
			t.Errorf("no run passes failpoint %s", name)
		}
	}
	t.Logf("%d failpoints; apply passes %d, rollback %d, finish %d, abort %d", len(all), len(apply.names), len(rollback.names), len(finish.names), len(abort.names))
	const parts = 2
	for part := range parts {
		t.Run("F01 F02 F84 every boundary", func(t *testing.T) {
			t.Parallel()
			deaths(t, part, parts, apply, rollback, finish)
		})
	}
	if soak() {
		eachHit(t, apply, rollback, finish, abort)
	}
	t.Run("F84 F85 abort", func(t *testing.T) {
		t.Parallel()
		abortDeaths(t, abort)
	})
}

// owned comes after the flip's COMMITs. A guardian has been there once its runner died at one of
// them: the death there needs a cutover of its own.
const owned = "freeze.owned"

// share is every n-th name, from the part-th on.
func share(names []string, part, n int) []string {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == owned })
	var out []string
	for i := part; i < len(names); i += n {
		out = append(out, names[i])
	}
	return out
}

// deaths walks one migration there, back, there again and to its end, and dies at its share of
// each command's names.
func deaths(t *testing.T, part, parts int, apply, rollback, finish walk) {
	r := newRig(t)
	die := func(w walk, names []string) {
		w.names = names
		r.die(w)
	}
	die(apply, share(apply.names, part, parts))
	r.moved(0, 1)
	r.writing(1)
	r.turn(1)
	die(rollback, share(rollback.names, part, parts))
	r.moved(1, 0)
	r.writing(0)
	r.turn(0)
	die(apply, []string{owned})
	r.moved(0, 1)
	r.writing(1)
	die(finish, share(finish.names, part, parts))
	r.balance(r.target)
}

// eachHit gives the first, middle and last hit of every name of some walks a migration of its own.
func eachHit(t *testing.T, walks ...walk) {
	for _, w := range walks {
		for _, name := range w.names {
			places := []string{"first", "middle", "last"}
			if n := w.count[name]; n < len(places) {
				places = []string{"first", "last"}[:max(n, 1)]
			}
			for _, place := range places {
				t.Run(fmt.Sprintf("%s/%s/%s", w.what, name, place), func(t *testing.T) {
					t.Parallel()
					oneHit(t, w, name, place)
				})
			}
		}
	}
}

// oneHit dies at a place of a name. How often a pass is made depends on the time: where the hit does not come,
// another migration dies at the same place of as many hits as there were.
func oneHit(t *testing.T, w walk, name, place string) {
	const tries = 5
	hits := w.count[name]
	for range tries {
		died, at := false, position(place, hits)
		t.Run(fmt.Sprintf("hit %d of %d", at, hits), func(t *testing.T) {
			r := newRig(t)
			w.before(r)
			p, ok := r.dies(w.points+fmt.Sprintf("%s@%d", name, at), w.args...)
			if died = ok; !died {
				_, count := p.hits()
				hits = count[name]
			}
			if w.write != "" {
				r.sql(r.source, w.write)
			}
			r.ends(w)
			w.after(r)
		})
		switch {
		case died || t.Failed():
			return
		case hits == 0:
			t.Fatal("the run does not pass it")
		}
	}
	t.Fatalf("%d runners did not die at the %s hit of %s", tries, place, name)
}

// die runs a walk's command once for each name, and then until it is done. A name that a later run no
// longer passes has been passed for good: that is not allowed to happen to its first death.
func (r *rig) die(w walk) {
	r.t.Helper()
	names := slices.Concat(w.names, cond(testpg.Full(), w.also, nil))
	for i, name := range names {
		if !r.killed(w.points+name, w.args...) {
			r.t.Errorf("the runner did not die at %s (%d of %d): it had died at %v before", name, i+1, len(names), names[:i])
			return
		}
		if w.write != "" {
			r.sql(r.source, w.write)
		}
	}
	r.ends(w)
}

// ends brings a walk to its end.
func (r *rig) ends(w walk) {
	r.t.Helper()
	if w.end != nil {
		w.end(r)
		return
	}
	r.finally(w.args...)
}

// abortDeaths dies in abort, in runs that stopped before the freeze.
func abortDeaths(t *testing.T, abort walk) {
	r := newRig(t)
	before := r.dump(r.source)
	r.finally(untilArm...)
	r.die(abort)
	if after := r.dump(r.source); after != before {
		t.Errorf("abort left the source different:\n%s", firstDifference(before, after))
	}
	r.writing(0)
	r.balance(r.source)
}

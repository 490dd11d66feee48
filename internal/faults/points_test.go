package faults_test

import (
	"fmt"
	"slices"
	"testing"
)

// between lets the runner die between the two COMMITs, and its guardian before it can end that: what
// is passed only then, by the guardian or by the next run.
const between = "freeze.between:kill;freeze.resolving:kill"

var onlyBetween = []string{"freeze.resolving", "freeze.resolved"}

// A walk is a command with the names that it passes, in order, and how often.
type walk struct {
	args  []string
	names []string
	count map[string]int
}

// positions are a name's first, middle and last hit.
func (w walk) positions(name string) []int {
	n := w.count[name]
	at := []int{1, (n + 1) / 2, n}
	slices.Sort(at)
	return slices.Compact(at)
}

var (
	applyArgs    = []string{"apply", "--auto-approve"}
	rollbackArgs = []string{"rollback", "--auto-approve"}
	finishArgs   = []string{"finish", "--auto-approve", "--now"}
	abortArgs    = []string{"abort", "--auto-approve", "--drop-target"}
)

// discover makes undisturbed runs of every command and returns what they pass.
func discover(t *testing.T) (apply, rollback, finish, abort walk) {
	r := newRig(t)
	traced := func(args []string) walk {
		p := r.start("", args...)
		if o := p.end(); o.code != 0 {
			t.Fatalf("%s, undisturbed: %s\n%s", args, o, o.text)
		}
		names, count := p.hits()
		return walk{args: args, count: count, names: slices.DeleteFunc(names, func(name string) bool { return elsewhere[name] != "" })}
	}
	r.finally("apply", "--auto-approve", "--until", "arm")
	abort = traced(abortArgs)
	apply = traced(applyArgs)
	r.moved(0, 1)
	r.turn(1)
	rollback = traced(rollbackArgs)
	r.moved(1, 0)
	r.turn(0)
	again := traced(applyArgs)
	r.moved(0, 1)
	finish = traced(finishArgs)
	r.balance(r.target)
	if slices.Contains(again.names, "schema.dumped") {
		t.Error("a second cutover restores the schema again")
	}
	return apply, rollback, finish, abort
}

// TestEveryFailpoint kills the runner at each of them. In the short form many deaths share a
// migration: each run dies at the next name. With PGRUNBOOK_SOAK each name has a migration of its
// own for its first, middle and last hit, in every command.
func TestEveryFailpoint(t *testing.T) {
	all := registered(t)
	var apply, rollback, finish, abort walk
	if !t.Run("discover", func(t *testing.T) { apply, rollback, finish, abort = discover(t) }) {
		t.FailNow()
	}
	for _, name := range onlyBetween {
		if !slices.Contains(all, name) {
			t.Errorf("the source has no failpoint %s any more", name)
		}
	}
	for _, name := range all {
		passed := slices.Contains(slices.Concat(apply.names, rollback.names, finish.names, abort.names, onlyBetween), name)
		if !passed && elsewhere[name] == "" {
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
	for _, name := range onlyBetween {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			p := r.start(between, applyArgs...)
			if o := p.end(); o.signal == 0 || !p.passed("freeze.resolving", 1) {
				t.Fatalf("runner and guardian did not die: %s", o)
			}
			if !r.killed(name, applyArgs...) {
				t.Fatalf("the next run did not die at %s", name)
			}
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.balance(r.target)
		})
	}
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
	r.die(apply.args, share(apply.names, part, parts))
	r.moved(0, 1)
	r.writing(1)
	r.turn(1)
	r.die(rollback.args, share(rollback.names, part, parts))
	r.moved(1, 0)
	r.writing(0)
	r.turn(0)
	r.die(apply.args, []string{owned})
	r.moved(0, 1)
	r.writing(1)
	r.die(finish.args, share(finish.names, part, parts))
	r.balance(r.target)
}

// eachHit gives every hit of every command a migration of its own.
func eachHit(t *testing.T, apply, rollback, finish, abort walk) {
	// before brings a migration to where the command begins; there it ends on the side left.
	for _, c := range []struct {
		walk   walk
		before func(r *rig)
		after  func(r *rig)
	}{
		{apply, func(*rig) {}, func(r *rig) { r.moved(0, 1); r.writing(1); r.balance(r.target) }},
		{rollback, func(r *rig) { r.finally(apply.args...); r.moved(0, 1); r.turn(1) }, func(r *rig) { r.moved(1, 0); r.writing(0); r.balance(r.source) }},
		{finish, func(r *rig) { r.finally(apply.args...); r.moved(0, 1) }, func(r *rig) { r.balance(r.target) }},
		{abort, func(r *rig) { r.finally("apply", "--auto-approve", "--until", "arm") }, func(r *rig) { r.writing(0); r.balance(r.source) }},
	} {
		for _, name := range c.walk.names {
			for _, at := range c.walk.positions(name) {
				t.Run(fmt.Sprintf("%s/%s@%d", c.walk.args[0], name, at), func(t *testing.T) {
					t.Parallel()
					r := newRig(t)
					c.before(r)
					// How often a pass is made depends on the time: a later hit may not come.
					if !r.killed(fmt.Sprintf("%s@%d", name, at), c.walk.args...) && at == 1 {
						t.Fatal("the runner did not die")
					}
					r.finally(c.walk.args...)
					c.after(r)
				})
			}
		}
	}
}

// die runs a command once for each name, and then until it is done. A name that a later run no
// longer passes has been passed for good: that is not allowed to happen to its first death.
func (r *rig) die(args, names []string) {
	r.t.Helper()
	for i, name := range names {
		if r.killed(name, args...) {
			continue
		}
		r.t.Errorf("the runner did not die at %s (%d of %d): it had died at %v before", name, i+1, len(names), names[:i])
		return
	}
	r.finally(args...)
}

// abortDeaths dies in abort, in runs that stopped before the freeze.
func abortDeaths(t *testing.T, abort walk) {
	r := newRig(t)
	before := r.dump(r.source)
	r.finally("apply", "--auto-approve", "--until", "arm")
	r.die(abort.args, abort.names)
	if after := r.dump(r.source); after != before {
		t.Errorf("abort left the source different:\n%s", firstDifference(before, after))
	}
	r.writing(0)
	r.balance(r.source)
}

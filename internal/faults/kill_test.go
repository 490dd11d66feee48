package faults_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A blow kills a runner at the at-th boundary, of whatever name, that it passes; after one, where that
// is given.
type blow struct {
	args  []string
	after string
	most  int // at is at random, up to this
}

// chain is one migration's ten deaths, each in the run that continues what the one before has left. most is
// what a run passes at the least from there on, so that every blow is struck.
var chain = []blow{
	{applyArgs, "", 100},
	{applyArgs, "", 100},
	{applyArgs, "", 60},
	{applyArgs, "", 30},
	{applyArgs, "freeze.prepared", 8},
	{applyArgs, "freeze.passed", 7}, // the latter up to between the COMMITs
	{rollbackArgs, "", 8},
	{rollbackArgs, "", 8},
	{rollbackArgs, "freeze.prepared", 8},
	{rollbackArgs, "freeze.passed", 7},
}

// TestF01ChainOfKills kills ten runners of one migration, each at a random hit of whatever boundary
// comes then, on the way there, in the freeze, on the way back and in its freeze: the later ones
// continue what was continued before.
func TestF01ChainOfKills(t *testing.T) {
	random := seed(t)
	for range cond(soak(), 40, 1) {
		s := random.Uint64()
		t.Run("", func(t *testing.T) {
			t.Parallel()
			random := randomOf(s)
			r := newRig(t)
			kills, parts := 0, map[string]int{}
			for i, b := range chain {
				if i > 0 && chain[i-1].args[0] != b.args[0] {
					r.finally(chain[i-1].args...)
					r.moved(0, 1)
					r.writing(1)
					r.turn(1)
				}
				for again := true; again; { // an attempt may have been given up: the hit came in the next passes
					p := r.struck(b, random)
					kills++
					parts[b.args[0]+" "+p.part()]++
					again = b.after != "" && p.part() != "freeze" && kills < 2*len(chain)
				}
			}
			r.finally(rollbackArgs...)
			r.moved(1, 0)
			r.writing(0)
			r.balance(r.source)
			t.Logf("%d kills in one migration: %v", kills, parts)
			if kills < 10 || parts["apply freeze"] < 2 || parts["rollback freeze"] < 2 {
				t.Errorf("%d kills in one migration, %v: want 10, with two in the freeze of each way", kills, parts)
			}
		})
	}
}

// struck is the process that died of a blow.
func (r *rig) struck(b blow, random *rand.Rand) *process {
	r.t.Helper()
	point := fmt.Sprintf("*@%d", 1+random.IntN(b.most))
	if b.after != "" {
		point = b.after + "/" + point
	}
	p, died := r.dies(point, b.args...)
	if !died {
		r.t.Fatalf("%s did not die at %s", b.args[0], point)
	}
	return p
}

// forward are the steps of apply, in order: each begins with a hit of journal.begun, also where it is done.
var forward = []string{"schema", "capture", "copy", "catch_up", "constraints", "verify", "reverse", "arm", "freeze"}

// part is where in its walk a process ended, by what it passed: start is before the first step, freeze an
// attempt to hold writes on either side.
func (p *process) part() string {
	begun, frozen := 0, false
	for _, name := range p.passes() {
		switch name {
		case "journal.begun":
			begun++
		case "freeze.prepared":
			frozen = true
		case "freeze.letgo", "freeze.flipped":
			frozen = false
		}
	}
	switch {
	case begun == 0:
		return "start"
	case frozen:
		return "freeze"
	case p.args[0] != "apply":
		return p.args[0]
	}
	switch step := forward[min(begun, len(forward))-1]; step {
	case "schema", "capture", "copy":
		return step
	case "freeze":
		return "around the freeze"
	default:
		return "passes"
	}
}

// tally counts kills by where they came.
type tally struct {
	sync.Mutex
	parts map[string]int
	kills int
}

func (c *tally) add(p *process) {
	c.Lock()
	defer c.Unlock()
	c.kills++
	c.parts[p.part()]++
}

func (c *tally) String() string {
	var out []string
	for _, part := range slices.Sorted(maps.Keys(c.parts)) {
		out = append(out, fmt.Sprintf("%s %d", part, c.parts[part]))
	}
	return fmt.Sprintf("%d kills: %s", c.kills, strings.Join(out, ", "))
}

// TestF01F02RandomKills kills the runner at times that are uniform over the length of its command, over
// migrations that go there, back, there again and to their end. The clients never stop, and a reader of the side that takes
// writes never sees half a transaction.
func TestF01F02RandomKills(t *testing.T) {
	random := seed(t)
	lengths := map[string]time.Duration{}
	discover(t)
	for _, w := range []walk{undisturbed.apply, undisturbed.rollback, undisturbed.finish} {
		lengths[w.args[0]] = w.took * 8 / 5 // two migrations share the machine; and some runs must come through
	}
	total := cond(soak(), 2000, 60)
	count := &tally{parts: map[string]int{}}
	const rigs = 2
	for range rigs {
		s := random.Uint64()
		t.Run("", func(t *testing.T) {
			t.Parallel()
			kills, runs := 0, 0
			for kills < total/rigs {
				kills += randomKills(t, s+uint64(runs), total/rigs-kills, lengths, count)
				runs++
			}
			t.Logf("%d kills in %d migrations", kills, runs)
		})
	}
	t.Cleanup(func() { // after the parallel ones
		t.Log(count)
		if t.Failed() {
			return
		}
		// Of 60 it is certain only for what is long.
		for _, parts := range cond(soak(), [][]string{{"schema"}, {"copy"}, {"passes"}, {"freeze"}, {"rollback"}, {"finish"}},
			[][]string{{"schema", "capture", "copy", "passes"}, {"freeze", "rollback"}}) {
			n := 0
			for _, part := range parts {
				n += count.parts[part]
			}
			if n == 0 {
				t.Errorf("no kill came in %s; %s", strings.Join(parts, ", "), count)
			}
		}
		if count.kills != total {
			t.Errorf("%d kills, want %d", count.kills, total)
		}
	})
}

// randomKills plays one migration with up to most kills and says how many there were.
func randomKills(t *testing.T, s uint64, most int, lengths map[string]time.Duration, count *tally) (kills int) {
	t.Run("", func(t *testing.T) {
		random := randomOf(s)
		r := newRig(t)
		until := func(args []string) {
			upTo := min(most, kills+cond(soak(), most, 6)) // a few do not all go to one command
			for range most + 20 {
				p := r.start("", args...)
				if kills < upTo {
					time.Sleep(time.Duration(random.Int64N(int64(lengths[args[0]]))))
					p.signal(syscall.SIGKILL)
				}
				o := p.end()
				switch {
				case o.signal == syscall.SIGKILL:
					kills++
					count.add(p)
				case o.code == 0:
					return
				default:
					r.acceptable(o)
				}
			}
			t.Fatalf("%s does not get done", args)
		}
		until(applyArgs)
		r.moved(0, 1)
		r.writing(1)
		r.turn(1)
		until(rollbackArgs)
		r.moved(1, 0)
		r.turn(0)
		until(applyArgs)
		r.moved(0, 1)
		until(finishArgs)
		r.balance(r.target)
		if looked := r.sides.Looked(); looked[0] == 0 || looked[1] == 0 {
			t.Errorf("the state of the source was looked at %d times, of the target %d times", looked[0], looked[1])
		}
	})
	return kills
}

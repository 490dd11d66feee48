package faults_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// lean leaves a few small tables to a migration in which every round trip, or every byte, costs; the ledger's clients
// alone write.
func (r *rig) lean() {
	r.t.Helper()
	for r.client.still.Store(true); !r.client.rests.Load(); time.Sleep(time.Millisecond) {
	}
	r.sql(r.source, `DROP TABLE app.part, app.slot, app.label, app.amount, app.event, app.scratch, app.jobs, app.trail, app.bag CASCADE;
		DELETE FROM app.item WHERE id > 500`)
	for _, line := range []string{
		`table "app.jobs" { data = "at_freeze" }`, `table "app.trail" { identity = "append_only" }`, `table "app.bag" { identity = "full_row" }`,
	} {
		r.edit(line+"\n", "")
	}
}

// through runs a command to its end at the first try. Passes that bring the target no nearer, and attempts that all end
// alike, are not waited for.
func (r *rig) through(args ...string) *process {
	r.t.Helper()
	const passes = 12
	p := r.start("", args...)
	p.limit = 20 * time.Minute
	for ; p.state() != "Z"; time.Sleep(100 * time.Millisecond) {
		if said := p.said(); strings.Count(said, "the target is ") > passes || strings.Contains(said, "freeze attempt 4 of") {
			p.signal(syscall.SIGKILL)
			r.t.Fatalf("%s makes one pass, or attempt, after the other and does not get done\n%s", args, p.end().text)
		}
	}
	if o := p.end(); o.code != 0 {
		r.t.Fatalf("%s over a slow network: %s, want 0\n%s", args, o, o.text)
	}
	return p
}

// TestF14CarriedThroughLatency loads, catches up and cuts over, without a second try, while a server is far away. Over
// oceans that is a round trip of a third of a second. At half a second writes do not go back, since what lets them go
// within a second when the runner is gone takes that for its end, and the steps between load and cutover are spared.
func TestF14CarriedThroughLatency(t *testing.T) {
	for _, c := range []struct {
		name  string
		side  int
		delay time.Duration // of each direction
		all   bool
	}{
		{"F14 80 ms to the source and back", 0, 40 * time.Millisecond, true},
		{"F14 80 ms to the target and back", 1, 40 * time.Millisecond, true},
		{"F14 500 ms to the source and back", 0, 250 * time.Millisecond, false},
		{"F14 500 ms to the target and back", 1, 250 * time.Millisecond, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.lean()
			r.edit(`max_write_block = "5s"`, `max_write_block = "2m"`)
			r.edit(`timeout = "1s"`, `timeout = "20s"`) // it is noted on the target that the step begins
			way := r.proxied()[c.side]
			r.finally(untilCapture...) // many statements, in which nothing of the protocol waits for another
			way.Latency(c.delay)
			if !c.all {
				r.through(untilCopy...)
				way.Heal()
				r.finally(untilArm...)
				way.Latency(c.delay)
			}
			carried := func(args ...string) {
				t.Helper()
				_, count := r.through(args...).hits()
				if count["pass.committed"] == 0 || count["freeze.held"] != 1 {
					t.Errorf("%s made %d passes and held writes %d times", args, count["pass.committed"], count["freeze.held"])
				}
			}
			carried(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			if c.all {
				r.turn(1)
				carried(rollbackArgs...)
				r.moved(1, 0)
				r.writing(0)
			}
			if n := way.Fired(testpg.FaultLatency); n < 100 {
				t.Errorf("%d pieces of data were late: nothing was proved", n)
			}
			r.balance(cond(c.all, r.source, r.target))
		})
	}
}

// TestF14CarriedThroughBandwidth gives one side 1 kB/s from the moment on in which a chunk is claimed, until it is committed,
// and from the begin of a pass to its end: both come through, at the first try.
func TestF14CarriedThroughBandwidth(t *testing.T) {
	for side := range 2 {
		t.Run(fmt.Sprintf("F14 side %d", side), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.lean()
			r.edit("workers = 2", "workers = 1") // no other chunk is on its way
			way := r.proxied()[side]
			slowly := func(args []string, from, to string, done func()) {
				t.Helper()
				began, over := 0, false
				p := r.during("", []moment{
					{from, func() { began = way.Fired(testpg.FaultBandwidth); way.Bandwidth(1 << 10) }},
					{to, func() {
						done()
						way.Heal()
						over = true
					}},
				}, args...)
				drops := way.Fired(testpg.FaultBandwidth) - began
				t.Logf("from %s to %s: %d drops of 1 kB/8", from, to, drops)
				if o := p.end(); o.code != 0 || !over || drops < 100 || strings.Contains(o.text, "again") {
					t.Fatalf("%s at 1 kB/s: %s, over: %t, %d drops\n%s", args, o, over, drops, o.text)
				}
			}
			r.finally(untilCapture...)
			slowly(untilCopy, "load.claimed@1", "load.committed@1", func() {
				if n := r.number(r.target, "SELECT count(*) FROM pgrunbook.item WHERE state = 'done' AND rows > 50"); n != 1 {
					t.Errorf("%d chunks of more than 50 rows are loaded", n)
				}
			})
			r.finally(untilCatchUp...)
			r.sql(r.source, "UPDATE app.item SET name = 'slow' WHERE id <= 50")
			slowly(untilCatchUp, "pass.begun@1", "pass.forgotten@1", func() {
				if n := r.number(r.target, "SELECT count(*) FROM app.item WHERE name = 'slow'"); n != 50 {
					t.Errorf("%d of 50 changed rows are on the target", n)
				}
			})
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.balance(r.target)
		})
	}
}

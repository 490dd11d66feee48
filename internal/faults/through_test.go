package faults_test

import (
	"fmt"
	"strings"
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

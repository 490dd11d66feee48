package journal

import (
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// D8: a worker of the old runner, which nobody could end, has loaded a chunk and not committed yet. A runner that takes
// over waits for it before it moves the epoch: when it looks, the chunk is marked or nothing of it is there, and no
// chunk is loaded by both.
func TestD8TakeOverWaitsForAChunkInFlight(t *testing.T) {
	const bump = "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() AND wait_event_type = 'Lock' AND query LIKE 'UPDATE pgrunbook.run SET epoch%'"
	for name, commit := range map[string]bool{"it commits": true, "it rolls back": false} {
		t.Run(name, func(t *testing.T) {
			url := newDB(t)
			plan := testPlan(t, url, "copy")
			old := open(t, url, OpenOptions{Plan: plan})
			addItems(t, url, old, ranges(1, 1, 1))
			tx, err := connect(t, url).Begin(t.Context()) // under no name that a take-over ends
			if err != nil {
				t.Fatal(err)
			}
			it, ok, err := old.Claim(t.Context(), tx, "copy", 0)
			if err != nil || !ok {
				t.Fatalf("claim: %t, %v", ok, err)
			}
			if err := Fence(t.Context(), tx, old.ID, old.Epoch); err != nil {
				t.Fatal(err)
			}
			if err := old.Done(t.Context(), tx, "copy", it, 1, 1); err != nil {
				t.Fatal(err)
			}
			taken := make(chan *Run, 1)
			go func() {
				run, err := Open(testContext(t), server(t, "target", url), OpenOptions{Plan: plan, ToolVersion: "1.0.0", Steal: true})
				if err != nil {
					t.Error(err)
				}
				taken <- run
			}()
			looking := connect(t, url)
			for waits := 0; waits != 1; {
				select {
				case <-taken:
					t.Fatal("the run was taken over while the chunk was in flight")
				case <-time.After(5 * time.Millisecond):
				}
				if err := looking.QueryRow(testContext(t), bump).Scan(&waits); err != nil {
					t.Fatal(err)
				}
			}
			if commit {
				err = tx.Commit(t.Context())
			} else {
				err = tx.Rollback(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			next := <-taken
			if next == nil {
				t.FailNow()
			}
			defer next.Close(t.Context())
			if done, err := next.IsDone(t.Context(), "copy", it); done != commit || err != nil || next.Epoch != old.Epoch+1 {
				t.Errorf("the chunk is done: %t, %v; epoch %d after %d", done, err, next.Epoch, old.Epoch)
			}
			tx, err = connect(t, url).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, open, err := next.Claim(t.Context(), tx, "copy", 0); open == commit || err != nil {
				t.Errorf("the next runner takes it: %t, %v", open, err)
			}
			if err := Fence(t.Context(), tx, old.ID, old.Epoch); engine.ClassOf(err) != engine.ClassHeld {
				t.Errorf("a later chunk of the old runner: %v, want ClassHeld", err)
			}
		})
	}
}

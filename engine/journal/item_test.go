package journal

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
)

func ranges(table int32, n int, size int64) []Item {
	var out []Item
	for i := range n {
		it := Item{Table: table, No: int32(i), Size: size}
		if i > 0 {
			it.Lo = ptr(fmt.Sprint(i * 10))
		}
		if i < n-1 {
			it.Hi = ptr(fmt.Sprint(i*10 + 10))
		}
		out = append(out, it)
	}
	return out
}

func addItems(t *testing.T, url string, r *Run, sets ...[]Item) {
	t.Helper()
	for _, items := range sets {
		if err := in(t, url, func(ctx context.Context, tx pgx.Tx) error { return r.AddItems(ctx, tx, "copy", items) }); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFirstSetOfItemsStands(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	addItems(t, url, r, ranges(1, 3, 5), ranges(1, 3, 5), ranges(1, 7, 5)) // the table grew meanwhile
	var got []Item
	for {
		var ok bool
		err := in(t, url, func(ctx context.Context, tx pgx.Tx) error {
			it, found, err := r.Claim(ctx, tx, "copy", 0)
			if ok = found; err != nil || !found {
				return err
			}
			got = append(got, it)
			return r.Done(ctx, tx, "copy", it, 1, 2)
		})
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
	}
	if diff := cmp.Diff(ranges(1, 3, 5), got); diff != "" {
		t.Errorf("items (-want +got):\n%s", diff)
	}
	p, err := r.Progress(t.Context(), "copy")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]TableProgress{{Table: 1, Items: 3, DoneItems: 3, Rows: 3, Bytes: 6, Size: 15, DoneSize: 15}}, p); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	err = in(t, url, func(ctx context.Context, tx pgx.Tx) error { return r.Done(ctx, tx, "copy", got[0], 1, 1) })
	if err == nil || !strings.Contains(err.Error(), "done already") {
		t.Errorf("marking twice: %v", err)
	}
	err = in(t, url, func(ctx context.Context, tx pgx.Tx) error {
		return r.AddItems(ctx, tx, "copy", append(ranges(2, 1, 1), ranges(3, 1, 1)...))
	})
	if err == nil {
		t.Error("two tables in one call were accepted")
	}
}

func TestClaimsSpreadLargestFirst(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	addItems(t, url, r, ranges(1, 2, 10), ranges(2, 9, 1000), ranges(3, 4, 100))
	var got []int32
	for worker := range 7 {
		tx, err := connect(t, url).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		it, ok, err := r.Claim(t.Context(), tx, "copy", worker)
		if err != nil || !ok {
			t.Fatalf("worker %d: %t, %v", worker, ok, err)
		}
		got = append(got, it.Table)
	}
	if diff := cmp.Diff([]int32{2, 2, 3, 3, 1, 1, 2}, got); diff != "" {
		t.Errorf("tables by worker (-want +got):\n%s", diff)
	}
	// Table 1's two items are locked by others: nothing of it is free, and nobody waits.
	err := in(t, url, func(ctx context.Context, tx pgx.Tx) error {
		_, ok, err := r.ClaimOf(ctx, tx, "copy", 1)
		if ok {
			t.Error("an item was claimed twice")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestManyWorkersDoEachItemOnce(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	addItems(t, url, r, ranges(1, 12, 10), ranges(2, 8, 30))
	var mu sync.Mutex
	var done []string
	var wg sync.WaitGroup
	for worker := range 4 {
		other, err := Attach(t.Context(), server(t, "target", url), "worker")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { other.Close(context.Background()) })
		conn := connect(t, url)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for more := true; more; {
				err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
					it, ok, err := other.Claim(t.Context(), tx, "copy", worker)
					if more = ok; err != nil || !ok {
						return err
					}
					mu.Lock()
					done = append(done, fmt.Sprintf("%d/%d", it.Table, it.No))
					mu.Unlock()
					return other.Done(t.Context(), tx, "copy", it, 0, 0)
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	slices.Sort(done)
	if len(done) != 20 || len(slices.Compact(done)) != 20 {
		t.Errorf("%d items done: %v", len(done), done)
	}
}

func TestD19UnknownOutcomeWaitsForTheTransaction(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	addItems(t, url, r, ranges(1, 1, 1))
	for _, commit := range []bool{false, true} {
		tx, err := connect(t, url).Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		it, ok, err := r.Claim(t.Context(), tx, "copy", 0)
		if err != nil || !ok {
			t.Fatalf("claim: %t, %v", ok, err)
		}
		if err := r.Done(t.Context(), tx, "copy", it, 1, 1); err != nil {
			t.Fatal(err)
		}
		answer := make(chan bool, 1)
		go func() {
			done, err := r.IsDone(testContext(t), "copy", it)
			if err != nil {
				t.Error(err)
			}
			answer <- done
		}()
		waitForLockWaiter(t, url)
		if commit {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := <-answer; got != commit {
			t.Errorf("committed %t, found %t", commit, got)
		}
	}
}

// waitForLockWaiter returns once some session of the database waits for a lock.
func waitForLockWaiter(t *testing.T, url string) {
	t.Helper()
	conn, ctx := connect(t, url), testContext(t)
	for {
		var waits bool
		err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() AND wait_event_type = 'Lock')").Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		if waits {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestTableStatesOnlyGoForward(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	ctx := t.Context()
	if _, ok, err := r.TableState(ctx, nil, 4); ok || err != nil {
		t.Fatalf("a state before the load: %t, %v", ok, err)
	}
	for i, c := range []struct {
		state      LoadState
		generation int
		ok         bool
	}{{Loading, 1, true}, {Loading, 1, true}, {Scrubbed, 1, true}, {Loading, 1, false}, {Following, 1, true}, {Scrubbed, 1, false}, {Loading, 2, true}, {Following, 1, false}} {
		err := r.SetTableState(ctx, nil, 4, c.state, c.generation, map[string]int64{"public.a": 9})
		if (err == nil) != c.ok {
			t.Errorf("%d: setting %s of generation %d: %v", i, c.state, c.generation, err)
		}
	}
	addItems(t, url, r, ranges(4, 3, 1))
	err := in(t, url, func(ctx context.Context, tx pgx.Tx) error {
		generation, err := r.Reset(ctx, tx, 4)
		if generation != 3 {
			t.Errorf("generation %d after the reset", generation)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	states, err := r.TableStates(ctx, nil)
	if diff := cmp.Diff(map[int32]TableState{4: {Table: 4, State: Loading, Generation: 3, Filenodes: map[string]int64{}}}, states); diff != "" || err != nil {
		t.Errorf("states (-want +got):\n%s%v", diff, err)
	}
	p, err := r.Progress(ctx, "copy")
	if len(p) != 0 || err != nil {
		t.Errorf("items after the reset: %+v, %v", p, err)
	}
}

func TestCursorIs(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	ctx := t.Context()
	if _, err := r.Begin(ctx, &scripted{id: "copy"}); err != nil {
		t.Fatal(err)
	}
	type cursor struct{ A, B int }
	if err := r.Checkpoint("copy", discard).Save(ctx, nil, cursor{1, 2}); err != nil {
		t.Fatal(err)
	}
	for c, want := range map[cursor]bool{{1, 2}: true, {1, 3}: false} {
		if got, err := r.CursorIs(ctx, "copy", c); got != want || err != nil {
			t.Errorf("cursor %+v: %t, %v", c, got, err)
		}
	}
	if err := r.End(ctx, "copy", nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Reopen(ctx, "copy", false, "writes went back"); err != nil {
		t.Fatal(err)
	}
	if list, err := r.Steps(ctx); err != nil {
		t.Fatal(err)
	} else if why, is := SetBack(list[0]); !is || why != "writes went back" {
		t.Errorf("set back since %q, %v: %+v", why, is, list)
	}
	rec, err := r.Begin(ctx, &scripted{id: "copy", fingerprint: "other"})
	if err != nil || rec.State != engine.StepRunning {
		t.Errorf("begin after reopening: %+v, %v", rec, err)
	}
	steps, err := r.Steps(ctx)
	if err != nil || len(steps) != 1 || steps[0].State != engine.StepRunning || steps[0].Fingerprint != "other" {
		t.Errorf("steps %+v, %v", steps, err)
	}
}

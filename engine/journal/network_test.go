package journal

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestSilentNetworkEndsTheRunnerAndItsReturnIsFenced(t *testing.T) {
	url := newDB(t)
	proxy := testpg.ListenT(t, testpg.Shared(t, major(t)))
	plan := testPlan(t, url, "copy")
	old := open(t, proxy.URL(url), OpenOptions{Plan: plan})
	if _, err := old.Begin(t.Context(), &scripted{id: "copy"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := old.Context(t.Context())
	defer cancel()
	proxy.BlackHole(true)
	// The server does not know yet: the lock stands, and only force takes it.
	if _, err := Open(testContext(t), server(t, "target", url), OpenOptions{Plan: plan}); engine.ClassOf(err) != engine.ClassHeld {
		t.Fatalf("got %v, want ClassHeld", err)
	}
	select {
	case <-ctx.Done():
		if cause := context.Cause(ctx); engine.HintOf(cause) == "" {
			t.Errorf("cause %v", cause)
		}
	case <-testContext(t).Done():
		t.Fatal("the runner's context did not end")
	}
	if proxy.Fired(testpg.FaultBlackHole) == 0 {
		t.Error("the network was not silent")
	}
	thief := open(t, url, OpenOptions{Plan: plan, Steal: true})
	proxy.Heal()
	// The old runner's session is gone; on a new one it is refused.
	for range 2 {
		if err := old.Checkpoint("copy", discard).Save(testContext(t), nil, 1); err == nil {
			t.Fatal("the runner that was replaced saved a cursor")
		}
	}
	if err := old.End(testContext(t), "copy", nil); engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("the runner that was replaced ends a step: %v, want ClassHeld", err)
	}
	if rec, err := thief.Begin(t.Context(), &scripted{id: "copy"}); err != nil || rec.State != engine.StepRunning {
		t.Errorf("the new runner begins the step: %+v, %v", rec, err)
	}
}

// TestUnknownCommitOutcomes cuts the connection at each kind of COMMIT, before and after the server
// has it, and compares what the journal's look-ups say with what the server has.
func TestUnknownCommitOutcomes(t *testing.T) {
	url := newDB(t)
	proxy := testpg.ListenT(t, testpg.Shared(t, major(t)))
	r := open(t, proxy.URL(url), OpenOptions{Plan: testPlan(t, url)})
	ctx := t.Context()
	if _, err := r.Begin(ctx, &scripted{id: "copy"}); err != nil {
		t.Fatal(err)
	}
	addItems(t, url, r, ranges(1, 2, 1))
	cuts := 0
	cut := func(how testpg.CommitCut, write func() error) {
		t.Helper()
		before := proxy.Fired(testpg.FaultCommit)
		proxy.CutCommit(how, 0)
		if err := write(); err == nil {
			t.Error("a write whose COMMIT was cut reports success")
		}
		if proxy.Fired(testpg.FaultCommit) != before+1 {
			t.Fatal("no COMMIT was cut")
		}
		proxy.Heal()
		cuts++
	}
	for i, c := range []struct {
		how  testpg.CommitCut
		want bool
	}{{testpg.CommitNotSent, false}, {testpg.CommitUnanswered, true}} {
		cursor := map[string]int{"n": i}
		cut(c.how, func() error { return r.Checkpoint("copy", discard).Save(ctx, nil, cursor) })
		if got, err := r.CursorIs(ctx, "copy", cursor); err != nil || got != c.want {
			t.Errorf("cursor: %t, %v; want %t", got, err, c.want)
		}

		var it Item
		cut(c.how, func() error {
			conn, err := server(t, "target", proxy.URL(url)).Connect(ctx, pg.Use{Name: "load"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(ctx) }()
			return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				var ok bool
				if it, ok, err = r.Claim(ctx, tx, "copy", 0); err != nil || !ok {
					t.Fatalf("claim: %t, %v", ok, err)
				}
				return r.Done(ctx, tx, "copy", it, 1, 1)
			})
		})
		if got, err := r.IsDone(ctx, "copy", it); err != nil || got != c.want {
			t.Errorf("item: %t, %v; want %t", got, err, c.want)
		}

		cut(c.how, func() error { return r.DecideFlip(ctx, r.Epoch, engine.Source, engine.Target, nil) })
		o, err := r.Owner(ctx)
		if err != nil || (o.Side == Unclear) != c.want {
			t.Errorf("owner after the decision: %+v, %v", o, err)
		}
		if err := r.DecideFlip(ctx, r.Epoch, engine.Source, engine.Target, nil); err != nil {
			t.Errorf("deciding again: %v", err)
		}
		cut(c.how, func() error { return r.SetOwner(ctx, nil, engine.Source) })
		if o, err = r.Owner(ctx); err != nil || (o.Side == engine.Source) != c.want {
			t.Errorf("owner after settling: %+v, %v", o, err)
		}
		if err := r.SetOwner(ctx, nil, engine.Source); err != nil {
			t.Errorf("settling again: %v", err)
		}
	}
	if cuts != 8 {
		t.Errorf("%d commits were cut", cuts)
	}
	for _, how := range []testpg.CommitCut{testpg.CommitNotSent, testpg.CommitUnanswered} {
		cut(how, func() error { return r.End(ctx, "copy", nil) })
		if err := r.End(ctx, "copy", nil); err != nil {
			t.Errorf("ending again: %v", err)
		}
		if err := r.Reopen(ctx, "copy", true, "it is a test"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Begin(ctx, &scripted{id: "copy"}); err != nil {
			t.Fatal(err)
		}
	}
}

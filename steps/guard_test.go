package steps

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestGuardianReadsTheRecordAgain: between the guardian's look at the record and its turn at the gate the
// runner, which was only slow, began a switch step. What the guardian leaves on record is what stands
// there once no hold can be.
func TestGuardianReadsTheRecordAgain(t *testing.T) {
	r := newRig(t, "")
	ctx := t.Context()
	g, cp, _ := r.guardian()

	record := r.inTransaction(r.target, "SELECT FROM pgrunbook.step WHERE id = 'freeze' FOR UPDATE")
	done := make(chan error, 1)
	go func() { done <- g.act(ctx, "the runner has fallen silent") }()
	r.waits(r.target) // it has seen that the source takes writes
	hold := r.gateHeld()
	record()
	r.waits(r.source) // it has read the record
	want := freezeCursor{Begun: 1, Paused: true}
	r.must(cp.Save(ctx, nil, want))
	hold()
	r.must(<-done)

	var got freezeCursor
	_, err := cp.Load(ctx, &got)
	r.must(err)
	want.Paused = false
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the guardian wrote over what the runner had recorded (-want +got):\n%s", diff)
	}
}

// TestF08GuardianThatMayNotEndHolds: a guardian without the right to end the hold of a runner that fell silent says so,
// and settles who may write all the same once that hold is gone.
func TestF08GuardianThatMayNotEndHolds(t *testing.T) {
	r := newRig(t, "")
	ctx := t.Context()
	g, cp, said := r.guardian()
	for _, url := range []string{r.source, r.target} {
		r.exec(url, `DO $$ BEGIN EXECUTE format('ALTER FUNCTION %s RENAME TO not_for_us',
			(SELECT oid::regprocedure FROM pg_proc WHERE proname = 'pg_terminate_backend')); END $$`)
	}
	hold := r.gateHeld()
	done := make(chan error, 1)
	go func() { done <- g.act(ctx, "the runner has fallen silent") }()
	r.waits(r.source)
	hold()
	r.must(<-done)
	var got freezeCursor
	_, err := cp.Load(ctx, &got)
	r.must(err)
	if got.Paused {
		t.Error("the guardian let nobody go on")
	}
	for _, want := range []string{"hold on the source", "hold on the target", "42883", "guardian: the source takes writes"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("the guardian does not say %q:\n%s", want, said)
		}
	}
}

// guardian is one that stands in for a runner that paused its poolers for a freeze, with the freeze's record, and what it
// says. No hold of that runner may be left.
func (r *rig) guardian() (*guard, engine.Checkpoint, *bytes.Buffer) {
	r.t.Helper()
	ctx := r.t.Context()
	r.must(r.walk(ctx, newSchema(r.env), newCapture(r.env), newArm(r.env)))
	freeze := newFreeze(r.env, nil)
	_, err := r.env.Journal.Begin(ctx, freeze)
	r.must(err)
	cp := r.env.Journal.Checkpoint(freeze.ID(), r.env.Sink)
	r.must(cp.Save(ctx, nil, freezeCursor{Paused: true}))
	var said bytes.Buffer
	g := &guard{
		brief: brief{Source: r.env.Source.Config(), Target: r.env.Target.Config(), Run: r.env.Run, Scope: r.env.Scope, From: engine.Source, Step: freeze.ID(), Cutover: r.env.Runbook.Cutover},
		out:   io.Discard, warnings: slog.New(slog.NewTextHandler(&said, nil)), over: true,
	}
	r.must(g.equip())
	r.t.Cleanup(func() { g.drop(context.Background()) })
	g.flip, err = g.open(ctx)
	r.must(err)
	return g, cp, &said
}

// gateHeld holds the source's gate as somebody's freeze does.
func (r *rig) gateHeld() (end func()) {
	return r.inTransaction(r.source, "SELECT pg_advisory_xact_lock("+query(r.t, r.target, "SELECT gate_key::text FROM pgrunbook.run")+")")
}

// waits waits until a session waits for a lock.
func (r *rig) waits(url string) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); query(r.t, url, "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") != "1"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatal("the guardian waits for nothing")
		}
	}
}

// inTransaction runs a statement in a transaction that end commits.
func (r *rig) inTransaction(url, sql string) (end func()) {
	r.t.Helper()
	conn, err := testpg.Connect(r.t.Context(), url)
	r.must(err)
	_, err = conn.PgConn().Exec(r.t.Context(), "BEGIN; "+sql).ReadAll()
	r.must(err)
	return func() {
		r.t.Helper()
		_, err := conn.Exec(r.t.Context(), "COMMIT")
		r.must(err)
		r.must(conn.Close(r.t.Context()))
	}
}

package steps

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestFlipIsOpenAndTheSourceGone: nobody can say any more whether the source was closed, and every
// command leads to the one that opens the target, which a source that answers forbids.
func TestFlipIsOpenAndTheSourceGone(t *testing.T) {
	for _, from := range []engine.Side{engine.Source, engine.Target} {
		t.Run("on the way from the "+string(from), func(t *testing.T) {
			t.Parallel()
			sent := filepath.Join(t.TempDir(), "sent")
			r := moved(t, dnsSwitch(touch(sent), `"true"`))
			ctx, probe := t.Context(), "UPDATE shop.customer SET name = 'written' WHERE id = 1"
			step := newFreeze(r.env, nil)
			if from == engine.Source { // as it is between the COMMITs
				r.exec(r.target, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 1")
				r.must(r.env.Journal.SetOwner(ctx, nil, engine.Source))
			} else {
				step = newRollback(r.env, nil)
			}
			r.diesIn(step)
			if from == engine.Source { // one of the steps that had begun has left the runbook since
				r.must(r.env.Journal.Checkpoint(step.ID(), r.env.Sink).Save(ctx, nil, freezeCursor{Begun: 2, Steps: []engine.StepID{"cutover.switch.exec.old", "cutover.switch.exec.dns"}}))
			}
			r.must(r.env.Journal.End(ctx, step.ID(), errors.New("it died")))
			r.must(r.env.Journal.DecideFlip(ctx, r.env.Run.Epoch, from, from.Other(), nil))
			if from == engine.Target {
				r.exec(r.target, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 1")
			}
			finish := func() error { return r.walk(ctx, newFinish(r.env, FinishOptions{Now: true, WithoutSource: true})) }
			if err := finish(); err == nil || !strings.Contains(engine.HintOf(err), "pgrunbook apply") {
				t.Fatalf("with a source that answers: %v, hint %q", err, engine.HintOf(err))
			}
			r.env.Source = r.mistyped()
			if err := finish(); err == nil || !strings.Contains(err.Error(), "it alone knows") || !strings.Contains(err.Error(), r.env.Journal.SourceIdentity.Address) {
				t.Fatalf("with a source that answers where the run was begun: %v", err)
			}
			r.sourceIsGone()
			if err := Abort(ctx, r.env, AbortOptions{WithoutSource: true}); err == nil || !strings.Contains(engine.HintOf(err), "pgrunbook finish --without-source") {
				t.Errorf("abort --without-source: %v, hint %q", err, engine.HintOf(err))
			}
			if owner, err := r.env.Journal.Owner(ctx); err != nil || owner.Side != journal.Unclear {
				t.Fatalf("writes are on %s: %v", owner.Side, err)
			}
			r.exec(r.target, "UPDATE pgrunbook.run SET epoch = epoch + 1") // another runner, which may have found the source
			if err := finish(); engine.ClassOf(err) != engine.ClassHeld {
				t.Errorf("finish of a runner that was replaced: %v", err)
			}
			if err := try(t, r.target, probe); err == nil {
				t.Error("a runner that was replaced opened the target")
			}
			r.exec(r.target, "UPDATE pgrunbook.run SET epoch = epoch - 1")
			if _, err := os.Stat(sent); err == nil {
				t.Error("clients were sent to a closed target")
			}
			r.must(finish())
			r.stays(map[engine.Side]string{engine.Source: journal.FlipDone, engine.Target: journal.FlipUndone}[from])
			r.exec(r.target, probe)
			if _, err := os.Stat(sent); err != nil {
				t.Errorf("the clients were not sent to the target: %v", err)
			}
			if from == engine.Source && !r.heard("cutover.switch.exec.old") {
				t.Error("nobody was told of the step that is not in the runbook")
			}
		})
	}
}

// nowhere is a source at whose address nothing answers.
func nowhere(t *testing.T) *Server {
	t.Helper()
	gone, err := NewServer(engine.Source, "postgresql://nobody@127.0.0.1:1/nothing", "")
	if err != nil {
		t.Fatal(err)
	}
	return gone
}

// mistyped is the source's server with an address where nothing answers.
func (r *rig) mistyped() *Server {
	r.t.Helper()
	server, err := r.env.Source.At("127.0.0.1:1/nothing")
	r.must(err)
	return server
}

// sourceIsGone puts the source where nothing answers, as if it had always been there.
func (r *rig) sourceIsGone() {
	r.env.Source = nowhere(r.t)
	r.env.Journal.SourceIdentity.Address = r.env.Source.Address()
}

// stays demands that the target takes writes, and that the latest flip ended so.
func (r *rig) stays(outcome string) {
	r.t.Helper()
	owner, err := r.env.Journal.Owner(r.t.Context())
	r.must(err)
	if owner.Side != engine.Target || owner.Flip.Outcome != outcome {
		r.t.Errorf("writes are on the %s, the flip is %s", owner.Side, owner.Flip.Outcome)
	}
}

// A target that was open all the time is not closed for a moment: nobody waits for who has written there
// and not committed yet.
func TestOpenTargetStaysOpenWithoutTheSource(t *testing.T) {
	r := moved(t, "")
	ctx := t.Context()
	r.must(r.env.Journal.DecideFlip(ctx, r.env.Run.Epoch, engine.Target, engine.Source, nil))
	r.sourceIsGone()
	writer, err := testpg.Connect(ctx, r.target)
	r.must(err)
	defer func() { _ = writer.Close(context.Background()) }()
	_, err = writer.Exec(ctx, "BEGIN; UPDATE shop.customer SET name = 'not yet committed' WHERE id = 1")
	r.must(err)
	r.must(settleWithoutSource(ctx, r.env))
	_, err = writer.Exec(ctx, "COMMIT")
	r.must(err)
	r.stays(journal.FlipUndone)
}

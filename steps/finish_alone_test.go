package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// TestFlipIsOpenAndTheSourceGone: nobody can say any more whether the source was closed, and every
// command leads to the one that opens the target, which a source that answers forbids.
func TestFlipIsOpenAndTheSourceGone(t *testing.T) {
	for _, from := range []engine.Side{engine.Source, engine.Target} {
		t.Run("on the way from the "+string(from), func(t *testing.T) {
			t.Parallel()
			r := moved(t, "")
			ctx, probe := t.Context(), "UPDATE shop.customer SET name = 'written' WHERE id = 1"
			if from == engine.Source { // as it is between the COMMITs
				r.exec(r.target, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 1")
				r.must(r.env.Journal.SetOwner(ctx, nil, engine.Source))
			}
			r.must(r.env.Journal.DecideFlip(ctx, r.env.Run.Epoch, from, from.Other(), nil))
			if from == engine.Target {
				r.exec(r.target, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 1")
			}
			finish := func() error { return r.walk(ctx, newFinish(r.env, FinishOptions{Now: true, WithoutSource: true})) }
			if err := finish(); err == nil || !strings.Contains(engine.HintOf(err), "pgrunbook apply") {
				t.Fatalf("with a source that answers: %v, hint %q", err, engine.HintOf(err))
			}
			gone, err := NewServer(engine.Source, "postgresql://nobody@127.0.0.1:1/nothing", "")
			r.must(err)
			r.env.Source = gone
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
			r.must(finish())
			owner, err := r.env.Journal.Owner(ctx)
			r.must(err)
			if want := map[engine.Side]string{engine.Source: journal.FlipDone, engine.Target: journal.FlipUndone}[from]; owner.Side != engine.Target || owner.Flip.Outcome != want {
				t.Errorf("writes are on the %s, the flip is %s", owner.Side, owner.Flip.Outcome)
			}
			r.exec(r.target, probe)
		})
	}
}

package steps

import (
	"context"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// settleFlip ends a flip that a dead runner left decided: both gates say which way it went. Every
// command that depends on who may write begins with it, so that nobody is asked to look where a
// look decides. Without an open flip it does nothing.
func settleFlip(ctx context.Context, env *Env) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Side != journal.Unclear || owner.Flip == nil {
		return err
	}
	step := &freezeStep{env: env, id: "freeze", phase: engine.PhaseCutover, from: owner.Flip.From}
	f, err := step.build(ctx, journal.NewMemory().Checkpoint(step.id, abortSink{env}))
	if err != nil {
		return err
	}
	defer f.close(ctx)
	opened, err := f.settle(ctx)
	if err != nil {
		return err
	}
	return f.poolers.settle(ctx, opened)
}

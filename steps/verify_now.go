package steps

import (
	"context"
	"errors"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// VerifyNow compares both sides of the run that is open in env, beside the walk: from the side that
// takes writes, after a pass from there. Where no pass may be made because both sides may have taken
// writes, they are compared as they are.
func VerifyNow(ctx context.Context, env *Env, show engine.Sink) error {
	env.report(show)
	s, err := verifyFrom(ctx, env)
	if err != nil {
		return err
	}
	p, err := planStep(ctx, env, s)
	if err != nil {
		return err
	}
	ctx, cancel := env.Journal.Context(ctx)
	defer cancel()
	err = withCause(ctx, s.Apply(ctx, p, journal.NewMemory().Checkpoint(s.ID(), show)))
	if err == nil {
		return placesProved(ctx, env)
	}
	if engine.ClassOf(err) != engine.ClassDifferences {
		return err
	}
	return errors.Join(err, distrust(ctx, env, s.ID()))
}

// verifyFrom finds out in which direction changes flow now.
func verifyFrom(ctx context.Context, env *Env) (*verifyStep, error) {
	s := &verifyStep{env: env, from: engine.Source}
	owner, err := env.Journal.Owner(ctx)
	if err != nil {
		return nil, err
	}
	switch owner.Side {
	case engine.Source:
		return s, nil
	case engine.Target:
		s.from = engine.Target
	default:
		return nil, engine.Errorf(engine.ClassAmbiguous, "Let the same command settle it: pgrunbook apply", "a flip is decided and not settled: it is not clear who takes writes")
	}
	back, err := WayBack(ctx, env)
	switch {
	case err != nil:
		return nil, err
	case back.Possible:
		return s, nil
	case back.class == engine.ClassAmbiguous:
		s.as = true
		env.Sink.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: back.Why + ". The sides are compared as they are: what the target wrote since the last reverse pass counts as a difference too"})
		return s, nil
	}
	return nil, &engine.Error{
		Op: "comparing both sides", Err: errors.New("the target takes writes and nothing carries them back: " + back.Why),
		Hint: "What was equal at the flip is in the certificate: pgrunbook status --certificate",
	}
}

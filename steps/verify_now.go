package steps

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// VerifyNow compares both sides of the run that is open in env, beside the walk: from the side that
// takes writes, after a pass from there. Where no pass may be made because both sides may have taken
// writes, they are compared as they are.
func VerifyNow(ctx context.Context, env *Env, show engine.Sink) (err error) {
	defer func() { err = env.placed(err) }()
	env.report(show)
	if err := env.notAborting(ctx, "comparing both sides"); err != nil {
		return err
	}
	if err := flipLost(ctx, env); err != nil { // the rows differ by what was written since, and neither is mended by writing
		return err
	}
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
	err = withCause(ctx, s.sure(ctx, p, journal.NewMemory().Checkpoint(s.ID(), show)))
	if err == nil && s.as {
		return nil // equal by chance of the moment: nothing is trusted for it
	}
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
		left, err := stillLoading(ctx, env)
		if err == nil && len(left) > 0 {
			s.again, err = loadedAgain(ctx, env)
		}
		if err == nil && !s.again {
			err = notLoaded("comparing both sides", left)
		}
		if err != nil {
			return nil, err
		}
		stray, err := strayOnTarget(ctx, env, owner)
		if err == nil && stray.Why != "" {
			s.asIs(stray.Why)
		}
		return s, err
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
		for _, side := range []engine.Side{engine.Source, engine.Target} {
			if is := env.Server(side).Config().Timeline; is != 0 && is != env.Journal.Timeline(side) {
				s.asIs(fmt.Sprintf("the %s was promoted from a standby, which may have lacked commits", side))
			}
		}
		return s, nil
	case back.class == engine.ClassAmbiguous:
		s.asIs(back.Why)
		return s, nil
	}
	return nil, &engine.Error{
		Op: "comparing both sides", Err: errors.New("the target takes writes and nothing carries them back: " + back.Why),
		Hint: "What was equal at the flip is in the certificate: pgrunbook status --certificate",
	}
}

// asIs lets nothing be carried from side to side.
func (s *verifyStep) asIs(why string) {
	s.as = true
	s.env.Sink.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: fmt.Sprintf("%s. The sides are compared as they are: what the %s wrote since the last pass counts as a difference too", why, s.from)})
}

// notLoaded is nil where everything is loaded.
func notLoaded(op string, left []string) error {
	if len(left) == 0 {
		return nil
	}
	return &engine.Error{Op: op, Object: joinSome(left), Err: errors.New("it is not loaded to its end"), Hint: "Load it first: pgrunbook apply --until catch_up"}
}

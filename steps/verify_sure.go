package steps

import (
	"context"
	"errors"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// Until a comparison has proved a promoted source, apply does not go on: what only another load can mend of
// it is loaded here, before anything is compared.

// sure compares. Tables of which a pass cannot tell what the target has of a source that was promoted are loaded again,
// each once.
func (s *verifyStep) sure(ctx context.Context, p engine.StepPlan, cp engine.Checkpoint) error {
	if s.again {
		if err := s.load(ctx, cp, nil); err != nil {
			return err
		}
	}
	reloaded := map[int32]bool{}
	for {
		err := s.Apply(ctx, p, cp)
		var images *pass.UnfitError
		if s.as || s.from != engine.Source || !untrusted(s.env) || !errors.As(err, &images) || reloaded[images.Table.ID] {
			return err
		}
		reloaded[images.Table.ID] = true
		if err := s.load(ctx, cp, unfit(images)); err != nil {
			return err
		}
	}
}

// load loads tables again, and whatever else waits for that.
func (s *verifyStep) load(ctx context.Context, cp engine.Checkpoint, again *recopy) error {
	ctx, limits, err := watchLimits(ctx, s.env, cp)
	if err != nil {
		return err
	}
	defer limits.close()
	if again != nil {
		err = startAgain(ctx, s.env, limits, cp, again)
	}
	if err == nil {
		err = (&catchUpStep{env: s.env}).loadLeft(ctx, limits, cp)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// untrusted reports whether the source was promoted since the run saw it last.
func untrusted(env *Env) bool {
	is := env.Source.Config().Timeline
	return is != 0 && is != env.Journal.Timeline(engine.Source)
}

// loadedAgain reports whether what still loads was loaded before, so that catch_up would load it to its end, but for a
// promotion of the source that nobody has proved.
func loadedAgain(ctx context.Context, env *Env) (bool, error) {
	if !untrusted(env) {
		return false, nil
	}
	records, err := env.Journal.Steps(ctx)
	if err != nil {
		return false, err
	}
	for _, r := range records {
		if r.ID == copyID {
			return r.State == engine.StepDone, nil
		}
	}
	return false, nil
}

package steps

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/compare"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// smallEnough is the pass that is not worth another one before the freeze, beside its round trips.
const smallEnough = 100 * time.Millisecond

// silent refuses a side whose triggers fire for what passes write.
func (f *flipper) silent(ctx context.Context) error {
	return silent(ctx, f.looks.of(f.to), f.to, f.env.Scope)
}

// drain makes passes until they stop getting shorter and predicts the write block by the last and by earlier freezes.
func (f *flipper) drain(ctx context.Context) (predicted engine.Prediction, err error) {
	owner, err := f.env.Journal.Owner(ctx)
	if err != nil {
		return predicted, err
	}
	shown, err := measureNow(ctx, f.env.Journal, owner)
	if err != nil {
		return predicted, err
	}
	if err := f.stage(ctx); err != nil { // hundreds take seconds, in which changes pile up that the passes carry
		return predicted, err
	}
	best := time.Duration(0)
	for i := range 30 {
		if err := f.unpaused(ctx); err != nil { // whose time is not the pass's
			return predicted, err
		}
		start := time.Now()
		res, err := f.onePass(ctx)
		if err != nil {
			return predicted, err
		}
		took := time.Since(start)
		if took-res.Trips <= smallEnough || (i >= 3 && took >= best) {
			best = took
			break
		}
		best = took
	}
	shown.Pass = best
	f.shown = shown
	return f.predict(ctx), nil
}

// predict tells what the next freeze would cost by what was shown so far.
func (f *flipper) predict(ctx context.Context) engine.Prediction {
	if f.shown.see(f.seen); len(f.poolers.group) == 0 { // the journal may not have them yet
		f.shown.poolersShown = poolersShown{}
	}
	c := costsOf(f.env.Scope)
	c.limits = switchLimits(f.env)
	c.askSizes(ctx, f.looks.of(f.from), f.env.Scope)
	c.from, c.to = f.looks.trip(ctx, f.from), f.looks.trip(ctx, f.from.Other())
	if f.reload.bytes = c.bytes; c.planned { // as they were some day: they tell no rate
		f.reload.bytes = 0
	}
	return budgeted(f.env, f.from, c.predict(f.shown))
}

// onePass makes one exact pass with patience for locks and lost connections, once nobody says pause. It takes all at once, as the
// final one does: what it costs tells what that will.
func (f *flipper) onePass(ctx context.Context) (pass.Result, error) {
	if err := f.unpaused(ctx); err != nil {
		return pass.Result{}, err
	}
	res, err := f.passer.Follow(ctx, pass.FollowOptions{Options: pass.Options{Patience: time.Minute, Prove: proveRows}})
	if err != nil {
		return res, fmt.Errorf("pass before the freeze: %w", err)
	}
	f.cp.Emit(engine.Event{Kind: engine.EventLag, Lag: res.Took, Elapsed: res.Took, Rows: res.Rows + res.Deleted, Message: fmt.Sprintf("pass of %d rows in %s", res.Rows+res.Deleted, res.Took.Round(time.Millisecond))})
	return res, nil
}

func (f *flipper) pass(ctx context.Context) error {
	_, err := f.onePass(ctx)
	return err
}

// stage makes the final pass's stages ahead: there is no time for many while clients wait.
func (f *flipper) stage(ctx context.Context) error {
	if err := f.passer.Stage(ctx, pass.Options{Patience: time.Minute}); err != nil {
		return fmt.Errorf("preparing the final pass: %w", err)
	}
	return nil
}

// passUntil keeps the target near the source until a time.
func (f *flipper) passUntil(ctx context.Context, until time.Time) error {
	for time.Now().Before(until) {
		if err := f.pass(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(time.Second, time.Until(until))):
		}
	}
	return nil
}

// proveRows is how many changed rows of one table a pass of the freeze compares: a join by key, which
// costs about as much as writing them.
const proveRows = 20000

// compared says what the certificate may: the final pass's rows were read on one side and looked at on
// the other inside the freeze, and so were those of the passes since the step began.
func (f *flipper) compared() string {
	text := fmt.Sprintf("%d of the %d changed rows of the final pass, equal bit by bit", f.final.Proved, f.final.Keys)
	if f.final.Proved < f.final.Keys {
		text += fmt.Sprintf(" (the others by their number: their tables have no key, or more than %d changed rows)", proveRows)
	}
	text += "; row counts of both ends of every COPY; " + engine.Plural(len(f.reload.tables), "table") + " reloaded"
	switch verify := f.env.Runbook.Verify; {
	case f.to == engine.Source:
		text += "; no other contents on the way back (pgrunbook verify does that)"
	case verify.Enabled && verify.Mode == string(compare.Count):
		text += "; all other tables by their number of rows, in the live verification"
	case verify.Enabled:
		text += "; all other contents by the live verification"
	default:
		text += "; no other contents: verify { enabled = false }"
	}
	return text
}

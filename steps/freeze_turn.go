package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// errNotYet ends an attempt that people do not want now. It does not count.
var errNotYet = errors.New("not yet")

// windowPass is how often a pass keeps the target near the source while the window is closed.
const windowPass = 5 * time.Second

// heeds reports whether people and the window say when. A way back in need waits for nobody, and a
// rehearsal is begun by a person.
func (f *flipper) heeds() bool { return f.to == engine.Target && !f.Rehearsal }

// unpaused waits while people have said pause.
func (f *flipper) unpaused(ctx context.Context) error {
	if !f.heeds() {
		return nil
	}
	return f.env.unpaused(ctx, f.cp.Emit)
}

// closedUntil is when the runbook's window opens next; zero: it is open, for at least as long as writes may be
// held.
func (f *flipper) closedUntil() (time.Time, error) {
	text := f.env.Runbook.Cutover.Window
	if text == "" || !f.heeds() {
		return time.Time{}, nil
	}
	w, err := runbook.ParseWindow(text)
	if err != nil {
		return time.Time{}, err
	}
	now := f.now()
	if end := w.End(now); w.Contains(now) && end.Sub(now) < f.Budget {
		return w.Next(end), nil
	}
	if !w.Contains(now) {
		return w.Next(now), nil
	}
	return time.Time{}, nil
}

// turn waits until nobody says pause and the window is open. While it is closed passes go on.
func (f *flipper) turn(ctx context.Context) error {
	said, passed := false, time.Time{}
	for {
		began := time.Now()
		if err := f.unpaused(ctx); err != nil {
			return err
		}
		if time.Since(began) >= pausePoll {
			said = false // what is said last is what status shows
		}
		opens, err := f.closedUntil()
		if err != nil || opens.IsZero() {
			return err
		}
		if !said {
			window := f.env.Runbook.Cutover.Window
			f.cp.Emit(engine.Event{Kind: engine.EventWaiting, Reason: "window " + window, Message: fmt.Sprintf("waiting for the cutover window %s, which opens at %s", window, opens.Format(time.RFC3339))})
			said = true
		}
		if time.Since(passed) >= windowPass {
			if err := f.pass(ctx); err != nil {
				return err
			}
			passed = time.Now()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(pausePoll, opens.Sub(f.now()))):
		}
	}
}

// mayHold looks once more, just before anybody is made to wait: passes and poolers take their time, in
// which the window may end, or somebody say pause.
func (f *flipper) mayHold(ctx context.Context) error {
	if !f.heeds() {
		return nil
	}
	c, err := f.env.Journal.Control(ctx)
	if err != nil {
		return notNow(err)
	}
	if c.Paused {
		return fmt.Errorf("%w: %w: paused by %s", freeze.ErrNotNow, errNotYet, c.By)
	}
	opens, err := f.closedUntil()
	if err == nil && !opens.IsZero() {
		err = fmt.Errorf("%w: %w: the cutover window %s has ended, or is open for less than max_write_block", freeze.ErrNotNow, errNotYet, f.env.Runbook.Cutover.Window)
	}
	return err
}

package steps

import (
	"context"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// pausePoll is how often a walk that people paused looks whether it may go on.
const pausePoll = time.Second

// unpaused waits while people have said pause: at the safe points of steps that no limit watches.
func (e *Env) unpaused(ctx context.Context, emit func(engine.Event)) error {
	var told time.Time
	for {
		c, err := e.Journal.Control(ctx)
		if err != nil || !c.Paused {
			return err
		}
		if time.Since(told) >= saidAgain {
			told = time.Now()
			emit(engine.Event{Kind: engine.EventWaiting, Reason: "paused by " + c.By, Message: "paused by " + c.By + ": pgrunbook unpause lets it go on"})
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pausePoll):
		}
	}
}

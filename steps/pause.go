package steps

import (
	"context"
	"sync"
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
			emit(engine.Event{Kind: engine.EventWaiting, Reason: pausedWords + c.By, Message: pausedWords + c.By + ": pgrunbook unpause lets it go on"})
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pausePoll):
		}
	}
}

// betweenParts is unpaused for a step of many small parts, such as tables: it may be called before each
// one, by several workers, and asks once a second.
func (e *Env) betweenParts(emit func(engine.Event)) func(ctx context.Context) error {
	var mu sync.Mutex
	var asked time.Time
	return func(ctx context.Context) error {
		mu.Lock() // who comes while another one waits, waits too
		defer mu.Unlock()
		if time.Since(asked) < pausePoll {
			return ctx.Err()
		}
		err := e.unpaused(ctx, emit)
		asked = time.Now()
		return err
	}
}

// paused reports whether people have said pause. What cannot be asked is no pause: whoever needs the
// journal finds out by itself.
func (e *Env) paused(ctx context.Context) bool {
	c, err := e.Journal.Control(ctx)
	return err == nil && c.Paused
}

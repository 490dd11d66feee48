package steps

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// churn tells when definitions change on the source as fast as they are carried: each round of a catch-up then begins anew
// before its pass, and nothing of the delta goes over. It ends when the DDL rests, so it is said, and is no error.
type churn struct {
	rounds, told int
	last         time.Time
	now          func() time.Time // Defaults to time.Now
}

const (
	churnRounds = 10          // in a row before it is said, and again each time that they have doubled
	churnGap    = time.Minute // without such a round they are none in a row
	churnRest   = time.Second // after each round from then on: the carrying itself costs both servers something
)

// round is one that what ended before its pass.
func (c *churn) round(ctx context.Context, emit func(engine.Event), what string) error {
	if c.now == nil {
		c.now = time.Now
	}
	at := c.now()
	if at.Sub(c.last) > churnGap {
		c.rounds, c.told = 0, 0
	}
	c.rounds, c.last = c.rounds+1, at
	if c.rounds < churnRounds {
		return nil
	}
	if c.rounds >= max(churnRounds, 2*c.told) {
		c.told = c.rounds
		emit(engine.Event{
			Kind: engine.EventWaiting, Level: "warn", Reason: "DDL on the source",
			Message: fmt.Sprintf("definitions changed on the source %d times in a row before a pass could begin, at last: %s. Find out what makes that DDL, and stop it for the time of the run: changes of rows wait meanwhile", c.rounds, what),
		})
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(churnRest):
		return nil
	}
}

package steps

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// DDL that never rests is said, ever more seldom, and whoever gives up is heard; DDL now and then is nobody's concern.
func TestChurnOfDefinitionsIsSaid(t *testing.T) {
	at, said := time.Now(), []string{}
	c := &churn{now: func() time.Time { return at }}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody rests
	round := func(n int, apart time.Duration) (err error) {
		for range n {
			at = at.Add(apart)
			err = c.round(ctx, func(e engine.Event) { said = append(said, e.Message) }, "type h.mood changed")
		}
		return err
	}
	if err := round(100, 2*time.Minute); err != nil || len(said) > 0 {
		t.Errorf("with DDL now and then: %v, said %q", err, said)
	}
	if err := round(churnRounds-2, time.Second); err != nil || len(said) > 0 {
		t.Errorf("with some DDL in a row: %v, said %q", err, said)
	}
	if err := round(1, time.Second); !errors.Is(err, context.Canceled) || len(said) != 1 || !strings.Contains(said[0], "h.mood") {
		t.Errorf("with DDL that never rests: %v, said %q", err, said)
	}
	if _ = round(9*churnRounds, time.Second); len(said) != 4 { // 10, 20, 40, 80
		t.Errorf("after %d rounds it was said %d times", 10*churnRounds, len(said))
	}
}

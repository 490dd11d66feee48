package freeze

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// F14: over a way on which no hold can be kept no attempt begins, and nobody waits; over a shorter one it comes to its
// flip. Whatever the sessions for it cost, they are there in time.
func TestF14LongWay(t *testing.T) {
	for _, c := range []struct {
		name    string
		each    time.Duration // way
		refused bool
	}{
		{"longer than a hold bears", 260 * time.Millisecond, true},
		{"long", 50 * time.Millisecond, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t)
			at, err := url.Parse(p.target)
			if err != nil {
				t.Fatal(err)
			}
			way, err := testpg.Listen(t.Context(), at.Host)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = way.Close() }()
			way.Latency(c.each)
			p.freeze.To, p.freeze.Budget = server(t, "target", way.URL(p.target)), 20*time.Second
			_, err = p.freeze.Attempt(t.Context(), 1)
			if way.Fired(testpg.FaultLatency) == 0 {
				t.Error("the way was short")
			}
			switch {
			case !c.refused && err != nil:
				t.Error(err)
			case c.refused && (!errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "a round trip to the target takes ")):
				t.Errorf("%v is no refusal that names the way", err)
			}
			if held := len(p.marks) > 0; held == c.refused {
				t.Errorf("marks %v", p.marks)
			}
		})
	}
}

// TestBeginIsNotTheStepsTime: what is recorded before a switch step acts takes nothing of its timeout.
func TestBeginIsNotTheStepsTime(t *testing.T) {
	p := newPair(t)
	p.freeze.Switch = []SwitchStep{{
		Name: "dns", Timeout: 100 * time.Millisecond,
		Begin: func(ctx context.Context) error {
			time.Sleep(200 * time.Millisecond)
			return ctx.Err()
		},
		Do: func(ctx context.Context) error { return ctx.Err() },
	}}
	if _, err := p.freeze.Attempt(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

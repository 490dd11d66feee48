package pass

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// F14: what a pass takes for round trips it takes however little there is to do: a drain ends all the same, and says
// how much of the lag they are.
func TestF14DrainOverALongWay(t *testing.T) {
	p := newPair(t, plainTable)
	ways := []*testpg.Proxy{p.wayOf(p.source, 30*time.Millisecond), p.wayOf(p.target, 30*time.Millisecond)}
	p.from, p.to = server(t, "source", ways[0].URL(p.source)), server(t, "target", ways[1].URL(p.target))
	p.passer = p.newPasser()
	p.app(`INSERT INTO t SELECT g FROM generate_series(1, 100) g`)
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	defer cancel()
	const until = 200 * time.Millisecond
	if _, err := p.passer.Drain(ctx, DrainOptions{Until: until}); err != nil {
		t.Fatal(err)
	}
	least, told := time.Hour, false
	for _, e := range p.events {
		if e.Kind == engine.EventLag {
			least, told = min(least, e.Lag), told || strings.Contains(e.Message, "of it for round trips")
		}
	}
	if least <= until || !told {
		t.Errorf("the shortest pass took %s: nothing is proved; or nobody said why: %v", least, p.events)
	}
	for i, way := range ways {
		if way.Fired(testpg.FaultLatency) == 0 {
			t.Errorf("the way to side %d was short", i)
		}
	}
}

// wayOf is a way to a server that takes so long in each direction.
func (p *pair) wayOf(side string, each time.Duration) *testpg.Proxy {
	p.t.Helper()
	at, err := url.Parse(side)
	if err != nil {
		p.t.Fatal(err)
	}
	way, err := testpg.Listen(p.t.Context(), at.Host)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = way.Close() })
	way.Latency(each)
	return way
}

// TestF14TripsOfEachSide: a round trip to a side that is near takes nothing of the time of one to the side far away,
// whichever that is.
func TestF14TripsOfEachSide(t *testing.T) {
	const trip = 100 * time.Millisecond
	for _, far := range []string{"source", "target"} {
		t.Run(far, func(t *testing.T) {
			p := newPair(t, plainTable)
			if far == "source" {
				p.from = server(t, far, p.wayOf(p.source, trip/2).URL(p.source))
			} else {
				p.to = server(t, far, p.wayOf(p.target, trip/2).URL(p.target))
			}
			p.passer = p.newPasser()
			p.app(`INSERT INTO t SELECT g FROM generate_series(1, 100) g`)
			p.exact()
			p.passer.trips()
			near, away := p.passer.fromConn(), p.passer.toConn()
			if far == "source" {
				near, away = away, near
			}
			for range 9 {
				if err := near.Ping(p.ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := away.Ping(p.ctx); err != nil {
				t.Fatal(err)
			}
			if got := p.passer.trips(); got < trip || got > 5*trip {
				t.Errorf("nine round trips to the side at hand and one to the %s took %s, want about %s", far, got, trip)
			}
		})
	}
}

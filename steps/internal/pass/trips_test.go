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
	ways := make([]*testpg.Proxy, 0, 2)
	for _, side := range []string{p.source, p.target} {
		at, err := url.Parse(side)
		if err != nil {
			t.Fatal(err)
		}
		way, err := testpg.Listen(t.Context(), at.Host)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = way.Close() })
		way.Latency(30 * time.Millisecond)
		ways = append(ways, way)
	}
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

package steps

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const (
	// lateShare is the part of a limit that late changes have to take before a load waits for passes over them.
	lateShare = 0.1
	// gaugeRests is how many times as long as it took the measure of the deltas rests.
	gaugeRests = 10
)

// lateAfter is how long a change waits that passes do not keep up with: they come every followEvery. Shorter in tests.
var lateAfter = 5 * time.Second

// deltaGauge measures what waits in the deltas.
type deltaGauge struct {
	next   []nextID // oldest first; the first alone may be older than lateAfter
	last   capture.Waiting
	enough int64 // what last was measured for
	at     time.Time
	took   time.Duration
}

// nextID is the transaction id that the source was about to give at a time.
type nextID struct {
	at time.Time
	id uint64
}

// value gives the bytes of the changes that wait, or those of all files where these are within the limit.
func (g *deltaGauge) value(ctx context.Context, conn *pgx.Conn, limit runbook.Limit) (float64, error) {
	start, enough := time.Now(), int64(limit.Value)
	if start.Sub(g.at) < gaugeRests*g.took && g.enough <= enough {
		return float64(g.last.All), nil
	}
	for len(g.next) > 1 && start.Sub(g.next[1].at) >= lateAfter {
		g.next = g.next[1:]
	}
	var late uint64
	if len(g.next) > 0 && start.Sub(g.next[0].at) >= lateAfter {
		late = g.next[0].id
	}
	w, err := capture.Measure(ctx, conn, enough, late)
	if err != nil {
		return 0, err
	}
	g.last, g.enough, g.at, g.took = w, enough, time.Now(), time.Since(start)
	g.next = append(g.next, nextID{start, w.Next})
	return float64(w.All), nil
}

// taken is what passes over loaded tables take while others load.
type taken struct {
	tables  map[int32]bool
	out     map[int32]bool // those that they leave out
	loading bool           // some table
	failed  bool           // the latest pass, for a reason that time alone does not end
}

// passBegins says which tables are loaded, and whether others still load. What the latest pass left out counts as left out
// until one has taken it.
func (l *limits) passBegins(loaded []scope.Table, loading bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken.loading = loading
	l.taken.set(loaded, l.taken.out)
}

// passLeaves says that a pass is made of some of the loaded tables only.
func (l *limits) passLeaves(loaded, tables []scope.Table) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken.set(loaded, without(loaded, tables))
}

// passTook says that a pass over these has ended.
func (l *limits) passTook(loaded, tables []scope.Table) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken.failed = false
	l.taken.set(loaded, without(loaded, tables))
}

// passFailed hears of a pass that is tried again, which may be in vain for as long as the load lasts.
func (l *limits) passFailed(err error) {
	if pg.Retryable(err) || pg.Canceled(err) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken.failed = true
	l.taken.set(nil, l.taken.out)
}

func (l *limits) nobodyFollows() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken = taken{}
}

func (t *taken) set(loaded []scope.Table, out map[int32]bool) {
	t.tables, t.out = map[int32]bool{}, out
	for _, one := range loaded {
		t.tables[one.ID] = !t.failed && !out[one.ID]
	}
}

func without(all, some []scope.Table) map[int32]bool {
	out := map[int32]bool{}
	for _, t := range all {
		out[t.ID] = true
	}
	for _, t := range some {
		delete(out, t.ID)
	}
	return out
}

// shrinks reports whether a load that waits lets passes bring the deltas down: where much of what waits belongs to
// tables that passes take, and they do not keep up with it. All else goes only when the load has ended: changes of tables that are
// still loading, and of those that passes leave out. And what comes in between two passes is there at any time.
func (l *limits) shrinks(limit runbook.Limit) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.taken.loading {
		return false
	}
	var late int64
	for id, bytes := range l.measure.deltas.last.Late {
		if l.taken.tables[id] {
			late += bytes
		}
	}
	return float64(late) > lateShare*limit.Value
}

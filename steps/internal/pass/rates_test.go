package pass

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
)

// heap samples what the runner keeps, until the returned function is called for the most of it.
func heap(ctx context.Context) (most func() uint64) {
	var seen atomic.Uint64
	ctx, stop := context.WithCancel(ctx)
	sample := func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		seen.Store(max(seen.Load(), m.HeapInuse))
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			sample()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return func() uint64 { stop(); <-over; return seen.Load() }
}

// A writer that is faster than the applier, in a backlog that goes by pieces and in one that exact
// passes take: both rates are named after some rounds, not after an hour; the drain fails when
// nothing has changed for as long as it may last, and ends when the writer does.
func TestWritersThatAreTooFast(t *testing.T) {
	const came = 4000 // rows, while a pass or a piece is made
	for name, opts := range map[string]DrainOptions{
		"pieces": {PieceRows: 1000, Workers: 1},
		"exact":  {PieceRows: came * 10, Workers: 1, Until: 500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, plainTable)
			p.app(`INSERT INTO t SELECT g FROM generate_series(1, 20000) g`)
			p.synced()
			app := p.connect(p.source)
			var mu sync.Mutex // of the runner's workers
			var quiet atomic.Bool
			var looks atomic.Int64
			// The writer is beside the pass and the reader is held up meanwhile, so that on any machine more
			// comes in than goes out.
			opts.Spent = func(ctx context.Context, _ int64) error {
				mu.Lock()
				defer mu.Unlock()
				if looks.Add(1); quiet.Load() {
					return nil
				}
				_, err := app.Exec(ctx, `UPDATE t SET v = coalesce(v, '') || 'x' WHERE id <= $1`, came)
				return err
			}
			check := p.passer.cfg.Check
			p.passer.cfg.Check = func(ctx context.Context, conn *pgx.Conn) error {
				if name == "exact" && !quiet.Load() {
					time.Sleep(opts.Until)
				}
				return check(ctx, conn)
			}
			told := make(chan engine.Event, 100)
			ordinary := p.passer.cfg.Emit
			p.passer.cfg.Emit = func(e engine.Event) {
				ordinary(e)
				if e.Kind == engine.EventWaiting || e.Kind == engine.EventNote {
					told <- e
				}
			}
			most := heap(p.ctx)
			p.app(`UPDATE t SET v = 'w' WHERE id <= 4000`)

			opts.GiveUp = time.Hour
			ended := make(chan error, 1)
			go func() {
				_, err := p.passer.Drain(p.ctx, opts)
				ended <- err
			}()
			var e engine.Event
			select {
			case e = <-told:
			case err := <-ended:
				t.Fatalf("the drain ended: %v", err)
			}
			if e.Kind != engine.EventWaiting || e.Level != "warn" || !bothRates(e.Message) || e.Pending == 0 || !strings.Contains(e.Hint, "workers=N") {
				t.Errorf("the event says %+v", e)
			}
			if n := looks.Load(); n > 100 {
				t.Errorf("it was said after %d passes", n)
			}
			quiet.Store(true)
			if err := <-ended; err != nil {
				t.Errorf("after the writer has stopped: %v", err)
			}
			p.equal()

			quiet.Store(false)
			opts.GiveUp = time.Nanosecond
			p.app(`UPDATE t SET v = 'x' WHERE id <= 4000`)
			_, err := p.passer.Drain(p.ctx, opts)
			var failed *engine.Error
			if !errors.As(err, &failed) || !bothRates(failed.Error()) || !strings.Contains(failed.Hint, "workers=N") {
				t.Errorf("a drain that has lasted as long as it may: %v", err)
			}
			if n := most(); n > heapLimit {
				t.Errorf("the runner's heap took %d MiB", n>>20)
			}
		})
	}
}

func bothRates(text string) bool {
	return strings.Contains(text, "will not converge: the application changes ") && strings.Contains(text, " rows/s are applied") &&
		!strings.Contains(text, " 0 rows/s")
}

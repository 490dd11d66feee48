package pass

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
)

// A writer that is faster than the applier, in a backlog that goes by pieces and in one that exact
// passes take: both rates are named after some rounds, not after an hour; the drain fails when
// nothing has changed for as long as it may last, and ends when the writer does. Of all that goes through
// meanwhile, the runner keeps little.
func TestWritersThatAreTooFast(t *testing.T) {
	const came = 4000 // rows, while a pass or a piece is made
	for name, opts := range map[string]DrainOptions{
		"pieces": {PieceRows: 1000, Workers: 1},
		"exact":  {PieceRows: came * 10, Workers: 1, Until: 500 * time.Millisecond},
	} {
		width := map[string]int{"pieces": 2000, "exact": 8000}[name] // of a row, so that there are enough bytes of each
		t.Run(name, func(t *testing.T) {
			p := newPair(t, plainTable)
			p.app(`INSERT INTO t SELECT g FROM generate_series(1, 20000) g`)
			p.synced()
			app := p.connect(p.source)
			var mu sync.Mutex // of the runner's workers
			var quiet atomic.Bool
			var looks, through atomic.Int64
			// The writer is beside the pass and the reader is held up meanwhile, so that on any machine more
			// comes in than goes out.
			opts.Spent = func(ctx context.Context, bytes int64) error {
				through.Add(bytes)
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
			p.app(fmt.Sprintf(`UPDATE t SET v = repeat('w', %d) WHERE id <= 4000`, width))

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
			p.app(fmt.Sprintf(`UPDATE t SET v = repeat('x', %d) WHERE id <= 4000`, width))
			_, err := p.passer.Drain(p.ctx, opts)
			var failed *engine.Error
			if !errors.As(err, &failed) || !bothRates(failed.Error()) || !strings.Contains(failed.Hint, "workers=N") {
				t.Errorf("a drain that has lasted as long as it may: %v", err)
			}
			kept(t, most(), through.Load())
		})
	}
}

func bothRates(text string) bool {
	return strings.Contains(text, "will not converge: the application changes ") && strings.Contains(text, " rows/s are applied") &&
		!strings.Contains(text, " 0 rows/s")
}

// A loop rests between its passes. What comes in meanwhile is no sign that it falls behind, however long its passes
// take; an application that writes more in a pass's time than the pass takes is.
func TestRatesOfALoopThatRests(t *testing.T) {
	const rest, applied = 2 * time.Second, 1000 // rows/s
	for came, follows := range map[int64]bool{400: true, 800: true, 1200: false, 3000: false} {
		r, now, waits := &rates{rests: true}, time.Unix(0, 0), 3*came
		for range 8 {
			took := time.Duration(waits) * time.Second / applied
			r.observe(now, waits)
			r.applied(waits, took)
			now, waits = now.Add(took+rest), int64((took+rest).Seconds()*float64(came))
		}
		if r.converges() != follows {
			t.Errorf("%d rows/s come, %d are applied: it follows: %v", came, applied, !follows)
		}
	}
}

// A loop of exact passes says that the application is faster than they are, and that it no longer is.
func TestLoopThatFallsBehind(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t SELECT g FROM generate_series(1, 15000) g`)
	p.synced()
	app, rows, calls := p.connect(p.source), 20, 0
	check := p.passer.cfg.Check
	p.passer.cfg.Check = func(ctx context.Context, conn *pgx.Conn) error {
		if calls++; calls%2 == 0 && rows < 15000 { // in the pass, not before it
			rows *= 3
			if _, err := app.Exec(ctx, `UPDATE t SET v = 'x' WHERE id <= $1`, rows); err != nil {
				return err
			}
		}
		return check(ctx, conn)
	}
	said := func() (list []engine.Event) {
		for _, e := range p.events {
			if e.Kind == engine.EventWaiting || e.Kind == engine.EventNote {
				list = append(list, e)
			}
		}
		return list
	}
	p.app(`UPDATE t SET v = 'x' WHERE id <= 20`)
	for range 7 {
		if _, err := p.passer.Follow(p.ctx, FollowOptions{Until: time.Nanosecond}); err != nil {
			t.Fatal(err)
		}
	}
	if list := said(); len(list) == 0 || list[0].Level != "warn" || !bothRates(list[0].Message) || strings.Contains(list[0].Hint, "workers") || list[0].Pending == 0 {
		t.Fatalf("the loop said %+v", list)
	}
	p.passer.cfg.Check = check
	p.synced()
	if _, err := p.passer.Follow(p.ctx, FollowOptions{Until: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if list := said(); list[len(list)-1].Message != "the backlog falls again" {
		t.Errorf("when nobody writes the loop said %+v", list[len(list)-1])
	}
	p.equal()
}

// A large backlog goes in pieces where a loop wants that, with one exact pass at its end, and in one pass where it does not.
func TestLoopTakesPieces(t *testing.T) {
	p := newPair(t, plainTable)
	for i := range 12 {
		p.app(fmt.Sprintf(`INSERT INTO t SELECT g FROM generate_series(%d, %d) g`, i*1000+1, i*1000+1000))
	}
	pieces := func() (n int) {
		for _, e := range p.events {
			if e.Kind == engine.EventProgress && e.Message == "applying captured changes" {
				n++
			}
		}
		return n
	}
	res, err := p.passer.Follow(p.ctx, FollowOptions{Pieces: &DrainOptions{Workers: 1, PieceRows: 2000}})
	if err != nil || res.Taken > 2000 || pieces() < 5 {
		t.Errorf("%d pieces, and %d changes in the pass: %v", pieces(), res.Taken, err)
	}
	p.equal()
	p.app(`UPDATE t SET v = 'x'`)
	before := pieces()
	if res, err = p.passer.Follow(p.ctx, FollowOptions{}); err != nil || res.Taken != 12000 || pieces() != before {
		t.Errorf("%d pieces, and %d changes in the pass: %v", pieces()-before, res.Taken, err)
	}
	p.equal()
}

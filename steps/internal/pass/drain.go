package pass

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// DrainOptions say how a backlog is worked off.
type DrainOptions struct {
	Workers   int           // pieces at the same time. Defaults to 2
	PieceRows int64         // delta rows of one piece. Defaults to 200,000
	Until     time.Duration // the lag to reach, beside the pass's round trips: no pass does without. Defaults to 1 s
	Stable    int           // exact passes in a row that must reach it. Defaults to 2
	// Patience is how long locks and lost connections are tried again. Defaults to a minute.
	Patience time.Duration
	// GiveUp ends a drain whose backlog has not fallen for so long. Defaults to an hour.
	GiveUp time.Duration
	// Control is asked before each pass and each piece; nil leaves everything as it is above.
	Control func() Control
	// Spent hears, while nothing is locked, of the bytes that each pass and piece has read; it may
	// wait. Nil never does.
	Spent func(ctx context.Context, bytes int64) error
}

// Control is what people and limits allow a drain at this moment.
type Control struct {
	Workers int
	Paused  bool
	Slow    bool // half of the time
}

func (o *DrainOptions) fill() {
	o.Workers = max(o.Workers, 0)
	if o.Workers == 0 {
		o.Workers = 2
	}
	if o.PieceRows == 0 {
		o.PieceRows = 200_000
	}
	if o.Until == 0 {
		o.Until = time.Second
	}
	if o.Stable == 0 {
		o.Stable = 2
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.GiveUp == 0 {
		o.GiveUp = time.Hour
	}
}

// Drain works off a backlog: large ones table by table, in parallel and in bounded pieces, then
// exact passes until the lag is reached and stays. It ends with the last exact pass's result. Where
// the application writes faster than rows can be applied it says so, and after GiveUp fails.
func (p *Passer) Drain(ctx context.Context, opts DrainOptions) (Result, error) {
	opts.fill()
	rate := &rates{}
	for good := 0; ; {
		waited, err := opts.admitted(ctx)
		if err != nil {
			return Result{}, err
		}
		rate.paused(waited)
		backlog, pieces, err := p.round(ctx, opts, rate, good > 0)
		if err != nil {
			return Result{}, err
		}
		if pieces {
			good = 0
			continue
		}
		start := time.Now()
		res, err := p.Exact(ctx, Options{Patience: opts.Patience})
		if err != nil {
			return res, err
		}
		held := p.outwaited()
		lag := time.Since(start) - held
		trips := min(p.trips(), lag)
		rate.applied(backlog.Rows, lag)
		rate.paused(held)
		if err := opts.after(ctx, res.Bytes, lag); err != nil {
			return res, err
		}
		p.cfg.Emit(engine.Event{Kind: engine.EventLag, At: time.Now(), Lag: lag, Rows: res.Rows, Message: fmt.Sprintf("the %s is %s behind%s", p.cfg.To.Side(), lag.Round(time.Millisecond), ofTrips(trips))})
		if lag-trips <= opts.Until {
			if good++; good >= opts.Stable {
				return res, nil
			}
			continue
		}
		good, rate.lag = 0, lag
	}
}

// manyTrips is the share of a pass that is worth a word.
const manyTrips = 100 * time.Millisecond

func ofTrips(trips time.Duration) string {
	if trips < manyTrips {
		return ""
	}
	return fmt.Sprintf(", %s of it for round trips to the servers", trips.Round(time.Millisecond))
}

// trips is what the network alone took of the latest try of a pass: as often as each session waited for its server, as
// long as the fastest answer of that took.
func (p *Passer) trips() (sum time.Duration) {
	for _, side := range [][]*pgx.Conn{{p.fromConn(), p.beat}, {p.toConn()}} {
		trips, way := 0, time.Duration(0)
		for _, conn := range side {
			if conn == nil {
				continue
			}
			n, fastest := pg.Trips(conn)
			if trips += n; way == 0 || n > 0 && fastest < way {
				way = fastest
			}
		}
		sum += time.Duration(trips) * way
	}
	return sum
}

// round counts a backlog and, where it is more than one pass should carry, takes it out for a while. fine
// leaves out what is said of one that is not.
func (p *Passer) round(ctx context.Context, opts DrainOptions, rate *rates, fine bool) (b Backlog, pieces bool, err error) {
	err = p.patiently(ctx, opts.Patience, func() error { b, err = p.Pending(ctx); return err })
	if err != nil {
		return b, false, err
	}
	rate.observe(time.Now(), b.Rows)
	pieces = b.Rows > opts.PieceRows
	if !fine || pieces {
		p.judge(rate, b)
		if rate.hopeless(opts.GiveUp) {
			return b, pieces, rate.err()
		}
	}
	if !pieces {
		return b, false, nil
	}
	rate.lag = 0
	p.cfg.Emit(engine.Event{
		Kind: engine.EventLag, At: time.Now(), Pending: b.Rows, Lag: time.Since(b.At),
		Message: fmt.Sprintf("%d captured changes are being applied", b.Rows),
	})
	return b, true, p.pieces(ctx, opts, b, rate)
}

// Backlog is what the captures hold.
type Backlog struct {
	Rows   int64
	Tables map[int32]int64 // rows per table ID
	At     time.Time
}

// Pending counts captured changes that were not applied yet.
func (p *Passer) Pending(ctx context.Context) (Backlog, error) {
	from, err := p.connectFrom(ctx, 0)
	if err != nil {
		return Backlog{}, err
	}
	found, err := from.look(ctx, p.following())
	if err != nil {
		return Backlog{}, err
	}
	b := Backlog{Rows: found.rows(), Tables: map[int32]int64{}, At: time.Now()}
	for id, t := range found.tables {
		b.Tables[id] = t.keys + int64(len(t.marks))
	}
	return b, nil
}

package pass

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// DrainOptions say how a backlog is worked off.
type DrainOptions struct {
	Workers   int           // pieces at the same time. Defaults to 2
	PieceRows int64         // delta rows of one piece. Defaults to 200,000
	Until     time.Duration // the lag to reach. Defaults to 1 s
	Stable    int           // exact passes in a row that must reach it. Defaults to 2
	// Patience is how long locks and lost connections are tried again. Defaults to a minute.
	Patience time.Duration
	// GiveUp ends a drain that does not converge. Defaults to an hour.
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
// exact passes until the lag is reached and stays. It ends with the last exact pass's result, or
// with an error when the application writes faster than rows can be applied for GiveUp.
func (p *Passer) Drain(ctx context.Context, opts DrainOptions) (Result, error) {
	opts.fill()
	rate := &rates{}
	deadline := time.Now().Add(opts.GiveUp)
	for good := 0; ; {
		waited, err := opts.admitted(ctx)
		if err != nil {
			return Result{}, err
		}
		deadline = deadline.Add(waited)
		backlog, err := p.Pending(ctx)
		if err != nil {
			if err = p.patiently(ctx, opts.Patience, func() error { backlog, err = p.Pending(ctx); return err }); err != nil {
				return Result{}, err
			}
		}
		rate.observe(time.Now(), backlog.Rows)
		if backlog.Rows > opts.PieceRows {
			good = 0
			p.report(rate, backlog, time.Since(backlog.At))
			if err := p.pieces(ctx, opts, backlog, rate); err != nil {
				return Result{}, err
			}
			if time.Now().After(deadline) {
				return Result{}, rate.hopeless()
			}
			continue
		}
		start := time.Now()
		res, err := p.Exact(ctx, Options{Patience: opts.Patience})
		if err != nil {
			return res, err
		}
		lag := time.Since(start)
		rate.applied(backlog.Rows, lag)
		if err := opts.after(ctx, res.Bytes, lag); err != nil {
			return res, err
		}
		p.cfg.Emit(engine.Event{Kind: engine.EventLag, At: time.Now(), Lag: lag, Rows: res.Rows, Message: fmt.Sprintf("the %s is %s behind", p.cfg.To.Side(), lag.Round(time.Millisecond))})
		if lag <= opts.Until {
			if good++; good >= opts.Stable {
				return res, nil
			}
			continue
		}
		good = 0
		if time.Now().After(deadline) {
			return res, rate.hopeless()
		}
	}
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

// rates compares how fast the application writes with how fast rows are applied.
type rates struct {
	at      time.Time
	pending int64
	done    int64 // since at
	busy    time.Duration
	write   float64 // delta rows per second
	apply   float64
	losing  int // rounds in a row
}

// observe closes a round: what came in is what is there now, less what was there, plus what was
// taken out.
func (r *rates) observe(now time.Time, pending int64) {
	if !r.at.IsZero() {
		if s := now.Sub(r.at).Seconds(); s > 0 {
			r.write = float64(pending-r.pending+r.done) / s
		}
		if r.busy > 0 && r.done > 0 {
			r.apply = float64(r.done) / r.busy.Seconds()
		}
		if r.done > 0 && r.write >= r.apply {
			r.losing++
		} else {
			r.losing = 0
		}
	}
	r.at, r.pending, r.done, r.busy = now, pending, 0, 0
}

func (r *rates) applied(rows int64, took time.Duration) {
	r.done += rows
	r.busy += took
}

func (r *rates) text() string {
	return fmt.Sprintf("the application changes %.0f rows/s, %.0f rows/s are applied", r.write, r.apply)
}

func (r *rates) hopeless() error {
	return &engine.Error{
		Op: "catching up", Err: errors.New("will not converge: " + r.text()),
		Hint: "Slow the writers, raise workers, or wait for a quieter time; then run the same command again.",
	}
}

func (p *Passer) report(r *rates, b Backlog, lag time.Duration) {
	e := engine.Event{
		Kind: engine.EventLag, At: time.Now(), Pending: b.Rows, Lag: lag,
		Message: fmt.Sprintf("%d captured changes are being applied", b.Rows),
	}
	if r.losing >= 3 {
		e.Level, e.Reason = "warn", "will not converge"
		e.Message = "will not converge: " + r.text()
	}
	p.cfg.Emit(e)
}

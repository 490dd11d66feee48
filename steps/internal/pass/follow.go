package pass

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// FollowOptions say how a loop makes its exact passes.
type FollowOptions struct {
	Options
	// Pieces take a backlog of more than their PieceRows before the pass. While they do, To is between two
	// snapshots of From. Nil has it go with one pass, of any size.
	Pieces *DrainOptions
	// Until is how long a pass may take, beside its round trips, that keeps up whatever the rates. Defaults to 1 s.
	Until time.Duration
}

// large says that a backlog is more than one pass should carry.
type large struct{ rows int64 }

func (l *large) Error() string { return fmt.Sprintf("%d captured changes wait", l.rows) }

// Follow makes an exact pass for a loop that may rest between two of them. Where the application writes faster than
// passes apply it says so, from one pass to the next; it fails as Drain does, and only while it takes pieces.
func (p *Passer) Follow(ctx context.Context, opts FollowOptions) (Result, error) {
	if opts.Until == 0 {
		opts.Until = time.Second
	}
	var pieces DrainOptions
	if opts.Pieces != nil {
		pieces = *opts.Pieces
		pieces.fill()
		opts.most = pieces.PieceRows
	}
	for {
		res, err := p.Exact(ctx, opts.Options)
		var more *large
		if !errors.As(err, &more) {
			if res.Trips = p.trips(); err == nil {
				p.keepsUp(res, opts)
			}
			return res, err
		}
		if err := p.ahead(ctx, pieces); err != nil {
			return Result{}, err
		}
		p.paced = nil
	}
}

// ahead takes a backlog in pieces until one pass can carry what is left.
func (p *Passer) ahead(ctx context.Context, opts DrainOptions) error {
	rate := &rates{}
	for {
		waited, err := opts.admitted(ctx)
		if err != nil {
			return err
		}
		rate.paused(waited)
		b, pieces, err := p.round(ctx, opts, rate, false)
		if err != nil || !pieces {
			if rate.told && err == nil {
				p.falls(b.Rows)
			}
			return err
		}
	}
}

// keepsUp looks at the rates after a pass of a loop. Those of other tables say nothing of these.
func (p *Passer) keepsUp(res Result, opts FollowOptions) {
	if ids := slices.Sorted(maps.Keys(p.following())); !slices.Equal(ids, p.paced) {
		p.paced, p.pace = ids, rates{rests: true, alone: opts.Pieces == nil, told: p.pace.told}
	}
	p.pace.observe(time.Now().Add(-res.Took), res.Taken)
	p.pace.applied(res.Taken, res.Took)
	p.pace.lag = res.Took
	switch {
	case res.Took-res.Trips > opts.Until:
		p.judge(&p.pace, Backlog{Rows: res.Taken})
	case p.pace.told:
		p.pace.told = false
		p.falls(res.Taken)
	}
}

// falls takes back that there is too little.
func (p *Passer) falls(rows int64) {
	p.cfg.Emit(engine.Event{Kind: engine.EventNote, At: time.Now(), Pending: rows, Message: "the backlog falls again"})
}

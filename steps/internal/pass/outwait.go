package pass

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// lockTarget locks what the pass writes to. Where somebody is in the way, the pass is given up: waiting in it would keep
// From's snapshot, and nobody would be told. A freeze has its own end, and waits until then.
func (j *job) lockTarget(ctx context.Context) error {
	if !j.opts.outwaits {
		return nil
	}
	names := make([]string, 0, len(j.work))
	for _, w := range j.work {
		names = append(names, relation(w.table))
	}
	if err := pg.LockForWrites(ctx, j.p.to.conn, names); err != nil {
		return fmt.Errorf("applying captured changes on the %s: %w", j.p.cfg.To.Side(), err)
	}
	return nil
}

// outwait waits, without an end, until nobody's lock on To is in a pass's way. The time is nobody's patience.
func (p *Passer) outwait(ctx context.Context, held *pg.HeldError) error {
	start := time.Now()
	defer func() { p.blocked += time.Since(start) }()
	to, err := p.connectTo(ctx)
	if err != nil {
		return err
	}
	return held.Outwait(ctx, to.conn, func(w pg.LockWait) {
		p.cfg.Emit(scope.Waiting(engine.Side(p.cfg.To.Side()), "apply captured changes", w))
	})
}

// outwaited gives for how long passes have been waiting for others' locks on To since it was last asked.
func (p *Passer) outwaited() time.Duration {
	d := p.blocked
	p.blocked = 0
	return d
}

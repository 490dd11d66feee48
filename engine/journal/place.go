package journal

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Timeline gives the timeline on which the run has seen a side when it was opened; 0 is none.
func (r *Run) Timeline(side engine.Side) int64 {
	if side == engine.Source {
		return r.SourceIdentity.Timeline
	}
	return r.TargetIdentity.Timeline
}

// SetTimeline records that a side is trusted on a timeline from now on. Only for the present runner.
func (r *Run) SetTimeline(ctx context.Context, side engine.Side, timeline int64) error {
	column := "target_identity"
	if side == engine.Source {
		column = "source_identity"
	}
	err := r.fenced(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(`UPDATE pgrunbook.run SET %[1]s = pg_catalog.jsonb_set(%[1]s, '{timeline}', pg_catalog.to_jsonb($2::bigint)) WHERE id = $1::text`, column), r.ID, timeline)
		return err
	})
	if err != nil {
		return fmt.Errorf("recording the %s's timeline: %w", side, err)
	}
	return nil
}

// Pin makes the journal's later sessions go through a server that insists on a timeline.
func (r *Run) Pin(target *pg.Server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
}

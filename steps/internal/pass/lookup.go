package pass

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// outlast waits for earlier passes over the same tables whose COMMIT is on its way still, since its answer was lost and nobody could
// look it up: rows are found by their places, and those that they write have none yet.
func (j *job) outlast(ctx context.Context) error {
	side := j.p.cfg.From.Side()
	own, slots := side, []string{side}
	for _, w := range j.work {
		slots = append(slots, j.p.slot(w.table))
	}
	if !j.whole && len(j.work) == 1 {
		own = j.p.slot(j.work[0].table)
	}
	b := &pgx.Batch{}
	b.Queue(takeSlot, own, j.id, j.p.cfg.Run.Epoch)
	b.Queue("SELECT FROM pgrunbook.watermark WHERE from_side = ANY ($1::text[]) ORDER BY from_side FOR UPDATE", slots)
	if err := j.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("waiting for earlier passes on the %s: %w", j.p.cfg.To.Side(), err)
	}
	return nil
}

// committed finds out whether a COMMIT whose answer was lost took place, and makes it durable.
func (p *Passer) committed(ctx context.Context, slot, id string) (bool, error) {
	known, err := p.visible(ctx, slot, id)
	if err == nil && known {
		err = pg.MakeDurable(ctx, p.to.conn) // it waits as long as the COMMIT itself would have
	}
	if err != nil {
		return false, fmt.Errorf("looking up pass %s: %w", id, err)
	}
	return known, nil
}

// visible waits for a COMMIT that still waits for a standby, or is on its way; a plain look would not see it.
func (p *Passer) visible(ctx context.Context, slot, id string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	to, err := p.connectTo(ctx)
	if err != nil {
		return false, err
	}
	defer abandon(ctx, to.conn) // a row that was made by looking must not stay
	tx, err := to.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return false, err
	}
	var found string
	if _, err = tx.Exec(ctx, takeSlot, slot, newPassID(), p.cfg.Run.Epoch); err == nil {
		err = tx.QueryRow(ctx, "SELECT pass::text FROM pgrunbook.watermark WHERE from_side = $1 FOR UPDATE", slot).Scan(&found)
	}
	return found == id || failpoint.Mutant("pass.any_watermark"), err
}

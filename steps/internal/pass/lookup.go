package pass

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

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
	return found == id, err
}

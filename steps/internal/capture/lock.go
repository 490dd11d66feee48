package capture

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// OnWait hears of every attempt at a lock that was lost. nil is allowed.
type OnWait = func(pg.LockWait)

// WithLock runs fn in a transaction of its own under the lock etiquette of internal/pg. fn takes
// the lock itself, by DDL on rel alone; mode is the strongest that it takes.
func WithLock(ctx context.Context, conn *pgx.Conn, rel scope.Name, oid uint32, mode pg.LockMode, onWait OnWait, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return pg.WithLock(ctx, conn, pg.Etiquette{Object: pg.Name(rel.Schema, rel.Name), Relations: []uint32{oid}, Mode: mode, Report: onWait}, fn)
}

// inTx runs fn in a READ COMMITTED transaction; it rolls back also when ctx has ended.
func inTx(ctx context.Context, conn *pgx.Conn, fn func(tx pgx.Tx) error) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	if err := fn(tx); err != nil {
		rollbackCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = tx.Rollback(rollbackCtx) // the cause is err; a lost connection rolls back by itself
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

package pg

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// HeldError says that somebody's lock keeps us from writing to tables.
type HeldError struct {
	Tables []string // as LOCK TABLE takes them
	Err    error
}

// Error names the tables.
func (e *HeldError) Error() string {
	return fmt.Sprintf("locking %s for writes: %v", strings.Join(e.Tables, ", "), e.Err)
}

// Unwrap gives the server's error.
func (e *HeldError) Unwrap() error { return e.Err }

// lockForWrites waits for a moment, and takes partitions with their roots, as writes do. What comes after it waits as
// long as it would without. %d are milliseconds.
const lockForWrites = `
SELECT pg_catalog.set_config('lock_timeout', GREATEST(1, LEAST(%d, pg_catalog.date_part('epoch',
       pg_catalog.current_setting('deadlock_timeout')::pg_catalog.interval) OPERATOR(pg_catalog.*) 600::pg_catalog.float8))::pg_catalog.int8::pg_catalog.text, true);
LOCK TABLE %s IN ROW EXCLUSIVE MODE;
SET LOCAL lock_timeout = 0`

// LockForWrites takes, in the open transaction of a session without a lock_timeout, the locks that writes to the tables
// take, before anything is held elsewhere that must not be held for long. A *HeldError says that somebody is in the way:
// Outwait waits for their end.
func LockForWrites(ctx context.Context, conn *pgx.Conn, tables []string) error {
	if len(tables) == 0 {
		return nil
	}
	_, err := conn.PgConn().Exec(ctx, fmt.Sprintf(lockForWrites, lockTimeout.Milliseconds(), strings.Join(tables, ", "))).ReadAll()
	if state := SQLState(err); state == "55P03" || state == "40P01" {
		return &HeldError{Tables: tables, Err: err}
	}
	return err
}

// treesSQL gives relations with their partitions.
const treesSQL = `
WITH RECURSIVE tree (oid) AS (
  SELECT to_regclass(name)::oid FROM unnest($1::text[]) name
   UNION
  SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid)
SELECT oid FROM tree WHERE oid IS NOT NULL`

// Outwait returns when writes to the tables would not wait for a lock. It has no end but ctx's, holds nothing between two
// attempts or afterwards, and reports each attempt with those who are in the way. conn has no transaction open.
func (e *HeldError) Outwait(ctx context.Context, conn *pgx.Conn, report func(LockWait)) error {
	names := make([]string, len(e.Tables))
	for i, t := range e.Tables {
		names[i] = strings.TrimPrefix(t, "ONLY ")
	}
	rows, err := conn.Query(ctx, treesSQL, names)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", strings.Join(names, ", "), err)
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("looking for %s: %w", strings.Join(names, ", "), err)
	}
	how := Etiquette{Object: strings.Join(names, ", "), Relations: oids, Mode: RowExclusive, GiveUp: time.Duration(math.MaxInt64), Report: report}
	return WithLock(ctx, conn, how, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "LOCK TABLE "+strings.Join(e.Tables, ", ")+" IN ROW EXCLUSIVE MODE"); err != nil {
			return fmt.Errorf("locking for writes: %w", err)
		}
		return nil
	})
}

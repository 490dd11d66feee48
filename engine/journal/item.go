package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Item is one chunk of a table's work. What Lo and Hi mean is the step's affair; nil is open.
type Item struct {
	Table int32 // scope.Table.ID
	No    int32 // from 0, in the order of the ranges
	Lo    *string
	Hi    *string
	Size  int64 // bytes, estimated
}

const countItemsSQL = `SELECT pg_catalog.count(*) FROM pgrunbook.item WHERE run = $1::text AND step = $2::text AND tbl = $3::int`

const addItemsSQL = `
INSERT INTO pgrunbook.item (run, step, tbl, no, lo, hi, size)
SELECT $1::text, $2::text, $3::int, i.no, i.lo, i.hi, i.size
  FROM ROWS FROM (pg_catalog.unnest($4::int[]), pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::bigint[])) AS i (no, lo, hi, size)`

// AddItems stores a table's items, all of one table and all in one call: the first set that is
// committed stands, and later calls change nothing. (Sets made at different times would overlap.) How many
// there are is recorded with the table's state, where it has one: a journal that lost some shows.
// The error of a concurrent call is avoided by a lock that ends with tx.
func (r *Run) AddItems(ctx context.Context, tx pgx.Tx, step engine.StepID, items []Item) error {
	if len(items) == 0 {
		return nil
	}
	table := items[0].Table
	no, lo, hi, size := make([]int32, 0, len(items)), make([]*string, 0, len(items)), make([]*string, 0, len(items)), make([]int64, 0, len(items))
	for _, it := range items {
		if it.Table != table {
			return fmt.Errorf("adding items of step %s: tables %d and %d in one call", step, table, it.Table)
		}
		no, lo, hi, size = append(no, it.No), append(lo, it.Lo), append(hi, it.Hi), append(size, it.Size)
	}
	err := Fence(ctx, tx, r.ID, r.Epoch)
	if err == nil {
		_, err = tx.Exec(ctx, "SELECT pg_catalog.pg_advisory_xact_lock($1::int, pg_catalog.hashtext($2::text))", itemClass, fmt.Sprintf("%s %s %d", r.ID, step, table))
	}
	var have int64
	if err == nil {
		err = tx.QueryRow(ctx, countItemsSQL, r.ID, string(step), table).Scan(&have)
	}
	if err == nil && have == 0 {
		_, err = tx.Exec(ctx, addItemsSQL, r.ID, string(step), table, no, lo, hi, size)
		if err == nil {
			_, err = tx.Exec(ctx, "UPDATE pgrunbook.table_state SET chunks = $3::int WHERE run = $1::text AND tbl = $2::int", r.ID, table, len(items))
		}
	}
	if err != nil {
		return fmt.Errorf("adding items of step %s, table %d: %w", step, table, err)
	}
	return nil
}

// pendingTablesSQL lists tables with work, largest first by what is left.
const pendingTablesSQL = `
SELECT tbl FROM pgrunbook.item WHERE run = $1::text AND step = $2::text AND state = 'pending'
 GROUP BY tbl ORDER BY pg_catalog.sum(size) DESC, tbl`

const claimSQL = `
SELECT tbl, no, lo, hi, size FROM pgrunbook.item
 WHERE run = $1::text AND step = $2::text AND tbl = $3::int AND state = 'pending'
 ORDER BY no LIMIT 1 FOR UPDATE SKIP LOCKED`

// Claim locks one pending item until tx ends, and fences tx. Tables come largest first; worker
// (from 0) says where in that order to begin, two workers to a table, so that a fleet does not
// crowd on one relation. False means that nothing is free: all is done, or in other transactions
// (Progress tells). The caller works and calls Done in this same tx; there is no lease.
func (r *Run) Claim(ctx context.Context, tx pgx.Tx, step engine.StepID, worker int) (Item, bool, error) {
	it, ok, err := r.claim(ctx, tx, step, worker)
	if err != nil {
		return Item{}, false, fmt.Errorf("claiming work of step %s: %w", step, err)
	}
	return it, ok, nil
}

func (r *Run) claim(ctx context.Context, tx pgx.Tx, step engine.StepID, worker int) (Item, bool, error) {
	if err := Fence(ctx, tx, r.ID, r.Epoch); err != nil {
		return Item{}, false, err
	}
	rows, err := tx.Query(ctx, pendingTablesSQL, r.ID, string(step))
	if err != nil {
		return Item{}, false, err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return Item{}, false, err
	}
	const perTable = 2
	for i := range tables {
		table := tables[(worker/perTable+i)%len(tables)]
		it, ok, err := r.claimOf(ctx, tx, step, table)
		if err != nil || ok {
			return it, ok, err
		}
	}
	return Item{}, false, nil
}

// ClaimOf is Claim for one table.
func (r *Run) ClaimOf(ctx context.Context, tx pgx.Tx, step engine.StepID, table int32) (Item, bool, error) {
	err := Fence(ctx, tx, r.ID, r.Epoch)
	var it Item
	var ok bool
	if err == nil {
		it, ok, err = r.claimOf(ctx, tx, step, table)
	}
	if err != nil {
		return Item{}, false, fmt.Errorf("claiming work of step %s, table %d: %w", step, table, err)
	}
	return it, ok, nil
}

func (r *Run) claimOf(ctx context.Context, tx pgx.Tx, step engine.StepID, table int32) (Item, bool, error) {
	var it Item
	err := tx.QueryRow(ctx, claimSQL, r.ID, string(step), table).Scan(&it.Table, &it.No, &it.Lo, &it.Hi, &it.Size)
	if errors.Is(err, pgx.ErrNoRows) {
		return Item{}, false, nil
	}
	return it, err == nil, err
}

const doneSQL = `
UPDATE pgrunbook.item SET state = 'done', rows = $5::bigint, bytes = $6::bigint, ended = pg_catalog.clock_timestamp()
 WHERE run = $1::text AND step = $2::text AND tbl = $3::int AND no = $4::int AND state <> 'done'`

// Done marks a claimed item in the transaction that did its work. Anything but exactly one item
// that was not done is an error: the transaction must then be rolled back.
func (r *Run) Done(ctx context.Context, tx pgx.Tx, step engine.StepID, it Item, rows, bytes int64) error {
	tag, err := tx.Exec(ctx, doneSQL, r.ID, string(step), it.Table, it.No, rows, bytes)
	if err == nil && tag.RowsAffected() != 1 {
		err = errors.New("it is done already, or was taken away")
	}
	if err != nil {
		return fmt.Errorf("marking item %d of table %d in step %s: %w", it.No, it.Table, step, err)
	}
	return nil
}

// IsDone tells after a lost connection whether an item's transaction was committed. It waits for
// one that is in flight, a COMMIT that waits for a standby included.
func (r *Run) IsDone(ctx context.Context, step engine.StepID, it Item) (bool, error) {
	var state string
	err := r.write(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SELECT state FROM pgrunbook.item WHERE run = $1::text AND step = $2::text AND tbl = $3::int AND no = $4::int FOR UPDATE",
			r.ID, string(step), it.Table, it.No).Scan(&state)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for item %d of table %d: %w", it.No, it.Table, err)
	}
	return state == "done", nil
}

// TableProgress is one table's part in a step.
type TableProgress struct {
	Table     int32
	Items     int64 // all
	DoneItems int64
	Rows      int64 // done
	Bytes     int64 // done, as counted
	Size      int64 // all, estimated bytes
	DoneSize  int64 // done, estimated bytes
}

// Progress sums a step's items by table.
func (r *Run) Progress(ctx context.Context, step engine.StepID) ([]TableProgress, error) {
	var out []TableProgress
	err := r.do(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
SELECT tbl, pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE state = 'done'), pg_catalog.sum(rows)::bigint, pg_catalog.sum(bytes)::bigint,
       pg_catalog.sum(size)::bigint, COALESCE(pg_catalog.sum(size) FILTER (WHERE state = 'done'), 0)::bigint
  FROM pgrunbook.item WHERE run = $1::text AND step = $2::text GROUP BY tbl ORDER BY tbl`, r.ID, string(step))
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, pgx.RowToStructByPos[TableProgress])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the progress of step %s: %w", step, err)
	}
	return out, nil
}

package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// LoadState says how far a table's load is.
type LoadState string

// The states of a table. Passes touch only following ones.
const (
	Loading   LoadState = "loading"
	Scrubbed  LoadState = "scrubbed"
	Following LoadState = "following"
)

// TableState is what the journal knows of one table.
type TableState struct {
	Table      int32 // scope.Table.ID
	State      LoadState
	Generation int              // of the load; a table that starts over gets the next one
	Filenodes  map[string]int64 // relation to pg_relation_filenode on the source, as the load began
	Chunks     int              // that the load was cut into; 0 is none yet, or not recorded
}

const tableStateSQL = `SELECT tbl, state, generation, filenodes::text, chunks FROM pgrunbook.table_state WHERE run = $1::text`

func scanTableState(row pgx.CollectableRow) (TableState, error) {
	var t TableState
	var nodes string
	if err := row.Scan(&t.Table, &t.State, &t.Generation, &nodes, &t.Chunks); err != nil {
		return t, err
	}
	return t, json.Unmarshal([]byte(nodes), &t.Filenodes)
}

// TableStates reads every table that has a state, by ID. In a transaction their rows are locked
// FOR SHARE: nobody sets a table back to loading before it ends.
func (r *Run) TableStates(ctx context.Context, tx pgx.Tx) (map[int32]TableState, error) {
	list, err := r.tableStates(ctx, tx, "")
	if err != nil {
		return nil, fmt.Errorf("reading the tables' states: %w", err)
	}
	out := make(map[int32]TableState, len(list))
	for _, t := range list {
		out[t.Table] = t
	}
	return out, nil
}

// TableState reads one table, as TableStates does; false means that its load has not begun.
func (r *Run) TableState(ctx context.Context, tx pgx.Tx, table int32) (TableState, bool, error) {
	list, err := r.tableStates(ctx, tx, " AND tbl = $2::int", table)
	if err != nil {
		return TableState{}, false, fmt.Errorf("reading the state of table %d: %w", table, err)
	}
	if len(list) == 0 {
		return TableState{Table: table}, false, nil
	}
	return list[0], true, nil
}

func (r *Run) tableStates(ctx context.Context, tx pgx.Tx, where string, args ...any) (list []TableState, err error) {
	read := func(q querier, lock string) error {
		rows, err := q.Query(ctx, tableStateSQL+where+lock, append([]any{r.ID}, args...)...)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, scanTableState)
		return err
	}
	if tx != nil {
		return list, read(tx, " FOR SHARE")
	}
	err = r.do(ctx, func(conn *pgx.Conn) error { return read(conn, "") })
	return list, err
}

// setTableStateSQL never goes back within a generation, nor to an older generation.
const setTableStateSQL = `
INSERT INTO pgrunbook.table_state AS t (run, tbl, state, generation, filenodes)
VALUES ($1::text, $2::int, $3::text, $4::int, $5::jsonb)
ON CONFLICT (run, tbl) DO UPDATE SET state = excluded.state, generation = excluded.generation, filenodes = excluded.filenodes
 WHERE (t.generation, pg_catalog.array_position(ARRAY['loading', 'scrubbed', 'following'], t.state))
    <= (excluded.generation, pg_catalog.array_position(ARRAY['loading', 'scrubbed', 'following'], excluded.state))`

// SetTableState records a table's state. Setting the same again is harmless; going back is an
// error, Reset does that. With a nil tx it commits on its own. It fences.
func (r *Run) SetTableState(ctx context.Context, tx pgx.Tx, table int32, state LoadState, generation int, filenodes map[string]int64) error {
	if filenodes == nil {
		filenodes = map[string]int64{}
	}
	nodes, err := json.Marshal(filenodes)
	if err != nil {
		return fmt.Errorf("recording that table %d is %s: %w", table, state, err)
	}
	set := func(tx pgx.Tx) error {
		if err := Fence(ctx, tx, r.ID, r.Epoch); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, setTableStateSQL, r.ID, table, string(state), generation, string(nodes))
		if err == nil && tag.RowsAffected() != 1 {
			err = errors.New("it is further already")
		}
		return err
	}
	if tx != nil {
		err = set(tx)
	} else {
		err = r.write(ctx, set)
	}
	if err != nil {
		return fmt.Errorf("recording that table %d is %s: %w", table, state, err)
	}
	return nil
}

// Reset lets a table's load start over: its items are removed, which waits for those in flight,
// and its state is loading in the next generation, which is returned. The caller empties the table
// on the target in the same transaction and adds new items.
func (r *Run) Reset(ctx context.Context, tx pgx.Tx, table int32) (generation int, err error) {
	err = Fence(ctx, tx, r.ID, r.Epoch)
	if err == nil {
		err = tx.QueryRow(ctx, `INSERT INTO pgrunbook.table_state AS t (run, tbl, state, generation) VALUES ($1::text, $2::int, 'loading', 1)
			ON CONFLICT (run, tbl) DO UPDATE SET state = 'loading', generation = t.generation + 1, filenodes = '{}', chunks = 0
			RETURNING generation`, r.ID, table).Scan(&generation)
	}
	if err == nil {
		_, err = tx.Exec(ctx, "DELETE FROM pgrunbook.item WHERE run = $1::text AND tbl = $2::int", r.ID, table)
	}
	if err != nil {
		return 0, fmt.Errorf("setting table %d back: %w", table, err)
	}
	return generation, nil
}

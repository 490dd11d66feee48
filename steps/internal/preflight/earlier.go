package preflight

import (
	"context"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
)

// leftBehindSQL says which run's objects a source holds, and what finish leaves there: the gate
// without capture. The catalogs are read, since the role that plans may have no right on the schema.
const leftBehindSQL = `
SELECT coalesce(obj_description(n.oid, 'pg_namespace'), ''),
       NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p'))
       AND EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'gate_flag'), current_database()::text
  FROM pg_namespace n WHERE n.nspname = 'pgrunbook'`

// earlierRun finds what a run left on the source that the target knows nothing of. It comes before
// the look at the target's tables, whose advice would be to drop what is the live database now.
func earlierRun(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if ours, err := f.runGoesOn(ctx); err != nil || ours {
		return nil, err
	}
	rows, err := f.From.conn.Query(ctx, leftBehindSQL)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	if !rows.Next() {
		return nil, rows.Err()
	}
	var remark, database string
	var finished bool
	if err := rows.Scan(&remark, &finished, &database); err != nil {
		return nil, err
	}
	if !finished {
		return one(finding(engine.SeverityError, engine.Source, "pgrunbook", "Finish or abort that run with its own target; if that is gone: pgrunbook abort --without-target.",
			"Schema pgrunbook is there (%q), and this target has no journal of that run.", remark)), nil
	}
	f.moved = true
	return one(finding(engine.SeverityError, engine.Source, "pgrunbook",
		fmt.Sprintf("Nothing, if that migration stands. Only if this source shall take writes again: BEGIN READ WRITE; DROP SCHEMA pgrunbook CASCADE; ALTER DATABASE %s RESET default_transaction_read_only; COMMIT", ident(database)),
		"A finished run (%q) moved this database away and left its gate here, closed.", remark)), nil
}

// runGoesOn reports whether the target's journal has a run that is neither finished nor aborted.
// To a role that may not read the journal any journal is one.
func (f *Facts) runGoesOn(ctx context.Context) (bool, error) {
	var there, readable, active bool
	err := f.To.conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_or(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')), false)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'pgrunbook' AND c.relname = 'run'`).Scan(&there, &readable)
	if err != nil || !there || !readable {
		return there, err
	}
	err = f.To.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pgrunbook.run WHERE state = 'active')").Scan(&active)
	return active, err
}

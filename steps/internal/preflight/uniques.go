package preflight

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// uniquesSQL gives the unique indexes and exclusion constraints of tables. Columns are NULL where they alone do
// not say what is refused; new columns of pg_index come as NULL from servers without them.
const uniquesSQL = `
SELECT n.nspname::text AS schema, c.relname::text AS table, x.relname::text AS index, coalesce(con.conname::text, '') AS constraint,
       CASE WHEN i.indpred IS NULL AND i.indexprs IS NULL AND NOT i.indisexclusion AND NOT coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false) THEN
         ARRAY(SELECT a.attname::text FROM generate_series(0, coalesce((to_jsonb(i) ->> 'indnkeyatts')::int, i.indnatts) - 1) k (n)
                 JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n] ORDER BY 1) END AS columns,
       regexp_replace(pg_get_indexdef(i.indexrelid), '^.*? USING ', '') AS def
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_class x ON x.oid = i.indexrelid
  LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u', 'x')
 WHERE c.oid = ANY ($1::oid[]) AND (i.indisunique OR i.indisexclusion) ORDER BY 1, 2, 3`

type unique struct {
	Schema, Table, Index, Constraint string
	Columns                          []string
	Def                              string
}

// covered reports whether rows that one of the source's indexes lets in are let in by u as well.
func (u unique) covered(source []unique) bool {
	return slices.ContainsFunc(source, func(s unique) bool {
		if s.Schema != u.Schema || s.Table != u.Table {
			return false
		}
		fewer := len(s.Columns) > 0 && len(u.Columns) > 0 && !slices.ContainsFunc(s.Columns, func(c string) bool { return !slices.Contains(u.Columns, c) })
		return fewer || s.Def == u.Def
	})
}

func (u unique) drop() string {
	if u.Constraint != "" {
		return fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s;", pg.Name(u.Schema, u.Table), ident(u.Constraint))
	}
	return fmt.Sprintf("DROP INDEX %s;", pg.Name(u.Schema, u.Index))
}

// stricterKeys: a key that only the target has refuses rows that the source lets in. The load and the passes
// stop at the first one; whether there will be one, nobody can say before.
func stricterKeys(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if f.moved {
		return nil, nil // the application has gone on there
	}
	tables, err := f.existingTables(ctx, withRows)
	if err != nil || len(tables) == 0 {
		return nil, err
	}
	source, err := uniques(ctx, f.From.conn, f.relationsOf(withRows, true))
	if err != nil {
		return nil, err
	}
	target, err := uniques(ctx, f.To.conn, tables)
	if err != nil {
		return nil, err
	}
	var out []engine.Finding
	for _, u := range target {
		if u.covered(source) {
			continue
		}
		out = append(out, finding(engine.SeverityWarning, engine.Target, pg.Name(u.Schema, u.Index), u.drop()+" -- or make the same key on the source first: that shows whether its rows allow it",
			"The target's %s has a key that the source's has not: the load stops at a row that it refuses.", pg.Display(u.Schema, u.Table)))
	}
	return out, nil
}

func uniques(ctx context.Context, conn *pgx.Conn, tables []uint32) ([]unique, error) {
	rows, err := conn.Query(ctx, uniquesSQL, tables)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[unique])
}

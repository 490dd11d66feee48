package dump

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Matview is a materialized view that is populated on the source.
type Matview struct {
	scope.Name
	Bytes int64
}

// SQL refreshes it.
func (m Matview) SQL() string { return "REFRESH MATERIALIZED VIEW " + pg.Name(m.Schema, m.Name.Name) }

// edgesSQL gives what views read: a view's rule depends on each relation in its query.
const edgesSQL = `
SELECT DISTINCT r.ev_class, d.refobjid
  FROM pg_rewrite r
  JOIN pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class
  JOIN pg_class c ON c.oid = d.refobjid AND c.relkind IN ('v', 'm')
 WHERE r.rulename = '_RETURN'`

// Matviews lists the populated materialized views of the source in an order in which they can be
// refreshed: what one reads, directly or through views, comes before it. They are restored empty
// and refreshed after the final pass. One that is not populated on the source stays so.
func Matviews(ctx context.Context, conn *pgx.Conn, s *scope.Scope) ([]Matview, error) {
	gone, _, err := dependents(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	reads := map[uint32][]uint32{}
	rows, err := conn.Query(ctx, edgesSQL)
	if err != nil {
		return nil, fmt.Errorf("reading what materialized views need: %w", err)
	}
	var view, read uint32
	if _, err = pgx.ForEachRow(rows, []any{&view, &read}, func() error {
		reads[view] = append(reads[view], read)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading what materialized views need: %w", err)
	}
	rows, err = conn.Query(ctx, `SELECT c.oid, n.nspname::text, c.relname::text, pg_total_relation_size(c.oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'm' AND c.relispopulated AND `+mine+` ORDER BY c.oid`)
	if err != nil {
		return nil, fmt.Errorf("reading materialized views: %w", err)
	}
	all := map[uint32]Matview{}
	var order []uint32
	var oid uint32
	var m Matview
	if _, err = pgx.ForEachRow(rows, []any{&oid, &m.Schema, &m.Name.Name, &m.Bytes}, func() error {
		if !gone[objectID{classRelation, oid}] {
			all[oid], order = m, append(order, oid)
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading materialized views: %w", err)
	}
	var out []Matview
	seen := map[uint32]bool{}
	var visit func(uint32)
	visit = func(oid uint32) {
		if seen[oid] {
			return
		}
		seen[oid] = true
		for _, r := range reads[oid] {
			visit(r)
		}
		if m, ok := all[oid]; ok {
			out = append(out, m)
		}
	}
	for _, oid := range order {
		visit(oid)
	}
	return out, nil
}

package preflight

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What the schema phase does not make is somebody else's: the role that applies gates it, loads it and
// sets its sequences.

const namedSQL = `
SELECT c.oid FROM unnest($1::text[], $2::text[]) AS x (nsp, rel)
  JOIN pg_namespace n ON n.nspname = x.nsp JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.rel`

// onTarget gives the oids there of what has these names.
func (f *Facts) onTarget(ctx context.Context, names []scope.Name) ([]uint32, error) {
	var schemas, relations []string
	for _, n := range names {
		schemas, relations = append(schemas, n.Schema), append(relations, n.Name)
	}
	rows, err := f.To.conn.Query(ctx, namedSQL, schemas, relations)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uint32])
}

func (f *Facts) existing() bool {
	return f.Runbook.Schema.Mode == "existing" || !f.Runbook.Schema.Enabled
}

func existingTableRights(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if !f.existing() {
		return nil, nil
	}
	var names []scope.Name
	for i := range f.Scope.Tables {
		t := &f.Scope.Tables[i]
		names = append(names, t.Name)
		for _, m := range t.Members {
			if !m.Foreign {
				names = append(names, m.Name)
			}
		}
	}
	tables, err := f.onTarget(ctx, names)
	if err != nil {
		return nil, err
	}
	return tableRights(ctx, &f.To, tables)
}

// existingSequenceRights: ALTER SEQUENCE ... RESTART is its owner's
// (https://www.postgresql.org/docs/current/sql-altersequence.html).
func existingSequenceRights(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	s := &f.To
	if !f.existing() || !s.RoleKnown || s.Super || !f.Runbook.Cutover.Enabled {
		return nil, nil // without a cutover they are not set
	}
	var names []scope.Name
	for _, q := range f.Scope.Sequences {
		names = append(names, q.Name)
	}
	sequences, err := f.onTarget(ctx, names)
	if err != nil {
		return nil, err
	}
	rows, err := s.conn.Query(ctx, `SELECT n.nspname || '.' || c.relname, pg_get_userbyid(c.relowner)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY ($1::oid[]) AND NOT pg_has_role($2::name, c.relowner, 'USAGE') ORDER BY 1`, sequences, s.Role)
	if err != nil {
		return nil, err
	}
	var name, owner string
	var setting rights
	_, err = pgx.ForEachRow(rows, []any{&name, &owner}, func() error {
		setting.lacks(fmt.Sprintf("GRANT %s TO %s;", ident(owner), ident(s.Role)), name)
		return nil
	})
	return setting.findings(engine.Target, s.Role, "the owner's right to set sequences"), err
}

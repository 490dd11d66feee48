package preflight

import (
	"context"

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
	tables, err := f.existingTables(ctx, everyTable)
	if err != nil {
		return nil, err
	}
	return tableRights(ctx, &f.To, tables)
}

// existingTables gives the oids on the target of the tables in scope that are wanted, with their members.
func (f *Facts) existingTables(ctx context.Context, wanted func(*scope.Table) bool) ([]uint32, error) {
	var names []scope.Name
	for i := range f.Scope.Tables {
		t := &f.Scope.Tables[i]
		if !wanted(t) {
			continue
		}
		names = append(names, t.Name)
		for _, m := range t.Members {
			if !m.Foreign {
				names = append(names, m.Name)
			}
		}
	}
	return f.onTarget(ctx, names)
}

// targetRowSecurity: where policies hold for the role that loads, COPY and the passes are refused. In a
// restore the policies come after the rows, and the role is by then a member of the owners: only those that
// are forced hold for it.
func targetRowSecurity(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	s := &f.To
	if !s.RoleKnown || s.Super || s.BypassRLS {
		return nil, nil
	}
	var filtered []string
	var err error
	if f.existing() {
		var tables []uint32
		if tables, err = f.existingTables(ctx, withRows); err == nil {
			filtered, err = s.list(ctx, filteredSQL, tables, s.Role)
		}
	} else {
		filtered, err = f.From.list(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY ($1::oid[]) AND c.relrowsecurity AND c.relforcerowsecurity ORDER BY 1`, f.relationsOf(withRows, true))
	}
	if err != nil || len(filtered) == 0 {
		return nil, err
	}
	owner := "as the owner of each table, on the target"
	if !f.existing() {
		owner = "as the owner of each table, on the source, before the structure is carried"
	}
	return one(finding(engine.SeverityError, engine.Target, filtered[0], bypass(s.Role, owner, filtered[0]),
		"Row-level security would keep %s from loading and following tables: %s.", s.Role, some(filtered))), nil
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
	rows, err := s.conn.Query(ctx, `SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), pg_get_userbyid(c.relowner)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY ($1::oid[]) AND NOT pg_has_role($2::name, c.relowner, 'USAGE') ORDER BY 1`, sequences, s.Role)
	if err != nil {
		return nil, err
	}
	var name, owner string
	var setting rights
	_, err = pgx.ForEachRow(rows, []any{&name, &owner}, func() error {
		setting.lacks(s.join(owner), name)
		return nil
	})
	return setting.findings(engine.Target, s.Role, "the owner's right to set sequences"), err
}

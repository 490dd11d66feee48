package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

func roleExists(s *Side) []engine.Finding {
	if s.RoleKnown {
		return nil
	}
	return one(finding(engine.SeverityError, s.Name, s.Role, fmt.Sprintf("CREATE ROLE %s LOGIN; or correct apply_role.", ident(s.Role)), "The role %s that shall apply does not exist.", s.Role))
}

func sourceRole(_ context.Context, f *Facts) ([]engine.Finding, error) {
	return roleExists(&f.From), nil
}

// canCreate checks for our own schema: in place already, or CREATE on the database.
func canCreate(ctx context.Context, s *Side) ([]engine.Finding, error) {
	if !s.RoleKnown || s.Super {
		return nil, nil
	}
	var may bool
	err := s.conn.QueryRow(ctx, "SELECT has_database_privilege($1::name, current_database(), 'CREATE')", s.Role).Scan(&may)
	if err != nil || may {
		return nil, err
	}
	return one(finding(engine.SeverityError, s.Name, s.Identity.Database, fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s;", ident(s.Identity.Database), ident(s.Role)),
		"The role %s may not create our schema in this database.", s.Role)), nil
}

func sourceCreate(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	return canCreate(ctx, &f.From)
}

// tableRightsSQL asks for what each phase does: CREATE TRIGGER and ENABLE ALWAYS TRIGGER (which
// only an owner may, https://www.postgresql.org/docs/current/sql-altertable.html), reading, and writing. Of a
// table that is dropped meanwhile the functions say NULL: nothing is lacking there.
const tableRightsSQL = `
SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text,
       pg_has_role($2::name, c.relowner, 'USAGE'), coalesce(has_table_privilege($2::name, c.oid, 'TRIGGER'), true), coalesce(has_table_privilege($2::name, c.oid, 'SELECT'), true),
       coalesce(has_table_privilege($2::name, c.oid, 'INSERT') AND has_table_privilege($2::name, c.oid, 'UPDATE')
           AND has_table_privilege($2::name, c.oid, 'DELETE') AND has_table_privilege($2::name, c.oid, 'TRUNCATE'), true),
       coalesce(has_schema_privilege($2::name, n.oid, 'USAGE'), true)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY ($1::oid[]) ORDER BY 1, 2`

// rights collects what a role lacks, so that ten thousand tables make a few findings.
type rights struct {
	objects map[string][]string // by the statement that mends it
	order   []string
}

func (r *rights) lacks(statement, object string) {
	if r.objects == nil {
		r.objects = map[string][]string{}
	}
	if r.objects[statement] == nil {
		r.order = append(r.order, statement)
	}
	r.objects[statement] = append(r.objects[statement], object)
}

func (r *rights) findings(side engine.Side, role, what string) []engine.Finding {
	var out []engine.Finding
	for _, statement := range r.order {
		objects := r.objects[statement]
		out = append(out, finding(engine.SeverityError, side, objects[0], statement, "The role %s lacks %s: %s.", role, what, some(objects)))
	}
	return out
}

// some names up to ten.
func some(names []string) string {
	const most = 10
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

func sourceTables(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	return tableRights(ctx, &f.From, f.relations(true))
}

// tableRights finds what the role that applies lacks on a side's tables. On the target, where it loads
// them, it must also write; an owner may, unless that was revoked.
func tableRights(ctx context.Context, s *Side, tables []uint32) ([]engine.Finding, error) {
	if !s.RoleKnown || s.Super {
		return nil, nil
	}
	rows, err := s.conn.Query(ctx, tableRightsSQL, tables, s.Role)
	if err != nil {
		return nil, err
	}
	var schema, table, owner string
	var owns, triggers, reads, writes, uses bool
	var ownership, triggering, reading, writing, usage rights
	_, err = pgx.ForEachRow(rows, []any{&schema, &table, &owner, &owns, &triggers, &reads, &writes, &uses}, func() error {
		name := pg.Display(schema, table)
		if !uses {
			usage.lacks(fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s;", ident(schema), ident(s.Role)), schema)
		}
		if !owns {
			ownership.lacks(s.join(owner), name)
		} else if !triggers { // its owner has taken it from himself
			triggering.lacks(fmt.Sprintf("GRANT TRIGGER ON ALL TABLES IN SCHEMA %s TO %s;", ident(schema), ident(s.Role)), name)
		}
		if !reads {
			reading.lacks(fmt.Sprintf("GRANT SELECT ON ALL TABLES IN SCHEMA %s TO %s;", ident(schema), ident(s.Role)), name)
		}
		if !writes && s.Name == engine.Target {
			writing.lacks(fmt.Sprintf("GRANT INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA %s TO %s;", ident(schema), ident(s.Role)), name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return slices.Concat(usage.findings(s.Name, s.Role, "USAGE on a schema"),
		ownership.findings(s.Name, s.Role, "the owner's right to enable triggers ALWAYS on tables"),
		triggering.findings(s.Name, s.Role, "TRIGGER on tables"),
		reading.findings(s.Name, s.Role, "SELECT on tables"),
		writing.findings(s.Name, s.Role, "INSERT, UPDATE, DELETE or TRUNCATE on tables")), nil
}

func sourceSequences(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	s := &f.From
	if !s.RoleKnown || s.Super {
		return nil, nil
	}
	var oids []uint32
	for _, q := range f.Scope.Sequences {
		oids = append(oids, q.OID)
	}
	// CASE: the planner may ask for the right first, which fails for what is no sequence.
	rows, err := s.conn.Query(ctx, `SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY ($1::oid[]) AND CASE c.relkind WHEN 'S' THEN NOT coalesce(has_sequence_privilege($2::name, c.oid, 'SELECT'), true) ELSE false END ORDER BY 1, 2`, oids, s.Role)
	if err != nil {
		return nil, err
	}
	var schema, name string
	var reading rights
	_, err = pgx.ForEachRow(rows, []any{&schema, &name}, func() error {
		reading.lacks(fmt.Sprintf("GRANT SELECT ON ALL SEQUENCES IN SCHEMA %s TO %s;", ident(schema), ident(s.Role)), pg.Display(schema, name))
		return nil
	})
	if err != nil {
		return nil, err
	}
	setting, err := sequencesBack(ctx, f, oids)
	return append(reading.findings(engine.Source, s.Role, "SELECT on sequences"), setting...), err
}

// sequencesBack: a rollback sets the source's sequences, which only an owner may.
func sequencesBack(ctx context.Context, f *Facts, oids []uint32) ([]engine.Finding, error) {
	s := &f.From
	if !f.Runbook.Rollback.Enabled || !f.Runbook.Cutover.Enabled {
		return nil, nil
	}
	rows, err := s.conn.Query(ctx, `SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY ($1::oid[]) AND NOT pg_has_role($2::name, c.relowner, 'USAGE') ORDER BY 1, 2`, oids, s.Role)
	if err != nil {
		return nil, err
	}
	var schema, name, owner string
	var setting rights
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &owner}, func() error {
		setting.lacks(s.join(owner), pg.Display(schema, name))
		return nil
	})
	return setting.findings(engine.Source, s.Role, "the owner's right to set sequences, for the way back"), err
}

// rowSecurity: under row_security = off a filtered table is an error, and without it rows would be
// missing in silence.
func rowSecurity(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	s := &f.From
	if !s.RoleKnown || s.Super || s.BypassRLS {
		return nil, nil
	}
	filtered, err := s.list(ctx, filteredSQL, f.relationsOf(withRows, true), s.Role)
	if err != nil || len(filtered) == 0 {
		return nil, err
	}
	return one(finding(engine.SeverityError, engine.Source, filtered[0], bypass(s.Role, "as the owner of each table, if the role is a member of it", filtered[0]),
		"Row-level security would hide rows from %s: %s.", s.Role, some(filtered))), nil
}

// bypass says what lets a role past the policies of tables. A policy that admits it would not: our sessions have
// row_security off, which turns any policy that holds for them into an error.
func bypass(role, owner, table string) string {
	return fmt.Sprintf("ALTER ROLE %s BYPASSRLS; -- or, %s: ALTER TABLE %s NO FORCE ROW LEVEL SECURITY;", ident(role), owner, table)
}

// filteredSQL names the tables whose policies hold for a role. An owner passes them, unless they are
// forced (https://www.postgresql.org/docs/current/ddl-rowsecurity.html).
const filteredSQL = `
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY ($1::oid[]) AND c.relrowsecurity AND (c.relforcerowsecurity OR NOT pg_has_role($2::name, c.relowner, 'USAGE')) ORDER BY 1`

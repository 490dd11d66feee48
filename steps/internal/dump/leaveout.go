package dump

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// objectID names an object of one database.
type objectID struct{ class, oid uint32 }

// Left is an object that is not carried, because something that it needs is excluded or temporary, or the run is
// what uses it.
type Left struct {
	Class, OID uint32
	Text       string // "view erp.report", as pg_describe_object says it
	Helper     bool   // it is the run's own replica_role_function
	Temporary  bool   // it needs something temporary, and is dropped with that when the session ends
}

// goneSQL walks pg_depend from the excluded relations, schemas and functions, and from the schemas of temporary
// objects. A rule takes its view along, a column default takes nothing along. What each is, is looked up class by
// class: joined with all classes, it took a server longer to plan than to answer.
const goneSQL = `
WITH RECURSIVE start (classid, objid, temporary) AS (
  SELECT 'pg_catalog.pg_class'::regclass::oid, c.oid, false
    FROM unnest($1::text[], $2::text[]) AS x (nsp, rel)
    JOIN pg_namespace n ON n.nspname::text = x.nsp
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname::text = x.rel
  UNION ALL
  SELECT 'pg_catalog.pg_namespace'::regclass::oid, n.oid, n.nspname ~ '^pg_temp_' FROM pg_namespace n WHERE n.nspname::text = ANY ($3::text[]) OR n.nspname ~ '^pg_temp_'
  UNION ALL
  SELECT 'pg_catalog.pg_proc'::regclass::oid, p.oid, false
    FROM unnest($4::text[], $5::text[]) AS x (nsp, fn)
    JOIN pg_namespace n ON n.nspname::text = x.nsp
    JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname::text = x.fn AND p.pronargs = 1
), reached (classid, objid, temporary) AS (
  SELECT classid, objid, temporary FROM start
  UNION
  SELECT n.classid, n.objid, g.temporary
    FROM reached g
    CROSS JOIN LATERAL (
      SELECT d.classid, d.objid FROM pg_depend d
       WHERE d.refclassid = g.classid AND d.refobjid = g.objid AND d.deptype <> 'e' AND d.classid <> 'pg_catalog.pg_extension'::regclass
      UNION ALL
      SELECT 'pg_catalog.pg_class'::regclass::oid, r.ev_class FROM pg_rewrite r
       WHERE g.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = g.objid AND r.rulename = '_RETURN'
    ) n
), gone AS (
  SELECT classid, objid, bool_and(temporary) AS temporary FROM reached GROUP BY classid, objid
)
SELECT g.classid, g.objid, CASE WHEN told OR helper THEN coalesce(pg_describe_object(g.classid, g.objid, 0), '') ELSE '' END, -- what is temporary may be gone by now
       coalesce(n.nspname::text, ''), coalesce(o.rel, ''), told, helper, g.temporary
  FROM gone g
  LEFT JOIN LATERAL (
    SELECT c.relnamespace, c.relname::text, NULL::oid, c.relkind IN ('v', 'm', 'r', 'p', 'f') FROM pg_class c WHERE g.classid = 'pg_catalog.pg_class'::regclass AND c.oid = g.objid
    UNION ALL
    SELECT p.pronamespace, NULL, NULL, true FROM pg_proc p WHERE g.classid = 'pg_catalog.pg_proc'::regclass AND p.oid = g.objid
    UNION ALL
    SELECT t.typnamespace, NULL, NULL, true FROM pg_type t WHERE g.classid = 'pg_catalog.pg_type'::regclass AND t.oid = g.objid AND t.typtype IN ('d', 'r')
    UNION ALL
    SELECT h.relnamespace, NULL, h.oid, k.contype = 'f'
      FROM pg_constraint k LEFT JOIN pg_class h ON h.oid = k.conrelid WHERE g.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = g.objid
    UNION ALL
    SELECT h.relnamespace, NULL, h.oid, NOT t.tgisinternal AND f.pronamespace::regnamespace::text <> 'pgrunbook'
      FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_class h ON h.oid = t.tgrelid WHERE g.classid = 'pg_catalog.pg_trigger'::regclass AND t.oid = g.objid
    UNION ALL
    SELECT h.relnamespace, NULL, h.oid, true FROM pg_policy l JOIN pg_class h ON h.oid = l.polrelid WHERE g.classid = 'pg_catalog.pg_policy'::regclass AND l.oid = g.objid
  ) o (nsp, rel, host, tell) ON true
  LEFT JOIN pg_namespace n ON n.oid = o.nsp
  LEFT JOIN start s ON s.classid = g.classid AND s.objid = g.objid
  CROSS JOIN LATERAL (
    SELECT coalesce(o.tell, false) AND s.objid IS NULL AND NOT EXISTS (
             SELECT FROM start x WHERE x.classid = 'pg_catalog.pg_namespace'::regclass AND x.objid = o.nsp OR x.classid = 'pg_catalog.pg_class'::regclass AND x.objid = o.host) AS told,
           g.classid = 'pg_catalog.pg_proc'::regclass AND s.objid IS NOT NULL AS helper) is_`

// leaveOut drops from the archive's lists what depends on something excluded, and names it.
// A table in scope that needs an excluded object cannot be left out: that is an error.
func (a *Archive) leaveOut(ctx context.Context, conn *pgx.Conn, s *scope.Scope) error {
	gone, left, err := dependents(ctx, conn, s)
	if err != nil {
		return err
	}
	a.Left = left
	ids := map[int]bool{}
	a.Pre = without(a.Pre, gone, ids)
	a.Post = without(a.Post, gone, ids)
	return nil
}

// NotCarried gives one sentence for each object that an exclusion drags along.
func NotCarried(ctx context.Context, conn *pgx.Conn, s *scope.Scope) ([]string, error) {
	_, left, err := dependents(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range left {
		out = append(out, l.sentence())
	}
	return out, nil
}

// Temporary gives one sentence for each object that is left out because a session drops it when it ends, with the
// temporary object that it needs.
func Temporary(ctx context.Context, conn *pgx.Conn, s *scope.Scope) ([]string, error) {
	_, left, err := dependents(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range left {
		if l.Temporary {
			out = append(out, l.sentence())
		}
	}
	return out, nil
}

func (l Left) sentence() string {
	why := "it needs an excluded table or schema"
	switch {
	case l.Helper:
		why = "this run uses it (replica_role_function), on each side the one that is there"
	case l.Temporary:
		why = "it needs something temporary, and is dropped with that when the session ends"
	}
	return l.Text + " is not carried: " + why
}

// temporarySQL names what is temporary among what an object needs.
const temporarySQL = `
SELECT coalesce(string_agg(DISTINCT what, ', '), 'something temporary')
  FROM pg_depend d CROSS JOIN LATERAL pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) what WHERE d.classid = $1 AND d.objid = $2 AND what ~ '\mpg_temp_[0-9]+\.'`

// inScope refuses a table that cannot be left out.
func inScope(ctx context.Context, conn *pgx.Conn, l Left) error {
	if !l.Temporary {
		return &engine.Error{
			Op: "leaving out excluded tables", Object: l.Text, Err: fmt.Errorf("it is in scope and its definition needs an excluded table or schema"),
			Hint: "Exclude this table as well, or take the exclusion back.",
		}
	}
	var what string
	if err := conn.QueryRow(ctx, temporarySQL, l.Class, l.OID).Scan(&what); err != nil {
		return fmt.Errorf("finding what %s needs: %w", l.Text, err)
	}
	return &engine.Error{
		Op: "reading the definition of", Object: l.Text, Err: fmt.Errorf("it is in scope and needs %s, which the session that made it drops when it ends", what),
		Hint: "Drop what needs it (ALTER TABLE ... DROP COLUMN ..., or the table), or end that session, then run the same command again.",
	}
}

func dependents(ctx context.Context, conn *pgx.Conn, s *scope.Scope) (map[objectID]bool, []Left, error) {
	var schemas, tables []string
	for _, t := range s.ExcludedTables {
		schemas, tables = append(schemas, t.Schema), append(tables, t.Name)
	}
	var helperSchemas, helpers []string
	for _, f := range s.Helpers {
		helperSchemas, helpers = append(helperSchemas, f.Schema), append(helpers, f.Name)
	}
	rows, err := conn.Query(ctx, goneSQL, schemas, tables, append([]string{ownSchema}, s.ExcludedSchemas...), helperSchemas, helpers)
	if err != nil {
		return nil, nil, fmt.Errorf("finding what depends on excluded tables: %w", err)
	}
	carried := map[scope.Name]bool{}
	for i := range s.Tables {
		carried[s.Tables[i].Name] = true
	}
	gone := map[objectID]bool{}
	var left []Left
	var l Left
	var rel scope.Name
	var tell bool
	var kept *Left
	_, err = pgx.ForEachRow(rows, []any{&l.Class, &l.OID, &l.Text, &rel.Schema, &rel.Name, &tell, &l.Helper, &l.Temporary}, func() error {
		gone[objectID{l.Class, l.OID}] = true
		if one := l; carried[rel] && kept == nil {
			kept = &one
		}
		if (tell || l.Helper) && rel.Schema != ownSchema {
			left = append(left, l)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("finding what depends on excluded tables: %w", err)
	}
	if kept != nil {
		return nil, nil, inScope(ctx, conn, *kept)
	}
	return gone, left, nil
}

package dump

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// relationsSQL gives what else takes a name in a schema: sequences of columns, partitions, indexes.
const relationsSQL = `
SELECT 'pg_class'::regclass::oid, c.oid, CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'i' THEN 'index' WHEN 'I' THEN 'index' ELSE 'table' END,
       format('%I.%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook')
   AND (c.relkind IN ('i', 'I', 'S') OR c.relispartition)
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e'
                   AND d.objid IN (c.oid, (SELECT x.indrelid FROM pg_index x WHERE x.indexrelid = c.oid))) -- an index is its table's
 ORDER BY c.oid`

// Clashes names the objects of the target whose names the source's need, as "type name", and the others.
// A restore into such a target fails half way. A schema that both have is neither: what is carried goes
// into it.
func Clashes(ctx context.Context, source, target *pgx.Conn, s *scope.Scope) (clashes, others []string, err error) {
	there, err := named(ctx, target)
	if err != nil || len(there) == 0 {
		return nil, nil, err
	}
	gone, _, err := dependents(ctx, source, s)
	if err != nil {
		return nil, nil, err
	}
	made, err := named(ctx, source)
	if err != nil {
		return nil, nil, err
	}
	needed := map[string]bool{}
	for _, m := range made {
		if !gone[objectID{m.Class, m.OID}] {
			needed[takes(m)] = true
		}
	}
	for _, m := range there {
		switch name := takes(m); {
		case name == "" || m.Type == "schema" && needed[name]:
		case needed[name]:
			clashes = append(clashes, m.Type+" "+m.Identity)
		default:
			others = append(others, m.Type+" "+m.Identity)
		}
	}
	return clashes, others, nil
}

func named(ctx context.Context, conn *pgx.Conn) ([]Made, error) {
	list, err := Objects(ctx, conn)
	if err != nil {
		return nil, err
	}
	have := map[objectID]bool{}
	for _, m := range list {
		have[objectID{m.Class, m.OID}] = true
	}
	rows, err := conn.Query(ctx, relationsSQL)
	if err != nil {
		return nil, fmt.Errorf("listing indexes and sequences: %w", err)
	}
	var m Made
	_, err = pgx.ForEachRow(rows, []any{&m.Class, &m.OID, &m.Type, &m.Identity}, func() error {
		if !have[objectID{m.Class, m.OID}] {
			list = append(list, m)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing indexes and sequences: %w", err)
	}
	return list, nil
}

// takes gives the name that an object leaves to no other one; empty for what a restore makes IF NOT
// EXISTS or replaces. A relation has a type of its name.
func takes(m Made) string {
	switch m.Type {
	case "extension", "language":
		return ""
	case "schema":
		if m.Identity == "public" {
			return ""
		}
	case "function", "procedure", "aggregate":
		return "routine " + m.Identity
	case "table", "foreign table", "view", "materialized view", "sequence", "index", "composite type", "type":
		return "relation " + m.Identity
	}
	return m.Type + " " + m.Identity
}

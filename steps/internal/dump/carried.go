package dump

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Owned is an object that a restore makes and gives to its owner.
type Owned struct {
	Schema string // unquoted; empty for what is in none
	Owner  string // on the source
	Self   bool   // it is the schema itself
}

// restoredSQL gives the owners of everything that the schema phase makes. What extensions own comes with
// them, and what predefined roles own with the server.
const restoredSQL = `
SELECT o.class, o.oid, n.nspname::text, pg_get_userbyid(o.owner)::text, o.class = 'pg_namespace'::regclass
  FROM (SELECT 'pg_class'::regclass::oid AS class, oid, relowner AS owner, relnamespace AS nsp FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND relpersistence <> 't'
        UNION ALL SELECT 'pg_proc'::regclass, oid, proowner, pronamespace FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid, typowner, typnamespace FROM pg_type WHERE typtype IN ('d', 'e', 'r')
        UNION ALL SELECT 'pg_namespace'::regclass, oid, nspowner, oid FROM pg_namespace) o
  JOIN pg_namespace n ON n.oid = o.nsp
 WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook') AND pg_get_userbyid(o.owner) !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
   AND NOT EXISTS (SELECT FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = c.reltype AND d.deptype = 'e' -- of a composite type
                    WHERE o.class = 'pg_class'::regclass AND c.oid = o.oid AND c.relkind = 'c')
 ORDER BY 3, 4, 5`

// Restored gives schema and owner of everything on the source that the scope does not exclude, each once.
// Schema public itself is not among it: every target has one.
func Restored(ctx context.Context, source *pgx.Conn, s *scope.Scope) ([]Owned, error) {
	gone, _, err := dependents(ctx, source, s)
	if err != nil {
		return nil, err
	}
	rows, err := source.Query(ctx, restoredSQL)
	if err != nil {
		return nil, fmt.Errorf("reading owners: %w", err)
	}
	var out []Owned
	var id objectID
	var o Owned
	_, err = pgx.ForEachRow(rows, []any{&id.class, &id.oid, &o.Schema, &o.Owner, &o.Self}, func() error {
		if gone[id] || o.Self && o.Schema == "public" || len(out) > 0 && out[len(out)-1] == o {
			return nil
		}
		out = append(out, o)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading owners: %w", err)
	}
	return out, nil
}

package steps

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// listSQL gives what watchSQL sums, one line a table, so that a difference can be laid at somebody's door without
// a whole inventory: kind, object, a number that changes with it, and the schema and relation that it belongs to.
// What belongs to a partition counts whatever its name is, since the root's decides.
const listSQL = `
WITH ns AS (SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'pgrunbook')),
  rel AS (SELECT c.oid, c.relkind, c.relispartition AS part, ns.nspname, c.relname FROM pg_class c JOIN ns ON ns.oid = c.relnamespace),
  typ AS (SELECT t.oid, ns.nspname, t.typname FROM pg_type t JOIN ns ON ns.oid = t.typnamespace)
SELECT 'schema', oid, 0::int8, nspname, '', false FROM ns
UNION ALL SELECT CASE relkind WHEN 'S' THEN 'sequence' ELSE 'table' END, oid, 0, nspname, relname, part FROM rel WHERE relkind IN ('r', 'p', 'S')
UNION ALL SELECT 'sequence of table', s.oid, 0, rel.nspname, rel.relname, rel.part
  FROM rel s JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
  JOIN rel ON rel.oid = d.refobjid WHERE s.relkind = 'S'
UNION ALL SELECT 'indexes of table', rel.oid, count(*) + sum(i.indexrelid::int8)::int8, rel.nspname, rel.relname, rel.part
  FROM rel JOIN pg_index i ON i.indrelid = rel.oid GROUP BY rel.oid, rel.nspname, rel.relname, rel.part
UNION ALL SELECT 'constraints of table', rel.oid, count(*) + sum(k.oid::int8 + k.xmin::text::int8)::int8, rel.nspname, rel.relname, rel.part
  FROM rel JOIN pg_constraint k ON k.conrelid = rel.oid GROUP BY rel.oid, rel.nspname, rel.relname, rel.part
UNION ALL SELECT 'columns of table', rel.oid, count(*) + sum(a.xmin::text::int8)::int8, rel.nspname, rel.relname, rel.part
  FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid
 WHERE rel.oid IN (SELECT to_regclass(name) FROM unnest($1::text[]) name) GROUP BY rel.oid, rel.nspname, rel.relname, rel.part
UNION ALL SELECT 'type', typ.oid, count(*) + sum(e.oid::int8 + e.xmin::text::int8)::int8, typ.nspname, typ.typname, false
  FROM typ JOIN pg_enum e ON e.enumtypid = typ.oid GROUP BY typ.oid, typ.nspname, typ.typname
UNION ALL SELECT 'constraints of domain', typ.oid, count(*) + sum(k.oid::int8 + k.xmin::text::int8)::int8, typ.nspname, typ.typname, false
  FROM typ JOIN pg_constraint k ON k.contypid = typ.oid GROUP BY typ.oid, typ.nspname, typ.typname`

// watched is one line of listSQL.
type watched struct {
	Kind      string
	OID       uint32
	Mark      int64
	Schema    string
	Name      string
	Partition bool
}

// watchedKinds are in the order in which a difference is told: what was made comes before what came with it.
var watchedKinds = []string{"schema", "table", "sequence", "type"}

func readWatched(ctx context.Context, env *Env, conn *pgx.Conn) ([]watched, error) {
	rows, err := conn.Query(ctx, listSQL, unfollowed(env))
	if err != nil {
		return nil, fmt.Errorf("looking for new definitions: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[watched])
	if err != nil {
		return nil, fmt.Errorf("looking for new definitions: %w", err)
	}
	rank := func(w watched) int {
		if i := slices.Index(watchedKinds, w.Kind); i >= 0 {
			return i
		}
		return len(watchedKinds)
	}
	slices.SortFunc(list, func(a, b watched) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.OID, b.OID))
	})
	return list, nil
}

// inScope reports whether the runbook's patterns cover it, or may. Types go with their schema: one that was
// there when the scope was read last is carried unless it was left out then.
func (w watched) inScope(env *Env, known map[string]bool) bool {
	schema := env.Runbook.Tables.Decide(w.Schema, "a table that nobody has") != runbook.Out
	switch {
	case w.Partition:
		return true
	case w.Kind == "schema":
		return schema
	case w.Kind == "type" || w.Kind == "constraints of domain":
		return schema || known[w.Schema] && !slices.Contains(env.Scope.ExcludedSchemas, w.Schema)
	default:
		return env.Runbook.Tables.Decide(w.Schema, w.Name) != runbook.Out
	}
}

func (w watched) String() string {
	if w.Kind == "schema" {
		return w.Kind + " " + pgx.Identifier{w.Schema}.Sanitize()
	}
	return w.Kind + " " + pg.Name(w.Schema, w.Name)
}

// differs names the first line in scope that is new, gone or another one.
func differs(env *Env, was, now []watched) string {
	type id struct {
		kind string
		oid  uint32
	}
	index := func(list []watched) map[id]watched {
		m := make(map[id]watched, len(list))
		for _, w := range list {
			m[id{w.Kind, w.OID}] = w
		}
		return m
	}
	before, after, schemas := index(was), index(now), map[string]bool{}
	for _, w := range was {
		schemas[w.Schema] = true
	}
	for _, w := range now {
		old, known := before[id{w.Kind, w.OID}]
		if known && old.Mark == w.Mark || !w.inScope(env, schemas) {
			continue
		}
		if !known && slices.Contains(watchedKinds, w.Kind) {
			return w.String() + " was made"
		}
		return w.String() + " changed"
	}
	for _, w := range was {
		if _, there := after[id{w.Kind, w.OID}]; !there && w.inScope(env, schemas) {
			return w.String() + " was dropped"
		}
	}
	return ""
}

// checkHeld is checkDefinitions while writers are held: what changed outside of the scope is told from the rest by
// name, and what changed within it ends the attempt. An inventory is made before the next one.
func checkHeld(ctx context.Context, env *Env, conn *pgx.Conn, sums []int64) error {
	now, err := readWatched(ctx, env, conn)
	if err != nil {
		return err
	}
	env.watch.mu.Lock()
	defer env.watch.mu.Unlock()
	if what := differs(env, env.watch.list, now); what != "" {
		return &errRedefined{what}
	}
	env.watch.sums, env.watch.list = sums, now
	return nil
}

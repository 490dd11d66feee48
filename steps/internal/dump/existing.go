package dump

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// columnsSQL gives every column of user tables with what must be equal on both sides.
const columnsSQL = `
SELECT n.nspname::text, c.relname::text, c.relkind::text, coalesce(a.attname::text, ''), coalesce(format_type(a.atttypid, a.atttypmod), ''), coalesce(a.attnotnull, false)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY ($1::text[])
 ORDER BY 1, 2, a.attnum`

// uniqueSQL gives the columns of every index that could be a key: valid, immediate, total, unique
// and without expressions; INCLUDE columns do not count.
const uniqueSQL = `
SELECT n.nspname::text, c.relname::text,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, no) JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.no <= %s ORDER BY a.attname)
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND n.nspname = ANY ($1::text[])`

// firingSQL gives the triggers and rules that would fire for a session in replica role.
const firingSQL = `
SELECT n.nspname::text, c.relname::text, 'trigger ' || t.tgname
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_namespace fn ON fn.oid = f.pronamespace
 WHERE t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal AND fn.nspname <> 'pgrunbook' AND n.nspname = ANY ($1::text[])
UNION ALL
SELECT n.nspname::text, c.relname::text, 'rule ' || r.rulename
  FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.ev_enabled IN ('A', 'R') AND r.rulename <> '_RETURN' AND n.nspname = ANY ($1::text[])
 ORDER BY 1, 2, 3`

// shape is what a table of the target looks like.
type shape struct {
	kind    string
	columns map[string]string // name to type, with "not null"
	uniques [][]string
	firing  []string
}

// Differences compares the target's tables with the scope's: kinds, columns, types, not null. With
// keys it also wants an index for each key, and no trigger or rule that fires for replicated rows:
// that is for a target which somebody else prepared. Each difference is one sentence.
func Differences(ctx context.Context, target *pgx.Conn, s *scope.Scope, keys bool) ([]string, error) {
	shapes, err := readShapes(ctx, target, s)
	if err != nil {
		return nil, err
	}
	var out []string
	for i := range s.Tables {
		t := &s.Tables[i]
		have := shapes[t.Name]
		if have == nil {
			out = append(out, fmt.Sprintf("table %s is not on the target", pg.Name(t.Schema, t.Name.Name)))
			continue
		}
		out = append(out, tableDifferences(t, have, keys)...)
	}
	return out, nil
}

// Firing names the application's triggers and rules that fire for a session in replica role on a
// table of the scope or one of its partitions: for every row that a pass writes there, that is.
func Firing(ctx context.Context, conn *pgx.Conn, s *scope.Scope) ([]string, error) {
	shapes, err := readShapes(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	var out []string
	for i := range s.Tables {
		names := []scope.Name{s.Tables[i].Name}
		for _, m := range s.Tables[i].Members {
			names = append(names, m.Name)
		}
		for _, n := range names {
			if have := shapes[n]; have != nil && s.Tables[i].Data != scope.NoData {
				for _, f := range have.firing {
					out = append(out, f+" on "+pg.Name(n.Schema, n.Name))
				}
			}
		}
	}
	return out, nil
}

// tableDifferences are one table's.
func tableDifferences(t *scope.Table, have *shape, keys bool) []string {
	name := pg.Name(t.Schema, t.Name.Name)
	var out []string
	if (have.kind == "p") != (t.Kind == scope.Partitioned) {
		out = append(out, fmt.Sprintf("%s is partitioned on one side only", name))
	}
	seen := map[string]bool{}
	for _, c := range t.Columns {
		seen[c.Name] = true
		got, ok := have.columns[c.Name]
		switch want := columnText(c.Type, c.NotNull); {
		case !ok:
			out = append(out, fmt.Sprintf("column %s of %s is not on the target", c.Name, name))
		case got != want:
			out = append(out, fmt.Sprintf("column %s of %s is %s on the source and %s on the target", c.Name, name, want, got))
		}
	}
	var more []string
	for c := range have.columns {
		if !seen[c] {
			more = append(more, c)
		}
	}
	slices.Sort(more)
	for _, c := range more {
		out = append(out, fmt.Sprintf("column %s of %s is on the target only", c, name))
	}
	if !keys {
		return out
	}
	if t.Key != nil && !have.hasKey(t.Key) {
		out = append(out, fmt.Sprintf("%s has no unique index over the key's columns on the target", name))
	}
	for _, f := range have.firing {
		out = append(out, fmt.Sprintf("%s on %s fires for replicated rows on the target (ENABLE ALWAYS or REPLICA): disable it until the cutover", f, name))
	}
	return out
}

func columnText(typ string, notNull bool) string {
	if notNull {
		return typ + " not null"
	}
	return typ
}

func (s *shape) hasKey(k *scope.Key) bool {
	var want []string
	for _, c := range k.Columns {
		want = append(want, c.Name)
	}
	slices.Sort(want)
	return slices.ContainsFunc(s.uniques, func(have []string) bool { return slices.Equal(have, want) })
}

func readShapes(ctx context.Context, conn *pgx.Conn, s *scope.Scope) (map[scope.Name]*shape, error) {
	major, err := majorOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	var schemas []string
	for i := range s.Tables {
		schemas = append(schemas, s.Tables[i].Schema)
	}
	slices.Sort(schemas)
	schemas = slices.Compact(schemas)
	shapes := map[scope.Name]*shape{}
	var n scope.Name
	each := func(sql string, into []any, do func(*shape)) error {
		rows, err := conn.Query(ctx, sql, schemas)
		if err != nil {
			return fmt.Errorf("reading the target's tables: %w", err)
		}
		if _, err = pgx.ForEachRow(rows, append([]any{&n.Schema, &n.Name}, into...), func() error {
			if shapes[n] == nil {
				shapes[n] = &shape{columns: map[string]string{}}
			}
			do(shapes[n])
			return nil
		}); err != nil {
			return fmt.Errorf("reading the target's tables: %w", err)
		}
		return nil
	}
	var kind, column, typ, firing string
	var notNull bool
	var unique []string
	if err := each(columnsSQL, []any{&kind, &column, &typ, &notNull}, func(s *shape) {
		s.kind = kind
		if column != "" {
			s.columns[column] = columnText(typ, notNull)
		}
	}); err != nil {
		return nil, err
	}
	keyColumns := "i.indnkeyatts" // came in 11 with INCLUDE
	if major < 11 {
		keyColumns = "i.indnatts"
	}
	if err := each(fmt.Sprintf(uniqueSQL, keyColumns), []any{&unique}, func(s *shape) {
		slices.Sort(unique)
		s.uniques = append(s.uniques, slices.Clone(unique))
	}); err != nil {
		return nil, err
	}
	err = each(firingSQL, []any{&firing}, func(s *shape) { s.firing = append(s.firing, strings.Clone(firing)) })
	return shapes, err
}

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

// KeyIndex is an index that passes can find a table's rows by: unique, immediate, valid and total, over the columns of the
// table's key.
type KeyIndex struct {
	Table      string // quoted
	OID        uint32
	Index      scope.Name
	Constraint string // empty: none
	Primary    bool
	Root       bool   // of a partitioned table
	Like       string // all of it but its name
}

// Item names it in an inventory.
func (k KeyIndex) Item() Item {
	if k.Constraint != "" {
		return Item{Kind: ItemConstraint, Name: ident(k.Constraint), On: k.Table}
	}
	return Item{Kind: ItemIndex, Name: pg.Name(k.Index.Schema, k.Index.Name)}
}

// Before 11 an index has no other columns than its key's.
const keyIndexesSQL = `
SELECT t.name, x.indexrelid, n.nspname::text, c.relname::text, coalesce(k.conname::text, ''), x.indisprimary, c.relkind = 'I',
       replace(pg_get_indexdef(c.oid), 'INDEX ' || quote_ident(c.relname) || ' ON ', 'INDEX ON ') || coalesce(k.contype::text, '')
  FROM unnest($1::text[], $2::text[]) AS t (name, cols)
  JOIN pg_index x ON x.indrelid = to_regclass(t.name) AND x.indisunique AND x.indisvalid AND x.indimmediate AND x.indpred IS NULL AND x.indexprs IS NULL
  JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_constraint k ON k.conindid = x.indexrelid AND k.conrelid = x.indrelid AND k.contype IN ('p', 'u')
 WHERE t.cols = (SELECT string_agg(a.attname::text, chr(1) ORDER BY i.n) FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS i (num, n)
   JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = i.num WHERE i.n <= coalesce((to_jsonb(x) ->> 'indnkeyatts')::int, x.indnatts))
 ORDER BY t.name, x.indisprimary DESC, c.relname`

// KeyIndexes reads those of tables that have a key, a primary key's first, by the tables' quoted names.
func KeyIndexes(ctx context.Context, conn *pgx.Conn, tables []scope.Table) (map[string][]KeyIndex, error) {
	names, cols := []string{}, []string{}
	for _, t := range tables {
		if t.Key == nil {
			continue
		}
		var list []string
		for _, c := range t.Key.Columns {
			list = append(list, c.Name)
		}
		names, cols = append(names, pg.Name(t.Schema, t.Name.Name)), append(cols, strings.Join(list, "\x01"))
	}
	rows, err := conn.Query(ctx, keyIndexesSQL, names, cols)
	if err != nil {
		return nil, fmt.Errorf("reading the indexes of keys: %w", err)
	}
	all := map[string][]KeyIndex{}
	var k KeyIndex
	_, err = pgx.ForEachRow(rows, []any{&k.Table, &k.OID, &k.Index.Schema, &k.Index.Name, &k.Constraint, &k.Primary, &k.Root, &k.Like}, func() error {
		all[k.Table] = append(all[k.Table], k)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the indexes of keys: %w", err)
	}
	return all, nil
}

// KeySQL gives the statements that make a key's index, with all that hangs on it and is on it in partitions, as the source
// has it. t's key is that one.
func KeySQL(ctx context.Context, source *pgx.Conn, s *scope.Scope, t scope.Table) ([]string, error) {
	one := *s
	one.Tables = slices.Clone(s.Tables)
	for i := range one.Tables {
		if one.Tables[i].Name == t.Name {
			one.Tables[i] = t
		}
	}
	objects, err := PostData(ctx, source, &one)
	if err != nil {
		return nil, err
	}
	var out []string
	b := &Builder{Objects: objects}
	for _, o := range b.of(t, func(o Object) bool { return o.Key }) {
		statements := o.SQL
		if o.Constraint != "" {
			statements = slices.Insert(slices.Clone(o.SQL), 1, o.Constraint)
		}
		if o.Tablespace != "" {
			const local = "SELECT set_config('default_tablespace', coalesce((SELECT spcname::text FROM pg_tablespace WHERE spcname::text = %s), ''), true)"
			statements = slices.Concat([]string{fmt.Sprintf(local, pg.Literal(o.Tablespace))}, statements, []string{fmt.Sprintf(local, "''")})
		}
		out = append(out, statements...)
	}
	return out, nil
}

// KeyApart gives the tables whose primary key is to be made and stands on a server under another name. The two are exchanged
// for one another: they cannot stand beside each other.
func KeyApart(ctx context.Context, conn *pgx.Conn, tables []scope.Table) ([]scope.Table, error) {
	all, err := KeyIndexes(ctx, conn, tables)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(tables), func(t scope.Table) bool {
		return t.Key == nil || !t.Key.Primary || !slices.ContainsFunc(all[pg.Name(t.Schema, t.Name.Name)], func(k KeyIndex) bool { return k.Primary && k.Index != t.Key.Index })
	}), nil
}

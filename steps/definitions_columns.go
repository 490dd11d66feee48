package steps

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// alterEmpty makes the columns of a table whose rows are not there yet, or are thrown away by the
// next reload, those of the source. Rows of a table whose data nobody moves stay.
func alterEmpty(ctx context.Context, sides *sideConns, t scope.Table) ([]string, error) {
	name := pg.Name(t.Schema, t.Name.Name)
	want, err := columnTexts(ctx, sides.source, name)
	if err != nil {
		return nil, err
	}
	have, err := columnTexts(ctx, sides.target, name)
	if err != nil {
		return nil, err
	}
	var out []string
	using := " USING NULL"
	if t.Data == scope.NoData {
		using = "" // its rows are the target's own
	}
	alter := func(format string, args ...any) {
		out = append(out, "ALTER TABLE "+name+" "+fmt.Sprintf(format, args...))
	}
	for _, c := range slices.SortedFunc(maps.Values(have), byNumber) {
		if _, ok := want[c.name]; !ok {
			alter("DROP COLUMN %s", c.quoted())
		}
	}
	for _, c := range slices.SortedFunc(maps.Values(want), byNumber) {
		old, ok := have[c.name]
		switch {
		case !ok && c.special:
			return nil, nil
		case !ok:
			alter("ADD COLUMN %s %s", c.quoted(), c.typ)
		case c.special && old.special && c.def != old.def && c.def != "" && old.def != "": // an identity has none
			alter("ALTER COLUMN %s SET EXPRESSION AS (%s)", c.quoted(), c.def)
			continue
		case c.special || old.special:
			continue
		case old.typ != c.typ:
			alter("ALTER COLUMN %s DROP DEFAULT", c.quoted())
			alter("ALTER COLUMN %s TYPE %s%s", c.quoted(), c.typ, using)
			old.def = ""
		}
		if old.def != c.def && c.def == "" {
			alter("ALTER COLUMN %s DROP DEFAULT", c.quoted())
		} else if old.def != c.def {
			alter("ALTER COLUMN %s SET DEFAULT %s", c.quoted(), c.def)
		}
		if old.notNull != c.notNull {
			alter("ALTER COLUMN %s %s NOT NULL", c.quoted(), map[bool]string{true: "SET", false: "DROP"}[c.notNull])
		}
	}
	if len(out) > 0 && t.Data != scope.NoData {
		out = append([]string{"DELETE FROM " + only(t)}, out...)
	}
	return out, nil
}

type columnText struct {
	num              int16
	name, typ, def   string
	notNull, special bool
}

func (c columnText) quoted() string { return pgx.Identifier{c.name}.Sanitize() }

func byNumber(a, b columnText) int { return cmp.Compare(a.num, b.num) }

func columnTexts(ctx context.Context, conn *pgx.Conn, table string) (map[string]columnText, error) {
	rows, err := conn.Query(ctx, `
SELECT a.attnum, a.attname::text, format_type(a.atttypid, a.atttypmod), coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attnotnull, a.attidentity <> '' OR coalesce(to_jsonb(a) ->> 'attgenerated', '') <> ''
  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped`, table)
	if err != nil {
		return nil, fmt.Errorf("reading the columns of %s: %w", table, err)
	}
	out := map[string]columnText{}
	var c columnText
	_, err = pgx.ForEachRow(rows, []any{&c.num, &c.name, &c.typ, &c.def, &c.notNull, &c.special}, func() error { out[c.name] = c; return nil })
	if err != nil {
		return nil, fmt.Errorf("reading the columns of %s: %w", table, err)
	}
	return out, nil
}

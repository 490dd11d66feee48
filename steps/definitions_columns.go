package steps

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// alterEmpty makes the columns of a table whose rows are not there yet, or are thrown away by the
// next reload, those of the source. Rows of a table whose data nobody moves stay.
func alterEmpty(ctx context.Context, env *Env, sides *sideConns, t scope.Table) ([]string, error) {
	loose, tie, err := heirsAlike(ctx, env, sides, t.Name)
	if err != nil {
		return nil, err
	}
	name := pg.Name(t.Schema, t.Name.Name)
	want, err := columnTexts(ctx, sides.source, name)
	if err != nil {
		return nil, err
	}
	have, err := columnTexts(ctx, sides.target, name)
	if err != nil {
		return nil, err
	}
	out := loose
	using := " USING NULL"
	line, err := lineage(ctx, sides.target)
	if err != nil {
		return nil, err
	}
	if t.Data == scope.NoData || slices.ContainsFunc(env.Scope.Tables, func(h scope.Table) bool {
		return h.Data != scope.AtFreeze && slices.Contains(line, heir{h.Name, t.Name})
	}) {
		using = "" // its rows are the target's own, or those of an heir, which it casts as well, stay
	}
	alter := func(format string, args ...any) {
		out = append(out, "ALTER TABLE "+name+" "+fmt.Sprintf(format, args...))
	}
	alone := func(format string, args ...any) { // heirs are tables of their own, with defaults of their own
		out = append(out, "ALTER TABLE "+only(t)+" "+fmt.Sprintf(format, args...))
	}
	for _, c := range slices.SortedFunc(maps.Values(have), byNumber) {
		if _, ok := want[c.name]; !ok {
			alter("DROP COLUMN %s", c.quoted())
		}
	}
	for _, c := range slices.SortedFunc(maps.Values(want), byNumber) {
		old, ok := have[c.name]
		if ok && c.generated() && (!old.generated() || old.typ != c.typ) {
			if t.Data == scope.NoData {
				return nil, nil // no statement does it, and its values are the target's own
			}
			alter("DROP COLUMN %s", c.quoted())
			ok = false
		}
		if !ok {
			alter("ADD COLUMN IF NOT EXISTS %s %s %s", c.quoted(), c.typ, c.special)
			if c.special != "" { // whole
				continue
			}
		}
		switch {
		case !ok:
		case c.generated():
			if c.def != old.def {
				alter("ALTER COLUMN %s SET EXPRESSION AS (%s)", c.quoted(), c.def)
			}
			continue
		case old.generated():
			alter("ALTER COLUMN %s DROP EXPRESSION", c.quoted())
			old.def = ""
		case old.special != "" && c.special == "":
			alter("ALTER COLUMN %s DROP IDENTITY", c.quoted())
		}
		if ok && old.typ != c.typ {
			if old.def != "" {
				alter("ALTER COLUMN %s DROP DEFAULT", c.quoted())
			}
			alter("ALTER COLUMN %s TYPE %s%s", c.quoted(), c.typ, using)
			old.def = ""
		}
		if old.def != c.def && c.def == "" {
			alone("ALTER COLUMN %s DROP DEFAULT", c.quoted())
		} else if old.def != c.def {
			alone("ALTER COLUMN %s SET DEFAULT %s", c.quoted(), c.def)
		}
		if old.notNull != c.notNull {
			alter("ALTER COLUMN %s %s NOT NULL", c.quoted(), map[bool]string{true: "SET", false: "DROP"}[c.notNull])
		}
		identity, err := c.identity(ctx, sides.target, old)
		if err != nil {
			return nil, err
		}
		for _, sql := range identity {
			out = append(out, strings.ReplaceAll(sql, "{table}", name))
		}
	}
	out = append(out, tie...)
	if len(out) > 0 && t.Data != scope.NoData {
		out = append([]string{"DELETE FROM " + only(t)}, out...)
	}
	return out, nil
}

type columnText struct {
	num            int16
	name, typ, def string
	special        string // what follows the type of one that is generated or an identity
	notNull        bool
}

const generatedAs = "GENERATED ALWAYS AS ("

func (c columnText) generated() bool { return strings.HasPrefix(c.special, generatedAs) }

// identity gives what makes a column the identity that it is on the source; old is what it was.
func (c columnText) identity(ctx context.Context, target *pgx.Conn, old columnText) ([]string, error) {
	if c.special == old.special || c.special == "" {
		return nil, nil
	}
	kind, rest, _ := strings.Cut(c.special, " AS IDENTITY (SEQUENCE NAME ")
	if oldKind, _, _ := strings.Cut(old.special, " AS IDENTITY"); old.special != "" {
		if kind == oldKind {
			return nil, nil // of its sequence
		}
		return []string{fmt.Sprintf("ALTER TABLE {table} ALTER COLUMN %s SET %s", c.quoted(), kind)}, nil
	}
	sequence, _, _ := strings.Cut(rest, " START WITH ")
	var taken bool // as by that of a serial column
	if err := target.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1) AND relkind = 'S')", sequence).Scan(&taken); err != nil {
		return nil, fmt.Errorf("looking for sequence %s on the target: %w", sequence, err)
	}
	out := []string{fmt.Sprintf("ALTER TABLE {table} ALTER COLUMN %s ADD %s", c.quoted(), c.special)}
	if taken {
		out = append([]string{"DROP SEQUENCE " + sequence}, out...)
	}
	return out, nil
}

func (c columnText) quoted() string { return pgx.Identifier{c.name}.Sanitize() }

func byNumber(a, b columnText) int { return cmp.Compare(a.num, b.num) }

// sameColumns reports whether a table has the same columns on both sides, so that what is like it on one can hang on it
// on the other. Defaults do not count.
func sameColumns(ctx context.Context, sides *sideConns, table scope.Name) (bool, error) {
	name := pg.Name(table.Schema, table.Name)
	want, err := columnTexts(ctx, sides.source, name)
	if err != nil {
		return false, err
	}
	have, err := columnTexts(ctx, sides.target, name)
	if err != nil {
		return false, err
	}
	return maps.EqualFunc(want, have, func(a, b columnText) bool { return a.typ == b.typ && a.notNull == b.notNull }), nil
}

// specialSQL writes what follows the type of a generated or identity column.
const specialSQL = `
CASE WHEN to_jsonb(a) ->> 'attgenerated' IN ('s', 'v') THEN '` + generatedAs + `' || pg_get_expr(d.adbin, d.adrelid) || ') ' || CASE to_jsonb(a) ->> 'attgenerated' WHEN 'v' THEN 'VIRTUAL' ELSE 'STORED' END
     WHEN a.attidentity <> '' THEN (
       SELECT format('GENERATED %s AS IDENTITY (SEQUENCE NAME %s START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s %s)', CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,
              q.seqrelid::regclass, q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)
         FROM pg_depend o JOIN pg_sequence q ON q.seqrelid = o.objid
        WHERE o.refclassid = 'pg_class'::regclass AND o.refobjid = a.attrelid AND o.refobjsubid = a.attnum AND o.classid = 'pg_class'::regclass AND o.deptype = 'i')
     ELSE '' END`

func columnTexts(ctx context.Context, conn *pgx.Conn, table string) (map[string]columnText, error) {
	rows, err := conn.Query(ctx, `
SELECT a.attnum, a.attname::text, format_type(a.atttypid, a.atttypmod), coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attnotnull, coalesce(`+specialSQL+`, '')
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

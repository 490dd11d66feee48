package steps

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// lineageSQL gives legacy inheritance over all generations: each heir with each table above it.
const lineageSQL = `
WITH RECURSIVE line (child, above) AS (
  SELECT h.inhrelid, h.inhparent FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent AND p.relkind IN ('r', 'f')
  UNION SELECT l.child, h.inhparent FROM line l JOIN pg_inherits h ON h.inhrelid = l.above)
SELECT cn.nspname::text, c.relname::text, pn.nspname::text, p.relname::text
  FROM line
  JOIN pg_class c ON c.oid = line.child JOIN pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_class p ON p.oid = line.above JOIN pg_namespace pn ON pn.oid = p.relnamespace
 ORDER BY 1, 2, 3, 4`

// line is legacy inheritance over all generations; Parent is any table above.
type line []heir

func lineage(ctx context.Context, conn *pgx.Conn) (line, error) {
	rows, err := conn.Query(ctx, lineageSQL)
	return collectHeirs(rows, err)
}

// parentsFirst orders changes: a column's change in a parent is its heirs' too, and none of theirs is possible before.
func (l line) parentsFirst(changes []capture.Change) []capture.Change {
	above := map[scope.Name]int{}
	for _, h := range l {
		above[h.Child]++
	}
	list := slices.Clone(changes)
	slices.SortStableFunc(list, func(a, b capture.Change) int { return above[a.Table] - above[b.Table] })
	return list
}

const localSQL = `
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2 AND NOT attisdropped AND attislocal)`

// inOrder orders changes as parentsFirst does, but for new columns that are an heir's own on the source although they come
// with a parent's as well. Made before the parent's they are its own on the target too, with the values of its rows, and
// stay when the parent's goes.
func (l line) inOrder(ctx context.Context, source *pgx.Conn, changes []capture.Change) ([]capture.Change, error) {
	list := l.parentsFirst(changes)
	var added []capture.Change
	var places []int
	own := map[treeColumn]bool{}
	for i, c := range list {
		if c.What != capture.ColumnAdded {
			continue
		}
		added, places = append(added, c), append(places, i)
		if !slices.ContainsFunc(l, func(h heir) bool { return h.Child == c.Table }) {
			continue
		}
		var local bool
		if err := source.QueryRow(ctx, localSQL, pg.Name(c.Table.Schema, c.Table.Name), c.Column).Scan(&local); err != nil {
			return nil, fmt.Errorf("reading the columns of %s: %w", pg.Name(c.Table.Schema, c.Table.Name), err)
		}
		own[treeColumn{c.Table, c.Column}] = local
	}
	for _, at := range places {
		next := max(slices.IndexFunc(added, func(c capture.Change) bool { return l.mayCome(c, added, own) }), 0)
		list[at] = added[next]
		added = slices.Delete(added, next, next+1)
	}
	return list, nil
}

// mayCome reports whether nothing of what is still to be added must come before a column: those of its table that are
// older, which it may be generated from, its heirs' own ones of its name, and, where it is not the table's own, its parents'.
func (l line) mayCome(c capture.Change, rest []capture.Change, own map[treeColumn]bool) bool {
	older := true
	return !slices.ContainsFunc(rest, func(o capture.Change) bool {
		switch {
		case o.Table == c.Table && o.Column == c.Column:
			older = false
			return false
		case o.Table == c.Table:
			return older
		case o.Column != c.Column:
			return false
		}
		return own[treeColumn{o.Table, o.Column}] && slices.Contains(l, heir{Child: o.Table, Parent: c.Table}) ||
			!own[treeColumn{c.Table, c.Column}] && slices.Contains(l, heir{Child: c.Table, Parent: o.Table})
	})
}

// cameWithParentSQL asks for an inherited column ($1 the table, $2 its name) of a type ($3), or that is not generated.
const cameWithParentSQL = `
SELECT EXISTS (
  SELECT FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
    LEFT JOIN pg_collation o ON o.oid = a.attcollation AND a.attcollation <> y.typcollation LEFT JOIN pg_namespace n ON n.oid = o.collnamespace
   WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND NOT a.attisdropped AND a.attinhcount > 0
     AND CASE WHEN $3 = '' THEN coalesce(to_jsonb(a) ->> 'attgenerated', '') = ''
              ELSE format_type(a.atttypid, a.atttypmod) || coalesce(' COLLATE ' || quote_ident(n.nspname) || '.' || quote_ident(o.collname), '') = $3 END)`

// cameWithParent reports whether the target's column is inherited, and is by now what a change makes of it: the server
// refuses to change such a column in the heir.
func cameWithParent(ctx context.Context, target *pgx.Conn, ch capture.Change) (there bool, err error) {
	if ch.What != capture.ColumnType && ch.What != capture.ColumnGenerated {
		return false, nil
	}
	name := pg.Name(ch.Table.Schema, ch.Table.Name)
	if err := target.QueryRow(ctx, cameWithParentSQL, name, ch.Column, ch.Type).Scan(&there); err != nil {
		return false, fmt.Errorf("reading the columns of %s: %w", name, err)
	}
	return there, nil
}

// heirColumns are the columns that a table's heirs have on the target while it has all of its own, and on the source.
type heirColumns struct {
	heirs          []scope.Name
	target, source []map[string]columnText
}

func columnsBelow(ctx context.Context, sides *sideConns, table scope.Name) (*heirColumns, error) {
	line, err := lineage(ctx, sides.target)
	if err != nil {
		return nil, err
	}
	h := &heirColumns{}
	for _, one := range line {
		if one.Parent != table {
			continue
		}
		name := pg.Name(one.Child.Schema, one.Child.Name)
		on, err := columnTexts(ctx, sides.target, name)
		if err != nil {
			return nil, err
		}
		from, err := columnTexts(ctx, sides.source, name)
		if err != nil {
			return nil, err
		}
		h.heirs, h.target, h.source = append(h.heirs, one.Child), append(h.target, on), append(h.source, from)
	}
	return h, nil
}

// alike refuses to drop a parent's column where one of an heir would go or change with it that is still on the source.
func (h *heirColumns) alike(ctx context.Context, tx pgx.Tx) error {
	for i, heir := range h.heirs {
		name := pg.Name(heir.Schema, heir.Name)
		has, err := columnTexts(ctx, tx.Conn(), name)
		if err != nil {
			return err
		}
		for _, c := range slices.SortedFunc(maps.Values(h.target[i]), byNumber) {
			if _, stays := h.source[i][c.name]; stays && has[c.name] != c {
				return fmt.Errorf("column %s of %s would go or change with it, and did not on the source", c.quoted(), name)
			}
		}
	}
	return nil
}

// emptyToCast throws away on the target the rows of a table that is read again: those that are there need no cast, and
// might have none. The cast rewrites those of its heirs as well, so theirs go too; the live ones among these come back, to
// be read again. A table whose rows are the target's own keeps them, and wants a cast.
func emptyToCast(ctx context.Context, env *Env, sides *sideConns, line line, ch capture.Change) (heirs []scope.Name, using string, err error) {
	using = " USING NULL"
	below := map[scope.Name]bool{ch.Table: true}
	for _, h := range line {
		if h.Parent == ch.Table {
			below[h.Child] = true
		}
	}
	for _, t := range env.Scope.Tables {
		switch {
		case !below[t.Name]:
			continue
		case t.Data == scope.NoData:
			using = ""
			continue
		case t.Name != ch.Table && t.Data == scope.Live:
			heirs = append(heirs, t.Name)
		}
		if _, err := sides.target.Exec(ctx, "DELETE FROM "+only(t)); err != nil {
			return nil, "", fmt.Errorf("emptying %s on the target: %w", pg.Name(t.Schema, t.Name.Name), err)
		}
	}
	return heirs, using, nil
}

// emptiedHeir is why a table is loaded again whose rows went on the target with its parent's, or are others.
func emptiedHeir(t scope.Table) capture.Change {
	return capture.Change{
		ID: t.ID, Table: t.Name, What: capture.Inheritance, Rule: capture.Recopy,
		Text: pg.Name(t.Schema, t.Name.Name) + ": its rows went on the target with those of a table that it inherits from, or got other values with its column",
	}
}

// heirsFirst orders tables that are loaded again: once the parent that took an heir's rows away is accepted, nothing
// says any more that they are to be read.
func (r *recopy) heirsFirst(tables []scope.Table) []scope.Table {
	place := func(t scope.Table) int {
		if slices.ContainsFunc(r.of(t.ID), func(c capture.Change) bool { return c.What == capture.Inheritance && !c.Checked() }) {
			return 0
		}
		return 1
	}
	list := slices.Clone(tables)
	slices.SortStableFunc(list, func(a, b scope.Table) int { return place(a) - place(b) })
	return list
}

// withParents adds to the changes of a table's columns what changed of the tables that it inherits from: on the target
// such a column changes with theirs.
func withParents(ctx context.Context, env *Env, source *pgx.Conn, t scope.Table, changes []capture.Change) ([]capture.Change, error) {
	if !slices.ContainsFunc(changes, func(c capture.Change) bool { return c.Column != "" }) {
		return changes, nil
	}
	line, err := lineage(ctx, source)
	if err != nil {
		return nil, err
	}
	above := slices.DeleteFunc(captured(env), func(p scope.Table) bool { return !slices.Contains(line, heir{Child: t.Name, Parent: p.Name}) })
	if len(above) == 0 {
		return changes, nil
	}
	theirs, err := capture.Check(ctx, source, env.Run, above)
	return append(changes, theirs...), err
}

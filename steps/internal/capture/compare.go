package capture

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// compare says what happened to a table between two fingerprints. Nothing found means that the
// difference is harmless.
func compare(t scope.Table, was, now fingerprint) []Change {
	if len(now.Relations) == 0 {
		return []Change{newChange(t, Dropped, Leave, "it was dropped")}
	}
	old, root := was.Relations[0], now.Relations[0]
	if root.Schema != old.Schema || root.Name != old.Name {
		return []Change{newChange(t, Renamed, Stop, "it is now "+pg.Name(root.Schema, root.Name))}
	}
	changes := columns(t, was, now)
	if was.KeyFits && !now.KeyFits {
		changes = append(changes, newChange(t, KeyChanged, Stop, "no valid unique index over its key's columns is left"))
	}
	changes = append(changes, inheritance(t, was, now)...)
	changes = append(changes, members(t, was, now)...)
	changes = append(changes, memberDefaults(t, was, now, rootDefaults(was, now, changes))...)
	changes = append(changes, inherited(t, was, now, changes)...)
	if !was.written(now) {
		changes = append(changes, newChange(t, Tampered, Recopy, "our function or the table that it writes to was dropped, renamed, altered or made anew: rows may have changed unseen"))
	}
	return changes
}

// written reports whether the function and the table that it writes to are those of another print, untouched since.
func (f fingerprint) written(now fingerprint) bool {
	return f.Function == now.Function && (f.Written == 0 || f.Written == now.Written) && f.Records == now.Records
}

// columns compares the root's columns.
func columns(t scope.Table, before, after fingerprint) []Change {
	was, now := before.Relations[0], after.Relations[0]
	var changes []Change
	inKey := map[string]bool{}
	if t.Identity == scope.ByKey {
		for _, k := range t.Key.Columns {
			inKey[k.Name] = true
		}
	}
	for i, c := range now.Columns {
		if i >= len(was.Columns) {
			if !c.Dropped {
				changes = append(changes, addedColumn(t, before, after, c))
			}
			continue
		}
		if old := was.Columns[i]; !old.Dropped {
			changes = append(changes, columnChanges(t, now, old, c, inKey[old.Name])...)
		}
	}
	return changes
}

// addedColumn makes the column with the value that rows from before it have on this side, then gives it the
// default that it has by now. NOT NULL comes at once only where such a value is known: else the rows got
// theirs by an UPDATE that a pass has still to carry. So does an identity, which wants NOT NULL.
func addedColumn(t scope.Table, was, now fingerprint, c colPrint) Change {
	r := now.Relations[0]
	ch := newChange(t, ColumnAdded, Carry, fmt.Sprintf("it has a new column %q", c.Name))
	ch.Column, ch.Type = c.Name, c.Type+collate(c)
	table, column := pg.Name(r.Schema, r.Name), pgx.Identifier{c.Name}.Sanitize()
	if c.Generated {
		ch.SQL = fmt.Sprintf("ALTER TABLE %s ADD COLUMN IF NOT EXISTS %s %s%s GENERATED ALWAYS AS (%s) %s", table, column, c.Type, collate(c), c.Default, map[bool]string{true: "VIRTUAL", false: "STORED"}[c.Kept == "v"])
		return ch
	}
	missing, alike := missingValue(was, now, c.Name)
	ch.Unlike = !alike || t.Identity != scope.ByKey // its row images have no such column
	ch.Missing = missing
	first := c.Default
	switch {
	case rewrittenSince(was, now) || missing != nil && plainly(c.Default) == *missing:
	case missing != nil:
		first = pg.Literal(*missing) + "::" + c.Type
	default:
		first = ""
	}
	then := first != c.Default
	ch.SQL = fmt.Sprintf("ALTER TABLE %s ADD COLUMN ", table)
	if then {
		ch.SQL += "IF NOT EXISTS "
	}
	ch.SQL += column + " " + c.Type + collate(c)
	if first != "" {
		ch.SQL += " DEFAULT " + first
	}
	if c.NotNull && missing != nil {
		ch.SQL += " NOT NULL"
	}
	if then {
		ch.SQL += "; " + setDefault(r, r.Kind != "p", c)
	}
	return ch
}

func collate(c colPrint) string {
	if c.Collation == "" {
		return ""
	}
	return " COLLATE " + c.Collation
}

// missingValue is what rows from before a column hold, in every member with rows that was there then; alike is
// false where members differ.
func missingValue(was, now fingerprint, column string) (value *string, alike bool) {
	found := false
	for _, r := range now.Relations {
		i := slices.IndexFunc(r.Columns, func(c colPrint) bool { return c.Name == column && !c.Dropped })
		if r.Kind != "r" || i < 0 || !slices.ContainsFunc(was.Relations, func(o relPrint) bool { return o.OID == r.OID }) {
			continue
		}
		is := r.Columns[i].Missing
		if found && (is == nil) != (value == nil) || found && is != nil && *is != *value {
			return nil, false
		}
		value, found = is, true
	}
	return value, true
}

// rewrittenSince reports whether a member got another file node: its rows hold their values themselves, and
// are read again.
func rewrittenSince(was, now fingerprint) bool {
	return slices.ContainsFunc(now.Relations, func(r relPrint) bool {
		return slices.ContainsFunc(was.Relations, func(o relPrint) bool { return o.OID == r.OID && o.Node != r.Node })
	})
}

// literal is a default that is plainly a value.
var literal = regexp.MustCompile(`^(?:'((?:[^'\\]|'')*)'(?:::[a-z][a-z0-9 ."()\[\]]*)?|(-?[0-9.]+)|\((-[0-9.]+)\))$`)

// plainly gives the text of a default that is a literal; of any other what is no value's text.
func plainly(def string) string {
	m := literal.FindStringSubmatch(def)
	if m == nil {
		return "\x00"
	}
	return strings.ReplaceAll(m[1], "''", "'") + m[2] + m[3]
}

func columnChanges(t scope.Table, r relPrint, was, now colPrint, key bool) []Change {
	var changes []Change
	column := pgx.Identifier{was.Name}.Sanitize()
	add := func(what What, rule Rule, text, sql string) {
		c := newChange(t, what, rule, fmt.Sprintf("column %q %s", was.Name, text))
		c.Column = was.Name
		if rule == Carry {
			c.SQL = "ALTER TABLE " + pg.Name(r.Schema, r.Name) + " ALTER COLUMN " + column + " " + sql
		}
		changes = append(changes, c)
	}
	switch {
	case now.Dropped && key:
		add(ColumnDropped, Stop, "was dropped", "")
		return changes
	case now.Dropped:
		add(ColumnDropped, Carry, "was dropped", "")
		changes[0].Unlike = t.Identity != scope.ByKey && !was.Generated // images are whole rows
		changes[0].SQL = "ALTER TABLE " + pg.Name(r.Schema, r.Name) + " DROP COLUMN IF EXISTS " + column + " CASCADE"
		return changes
	case was.Name != now.Name:
		add(ColumnRenamed, Stop, fmt.Sprintf("is now %q", now.Name), "")
		return changes
	}
	switch {
	case was.Generated && !now.Generated:
		add(ColumnGenerated, Carry, "is no longer generated", "DROP EXPRESSION IF EXISTS")
		changes[0].Unlike = t.Identity != scope.ByKey
		was.Default, was.Generated = "", false
	case was.Identity != "" && now.Identity == "":
		add(ColumnIdentity, Carry, "is no longer an identity", "DROP IDENTITY IF EXISTS")
	case was.Identity != now.Identity:
		add(ColumnIdentity, Carry, "became an identity, or one of the other kind", "")
		changes[0].SQL = "" // it wants its sequence, and NOT NULL, which comes when passes have brought the rows
	}
	switch {
	case key && (was.Base != now.Base || was.Collation != now.Collation):
		add(ColumnType, Stop, "of the key has another type or collation: "+now.Type, "")
	case now.Generated && !was.Generated:
		add(ColumnGenerated, Stop, "became generated", "")
	case was.Type != now.Type || was.Collation != now.Collation:
		add(ColumnType, Carry, "has another type: "+now.Type, "TYPE "+now.Type+collate(now))
		changes[len(changes)-1].Type = now.Type + collate(now)
	}
	if was.NotNull != now.NotNull {
		verb := map[bool]string{true: "SET", false: "DROP"}[now.NotNull]
		rule := Carry
		if key {
			rule = Stop
		}
		add(ColumnNull, rule, verb+" NOT NULL", verb+" NOT NULL")
		changes[len(changes)-1].NotNull = now.NotNull
	}
	switch {
	case was.Default == now.Default || was.Generated != now.Generated:
	case now.Generated: // no pass carries the column, and the other side goes on by the old expression
		add(ColumnDefault, Stop, "is generated by another expression: "+now.Default, "")
		changes[len(changes)-1].Hint = fmt.Sprintf("Take it back on this side: ALTER TABLE %s ALTER COLUMN %s SET EXPRESSION AS (%s); %s", pg.Name(r.Schema, r.Name), column, was.Default, beginAgain)
	default:
		add(ColumnDefault, Carry, "has another default", "")
		changes[len(changes)-1].SQL = setDefault(r, r.Kind != "p", now)
	}
	return changes
}

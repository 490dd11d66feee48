package capture

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Names of transition tables. The parser prefers them to any table of the application's search
// path or temporary schema.
const (
	newRows = "pgrunbook_new"
	oldRows = "pgrunbook_old"
)

// FunctionName is the trigger function of one captured table.
func FunctionName(id int32) string { return pg.Name(Schema, fmt.Sprintf("capture_%d", id)) }

// DeltaName is the delta that the keys of a shape share.
func DeltaName(shape string) string { return pg.Name(Schema, "delta_"+shape) }

// ImageName is where a table without a key leaves its rows.
func ImageName(id int32) string { return pg.Name(Schema, fmt.Sprintf("image_%d", id)) }

// Operations in an image table. The pass of an append_only table stops at any but inserted.
const (
	OpInsert   = "i"
	OpDelete   = "d"
	OpUpdate   = "u" // append_only: a violation without an image
	OpTruncate = "t" // img is the member, as in truncated
)

// recordSettings pin the text of a row image (PostgreSQL docs, chapter 19.11).
var recordSettings = [][2]string{
	{"search_path", "pg_catalog"},
	{"DateStyle", "'ISO, YMD'"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "'UTC'"},
	{"extra_float_digits", "3"},
	{"bytea_output", "hex"},
	{"lc_monetary", "'C'"},
	{"quote_all_identifiers", "off"},
}

// keys writes a key's columns out of alias as the delta has them: "n."id"::pg_catalog.int8, ...".
func keys(k *scope.Key, alias string) string {
	parts := make([]string, len(k.Columns))
	for i, c := range k.Columns {
		parts[i] = keyExpr(c, alias)
	}
	return strings.Join(parts, ", ")
}

func keyExpr(c scope.KeyColumn, alias string) string {
	e := alias + "." + pgx.Identifier{c.Name}.Sanitize() + "::" + c.DeltaType
	if c.Collation != "" {
		return "(" + e + ") COLLATE " + c.Collation
	}
	return e
}

// names lists the delta's key columns: "k1, k2".
func names(k *scope.Key) string {
	parts := make([]string, len(k.Columns))
	for i := range k.Columns {
		parts[i] = fmt.Sprintf("k%d", i+1)
	}
	return strings.Join(parts, ", ")
}

// sameKey compares OLD's and NEW's key by the key's own operators.
func sameKey(k *scope.Key) string {
	parts := make([]string, len(k.Columns))
	for i, c := range k.Columns {
		parts[i] = fmt.Sprintf("(%s) %s (%s)", keyExpr(c, "OLD"), c.Operator, keyExpr(c, "NEW"))
	}
	return strings.Join(parts, " AND ")
}

// ImageColumns are the columns of a row image, in its order.
func ImageColumns(t scope.Table) []scope.Column {
	var cols []scope.Column
	for _, c := range t.Columns {
		if !c.Generated {
			cols = append(cols, c)
		}
	}
	return cols
}

// Image is the text of a row under alias as its image has it, in a session of package pg or in a trigger function.
func Image(t scope.Table, alias string) string {
	cols := ImageColumns(t)
	parts := make([]string, len(cols))
	for i, c := range cols {
		parts[i] = alias + "." + pgx.Identifier{c.Name}.Sanitize()
	}
	return "ROW(" + strings.Join(parts, ", ") + ")::pg_catalog.text"
}

// body is what a function does on each kind of statement.
type body struct{ insert, update, remove, truncate string }

// member tells a TRUNCATE of the root (”) from one of a partition.
func member(root uint32) string {
	return fmt.Sprintf("CASE WHEN TG_RELID OPERATOR(pg_catalog.=) %d::pg_catalog.oid THEN '' ELSE pg_catalog.format('%%I.%%I', TG_TABLE_SCHEMA, TG_TABLE_NAME) END", root)
}

func keyBody(t scope.Table, root uint32) (b body) {
	into := fmt.Sprintf("INSERT INTO %s (rel, %s) ", DeltaName(t.Key.Shape), names(t.Key))
	if failpoint.Mutant("capture.new_key_only") {
		defer func() { b.update = b.insert }()
	}
	b = body{truncate: fmt.Sprintf("INSERT INTO pgrunbook.truncated (rel, member) VALUES (%d, %s);", t.ID, member(root))}
	if t.Capture == scope.Row {
		row := func(alias string) string { return fmt.Sprintf("SELECT %d, %s", t.ID, keys(t.Key, alias)) }
		end := replanned(t, 1+len(t.Key.Columns))
		b.insert, b.remove = into+row("NEW")+end, into+row("OLD")+end
		b.update = fmt.Sprintf("%s%s UNION ALL %s WHERE (%s) IS NOT TRUE%s", into, row("NEW"), row("OLD"), sameKey(t.Key), end)
		return b
	}
	rows := func(alias, from string) string {
		return fmt.Sprintf("SELECT %d, %s FROM %s AS %s", t.ID, keys(t.Key, alias), from, alias)
	}
	b.insert, b.remove = into+rows("n", newRows)+";", into+rows("o", oldRows)+";"
	b.update = fmt.Sprintf("%s%s UNION ALL (%s EXCEPT %s);", into, rows("n", newRows), rows("o", oldRows), rows("n", newRows))
	return b
}

// imageMark records a TRUNCATE. One of a tree's root fires for its members too, after the root;
// their marks would say less than the root's, so they are left out while the transaction has left
// no image since (nobody else can: TRUNCATE locks until the end).
func imageMark(t scope.Table, root uint32, major int) string {
	mark := fmt.Sprintf("INSERT INTO %s (op, img) SELECT '%s', %s", ImageName(t.ID), OpTruncate, member(root))
	if t.Kind != scope.Partitioned {
		return mark + ";"
	}
	return mark + fmt.Sprintf(` WHERE TG_RELID OPERATOR(pg_catalog.=) %[2]d::pg_catalog.oid OR NOT EXISTS (
      SELECT FROM %[1]s AS m WHERE m.x OPERATOR(pg_catalog.=) %[3]s AND m.op OPERATOR(pg_catalog.=) '%[4]s' AND m.img OPERATOR(pg_catalog.=) '' AND NOT EXISTS (
        SELECT FROM %[1]s AS i WHERE i.x OPERATOR(pg_catalog.=) m.x AND i.n OPERATOR(pg_catalog.>) m.n AND i.op OPERATOR(pg_catalog.<>) '%[4]s'));`,
		ImageName(t.ID), root, currentX(major), OpTruncate)
}

// replanned ends a row trigger's INSERT. A session keeps the plan of a statement with the types
// that NEW had, and fails when a column got another type, unless the statement names the table:
// then ALTER TABLE makes it plan again. The branch yields nothing and costs nothing. Members of a
// tree do not get it: the root is a table that the application's statement may not have locked.
func replanned(t scope.Table, columns int) string {
	if t.Kind == scope.Partitioned {
		return ";"
	}
	return fmt.Sprintf(" UNION ALL SELECT %s FROM ONLY %s WHERE false;", strings.TrimSuffix(strings.Repeat("NULL, ", columns), ", "), pg.Name(t.Schema, t.Name.Name))
}

func imageBody(t scope.Table, root uint32, major int) body {
	put := func(op, alias, from string) string {
		if t.Capture == scope.Row {
			return fmt.Sprintf("INSERT INTO %s (op, img) SELECT '%s'::pg_catalog.\"char\", %s%s", ImageName(t.ID), op, Image(t, alias), replanned(t, 2))
		}
		return fmt.Sprintf("INSERT INTO %s (op, img) SELECT '%s', %s FROM %s AS %s;", ImageName(t.ID), op, Image(t, alias), from, alias)
	}
	alias := func(row, statement string) string {
		if t.Capture == scope.Row {
			return row
		}
		return statement
	}
	b := body{
		insert:   put(OpInsert, alias("NEW", "n"), newRows),
		truncate: imageMark(t, root, major),
	}
	if t.Identity == scope.AppendOnly {
		b.update, b.remove = violation(t, OpUpdate), violation(t, OpDelete)
		return b
	}
	b.remove = put(OpDelete, alias("OLD", "o"), oldRows)
	b.update = b.remove + "\n    " + b.insert
	return b
}

// violation records, once a statement or row, that an append_only table changed otherwise.
func violation(t scope.Table, op string) string {
	if t.Capture == scope.Row {
		return fmt.Sprintf("INSERT INTO %s (op) VALUES ('%s');", ImageName(t.ID), op)
	}
	return fmt.Sprintf("INSERT INTO %s (op) SELECT '%s' WHERE EXISTS (SELECT FROM %s);", ImageName(t.ID), op, oldRows)
}

// functionSQL is the trigger function of a table. It runs as its owner (an application role needs
// no grant), so every name and operator in it is qualified: it must not see the search path.
// There is no EXCEPTION block: it would cost a subtransaction a statement, and the load of an
// append_only table relies on row and image having the same xmin.
func functionSQL(t scope.Table, root uint32, major int) string {
	b := body{}
	settings := ""
	if t.Identity == scope.ByKey {
		b = keyBody(t, root)
	} else {
		b = imageBody(t, root, major)
		for _, s := range recordSettings {
			settings += "\n  SET " + s[0] + " = " + s[1]
		}
	}
	return fmt.Sprintf(`CREATE OR REPLACE FUNCTION %s() RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER%s AS $pgrunbook$
BEGIN
  IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN
    %s
  ELSIF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
    %s
  ELSIF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
    %s
  ELSE
    %s
  END IF;
  RETURN NULL;
END $pgrunbook$`, FunctionName(t.ID), settings, b.insert, b.update, b.remove, b.truncate)
}

// deltaTableSQL makes the delta of a key's shape. Key columns may be null: a write must not fail
// because the application dropped a NOT NULL. Dead rows pile up as fast as the application writes,
// so vacuum comes by count, unthrottled, and does not truncate (it would stall inserts).
// The server names the index: one of a delta that somebody renamed keeps its name.
func deltaTableSQL(k *scope.Key, major int) string {
	cols := make([]string, len(k.Columns))
	for i, c := range k.Columns {
		cols[i] = fmt.Sprintf("k%d %s", i+1, c.DeltaType)
		if c.Collation != "" {
			cols[i] += " COLLATE " + c.Collation
		}
	}
	name := DeltaName(k.Shape)
	return fmt.Sprintf(`CREATE TABLE %s (rel int NOT NULL, %s, %s) WITH (%s);
CREATE INDEX ON %s (rel, x);`, name, xColumn(major), strings.Join(cols, ", "), vacuumSettings(major), name)
}

func imageTableSQL(id int32, major int) string {
	return fmt.Sprintf(`CREATE TABLE %s (n bigserial, %s, op "char" NOT NULL, img text) WITH (%s);
CREATE INDEX ON %s (x);`, ImageName(id), xColumn(major), vacuumSettings(major), ImageName(id))
}

func vacuumSettings(major int) string {
	s := "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.5"
	if major >= 12 {
		s += ", vacuum_truncate = off"
	}
	return s
}

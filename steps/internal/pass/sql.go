package pass

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// dialect hides that transaction ids of 64 bits got a type of their own in PostgreSQL 13
// (https://www.postgresql.org/docs/13/release-13.html, "xid8").
type dialect struct {
	xid, snapshotType, current, visible string
}

func dialectOf(version int) dialect {
	if version < 130000 {
		return dialect{xid: "int8", snapshotType: "txid_snapshot", current: "txid_current_snapshot()", visible: "txid_visible_in_snapshot"}
	}
	return dialect{xid: "xid8", snapshotType: "pg_snapshot", current: "pg_current_snapshot()", visible: "pg_visible_in_snapshot"}
}

// span is the part of one table's delta that a pass takes: the same words choose the rows to read
// and the rows to forget.
type span struct {
	low uint64 // nothing older is left
	cut string // newest xid of a piece; empty takes all
}

func (s span) where(d dialect, id int32) string {
	w := fmt.Sprintf("d.rel = %d AND d.x >= '%d'::%s", id, s.low, d.xid)
	if s.cut != "" {
		w += fmt.Sprintf(" AND d.x <= '%s'::%s", s.cut, d.xid)
	}
	return w
}

func deltaTable(t scope.Table) string { return pg.Name("pgrunbook", "delta_"+t.Key.Shape) }

func imageTable(t scope.Table) string {
	return pg.Name("pgrunbook", "image_"+strconv.Itoa(int(t.ID)))
}

// relation names t so that neither children of legacy inheritance are taken along nor a partition
// root is taken without its rows.
func relation(t scope.Table) string {
	if t.Kind == scope.Partitioned {
		return pg.Name(t.Schema, t.Name.Name)
	}
	return "ONLY " + pg.Name(t.Schema, t.Name.Name)
}

// written are the columns that a pass carries: all but generated ones.
func written(t scope.Table) []scope.Column {
	cols := make([]scope.Column, 0, len(t.Columns))
	for _, c := range t.Columns {
		if !c.Generated {
			cols = append(cols, c)
		}
	}
	return cols
}

func ident(name string) string { return pgx.Identifier{name}.Sanitize() }

// list joins f of every index below n with commas.
func list(n int, f func(i int) string) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = f(i)
	}
	return strings.Join(parts, ", ")
}

func columnList(cols []scope.Column) string {
	return list(len(cols), func(i int) string { return ident(cols[i].Name) })
}

// sameKey compares the row t with the key columns k1, k2... of other by the key index's own
// operators and collations: under search_path = pg_catalog a bare "=" would be another type's.
func sameKey(t scope.Table, other string) string {
	return compareKey(t, other, func(right string, _ scope.KeyColumn) string { return right })
}

func compareKey(t scope.Table, other string, with func(right string, k scope.KeyColumn) string) string {
	parts := make([]string, len(t.Key.Columns))
	for i, k := range t.Key.Columns {
		right := fmt.Sprintf("%s.k%d", other, i+1)
		if k.Collation != "" {
			right = "(" + right + " COLLATE " + k.Collation + ")"
		}
		operator := k.Operator
		if failpoint.Mutant("pass.bare_operator") {
			operator = "="
		}
		parts[i] = fmt.Sprintf("t.%s %s %s", ident(k.Name), operator, with(right, k))
	}
	return strings.Join(parts, " AND ")
}

// left joins the row t, if there is one, to the keys of other. A query that cannot be pulled up is made for each of them:
// otherwise the planner also thinks of reading all of t, by an index whose order could be merged, and of keeping it,
// and takes it for one row where the statistics are from when it was empty.
func left(t scope.Table, other string, h how) string {
	if h == join {
		return fmt.Sprintf("LEFT JOIN %s AS t ON %s", relation(t), sameKey(t, other))
	}
	cols := written(t)
	return fmt.Sprintf("LEFT JOIN LATERAL (SELECT %s FROM %s AS t WHERE %s OFFSET 0) AS t ON true",
		strings.Join(append([]string{"t.tableoid"}, qualified(cols)...), ", "), relation(t), sameKey(t, other))
}

func qualified(cols []scope.Column) []string {
	names := make([]string, len(cols))
	for i, c := range cols {
		names[i] = "t." + ident(c.Name)
	}
	return names
}

// readRows selects each changed key once, whether its row is there, and the row as it is now. A column
// of the key does not tell: a composite value with a null field is not "IS NOT NULL".
func readRows(d dialect, t scope.Table, s span, h how) string {
	cols := written(t)
	keys := func(prefix string) string {
		return list(len(t.Key.Columns), func(i int) string { return fmt.Sprintf("%s.k%d", prefix, i+1) })
	}
	return fmt.Sprintf("SELECT %s, t.tableoid IS NOT NULL, %s FROM (SELECT DISTINCT %s FROM %s d WHERE %s) k %s",
		keys("k"), strings.Join(qualified(cols), ", "), keys("d"), deltaTable(t), s.where(d, t.ID), left(t, "k", h))
}

func copyOut(query string, binary bool) string {
	return "COPY (" + query + ") TO STDOUT" + format(binary)
}

func format(binary bool) string {
	if binary {
		return " (FORMAT binary)"
	}
	return ""
}

// insertRows writes the staged rows that are present. OVERRIDING SYSTEM VALUE keeps the values of
// identity columns.
func insertRows(t scope.Table, st *stage) string {
	cols := written(t)
	return fmt.Sprintf("INSERT INTO %s AS t (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s s WHERE s.present",
		pg.Name(t.Schema, t.Name.Name), columnList(cols),
		list(len(cols), func(i int) string { return fmt.Sprintf("s.c%d", i+1) }), st.name)
}

// upsertRows sets every column, those of the key too: values that are equal for the key's
// operator need not be the same value.
func upsertRows(t scope.Table, st *stage) string {
	cols := written(t)
	return fmt.Sprintf("%s ON CONFLICT (%s) DO UPDATE SET %s", insertRows(t, st),
		list(len(t.Key.Columns), func(i int) string { return ident(t.Key.Columns[i].Name) }),
		list(len(cols), func(i int) string { return ident(cols[i].Name) + " = EXCLUDED." + ident(cols[i].Name) }))
}

// deleteKeys deletes the rows of the staged keys: of all, or of those whose row is gone. What is deleted from can be anywhere in a
// join's order, so lookups give places, which no index is ordered by; before 12 a join looks none up, but an array of them is.
func deleteKeys(t scope.Table, st *stage, absent bool, h how, version int) string {
	which := "true"
	if absent {
		which = "NOT s.present"
	}
	using := fmt.Sprintf("DELETE FROM %s AS t USING %s s", relation(t), st.name)
	places := fmt.Sprintf("CROSS JOIN LATERAL (SELECT t.ctid AS tid FROM %s AS t WHERE %s OFFSET 0) p", relation(t), sameKey(t, "s"))
	switch {
	case h == join:
		return using + " WHERE " + sameKey(t, "s") + " AND " + which
	case t.Kind == scope.Partitioned:
		return using + " WHERE " + sameKeyUnmerged(t, "s") + " AND " + which
	case version < 120000:
		return fmt.Sprintf("DELETE FROM %s AS t WHERE t.ctid = ANY (ARRAY(SELECT p.tid FROM %s s %s WHERE %s))", relation(t), st.name, places, which)
	default:
		return using + " " + places + " WHERE t.ctid = p.tid AND " + which
	}
}

// sameKeyUnmerged is for the rows of partitions, whose places would be sought in each of them: what stands in an array cannot be merged
// in the order of an index, so none is read as a whole.
func sameKeyUnmerged(t scope.Table, other string) string {
	return compareKey(t, other, func(right string, k scope.KeyColumn) string {
		if typ := k.DeltaType[strings.LastIndexByte(k.DeltaType, '.')+1:]; strings.HasPrefix(strings.TrimPrefix(typ, `"`), "_") { // an array of arrays has their elements
			return right
		}
		return "ANY (ARRAY[" + right + "])"
	})
}

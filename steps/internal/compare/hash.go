package compare

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// method is how rows become numbers on both sides.
type method struct {
	md5       bool // hashtextextended came in 11, and differs between byte orders
	utf8      bool // encodings differ: hash the UTF-8 form
	oldFloats bool // a side before 12, which prints floats with other digits
}

// facts are what a side's method depends on.
type facts struct {
	major    int
	encoding string
}

func readFacts(ctx context.Context, conn *pgx.Conn) (facts, error) {
	var f facts
	var num int
	err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')").Scan(&num, &f.encoding)
	f.major = num / 10000
	if err != nil {
		return f, fmt.Errorf("reading version and encoding: %w", err)
	}
	return f, nil
}

// choose picks the fastest method that gives the same numbers on both sides, and proves it with a
// known text.
func choose(ctx context.Context, from, to *pgx.Conn) (method, error) {
	a, err := readFacts(ctx, from)
	if err != nil {
		return method{}, err
	}
	b, err := readFacts(ctx, to)
	if err != nil {
		return method{}, err
	}
	m := method{md5: min(a.major, b.major) < 11, utf8: a.encoding != b.encoding, oldFloats: min(a.major, b.major) < 12}
	for {
		same, err := m.agrees(ctx, from, to)
		if err != nil {
			return m, err
		}
		if same {
			return m, nil
		}
		if m.md5 {
			return m, fmt.Errorf("comparing: the two servers hash the same text differently")
		}
		m.md5 = true
	}
}

// knownText has a character outside ASCII that every Latin and UTF-8 encoding has; servers in other
// encodings hash its ASCII part only.
const knownText = `SELECT 'pgrunbook ' || chr(CASE WHEN current_setting('server_encoding') IN ('UTF8', 'LATIN1', 'LATIN9', 'WIN1252') THEN 233 ELSE 65 END) AS t`

func (m method) agrees(ctx context.Context, from, to *pgx.Conn) (bool, error) {
	sql := "SELECT " + m.text("t") + ", " + m.text("''::text") + " FROM (" + knownText + ") k"
	if m.utf8 {
		sql = strings.Replace(sql, knownText, "SELECT 'pgrunbook'::text AS t", 1)
	}
	var got [2][2]int64
	for i, conn := range []*pgx.Conn{from, to} {
		if err := conn.QueryRow(ctx, sql).Scan(&got[i][0], &got[i][1]); err != nil {
			return false, fmt.Errorf("hashing a known text: %w", err)
		}
	}
	return got[0] == got[1], nil
}

// text gives the expression that hashes a text expression into a bigint, byte by byte.
func (m method) text(expr string) string {
	if m.utf8 {
		expr = "encode(convert_to(" + expr + ", 'UTF8'), 'hex')"
	}
	if m.md5 {
		return "('x' || left(md5(" + expr + "), 16))::bit(64)::int8"
	}
	return "hashtextextended((" + expr + `) COLLATE "C", 0)`
}

// Types whose text is not the same on every major.
const (
	oidChar    = 18 // "char": bytes above 127 print as octal since 16
	oidBytea   = 17
	oidText    = 25
	oidVarchar = 1043
	oidJSON    = 114
	oidJSONB   = 3802
)

// column gives the expression of a column's value whose text is the same on both sides if and only
// if the values are.
func (m method) column(c scope.Column) string {
	name := pgx.Identifier{c.Name}.Sanitize()
	switch {
	case c.TypeOID == oidChar:
		return name + "::int4"
	case m.oldFloats && floatSend(c) != "":
		return "encode(" + floatSend(c) + "(" + name + "), 'hex')"
	}
	return name
}

// floatSend is what the scope says, and for a plan of a build that did not know of it the type.
func floatSend(c scope.Column) string {
	const float4, float8, float4Array, float8Array = 700, 701, 1021, 1022
	switch {
	case c.FloatSend != "":
		return c.FloatSend
	case c.TypeOID == float4:
		return "float4send"
	case c.TypeOID == float8:
		return "float8send"
	case c.TypeOID == float4Array || c.TypeOID == float8Array:
		return "array_send"
	}
	return ""
}

// field gives the hash of one column alone; NULL is not the same as an empty value. Values of up to
// 1 GB have no room for the escapes of a row's text.
func (m method) field(c scope.Column) string {
	name := pgx.Identifier{c.Name}.Sanitize()
	switch c.TypeOID {
	case oidBytea:
		return m.text("md5(" + name + ")")
	case oidText, oidVarchar, oidJSON, oidJSONB:
		return m.text(name + "::text")
	}
	return m.text("ROW(" + m.column(c) + ")::text")
}

// plan is what is read of one table.
type plan struct {
	table   scope.Table
	m       method
	byField bool // each column is hashed alone first: a row is too large for one text
}

func (p plan) columns() []scope.Column {
	var out []scope.Column
	for _, c := range p.table.Columns {
		if !c.Generated {
			out = append(out, c)
		}
	}
	return out
}

// row gives the expression of a row's hash. All columns are in one text, so that values which
// change places between rows or columns are seen.
func (p plan) row() string {
	var parts []string
	for _, c := range p.columns() {
		expr := p.m.column(c)
		if p.byField {
			expr = p.m.field(c)
		}
		parts = append(parts, expr)
	}
	return p.m.text("ROW(" + strings.Join(parts, ", ") + ")::text")
}

// fields gives an array of each column's hash; NULL stays NULL.
func (p plan) fields() string {
	var parts []string
	for _, c := range p.columns() {
		parts = append(parts, p.m.field(c))
	}
	return "ARRAY[" + strings.Join(parts, ", ") + "]::int8[]"
}

func (p plan) keyed() bool { return p.table.Key != nil && p.table.Identity == scope.ByKey }

// key gives the text that identifies a row: the key's columns, or for a table without one the
// beginning of the row and its hash.
func (p plan) key() string {
	if !p.keyed() {
		return "(" + p.row() + ")::text"
	}
	return "ROW(" + strings.Join(p.keyColumns(), ", ") + ")::text"
}

func (p plan) keyColumns() []string {
	byName := map[string]scope.Column{}
	for _, c := range p.table.Columns {
		byName[c.Name] = c
	}
	var parts []string
	for _, k := range p.table.Key.Columns {
		parts = append(parts, p.m.column(byName[k.Name]))
	}
	return parts
}

// label is what a person is shown of a row.
func (p plan) label() string {
	if p.keyed() {
		return "left(ROW(" + strings.Join(p.plainKey(), ", ") + ")::text, 200)"
	}
	var parts []string
	for _, c := range p.columns() {
		parts = append(parts, "left("+pgx.Identifier{c.Name}.Sanitize()+"::text, 40)")
	}
	return "left(ROW(" + strings.Join(parts, ", ") + ")::text, 200)"
}

func (p plan) plainKey() []string {
	var parts []string
	for _, k := range p.table.Key.Columns {
		parts = append(parts, pgx.Identifier{k.Name}.Sanitize())
	}
	return parts
}

// from gives the FROM clause: a table without the children that inherit from it, a partition tree
// as a whole, without leaves that are foreign tables.
func (p plan) from() string {
	name := pg.Name(p.table.Schema, p.table.Name.Name)
	if p.table.Kind != scope.Partitioned {
		return "ONLY " + name
	}
	foreign := false
	var leaves []string
	for _, m := range p.table.Members {
		foreign = foreign || m.Foreign
		if m.Leaf && !m.Foreign {
			leaves = append(leaves, "SELECT "+p.columnNames()+" FROM ONLY "+pg.Name(m.Schema, m.Name.Name))
		}
	}
	if !foreign {
		return name
	}
	if len(leaves) == 0 {
		return "(SELECT " + p.columnNames() + " FROM ONLY " + name + ") u"
	}
	return "(" + strings.Join(leaves, " UNION ALL ") + ") u"
}

func (p plan) columnNames() string {
	var parts []string
	for _, c := range p.columns() {
		parts = append(parts, pgx.Identifier{c.Name}.Sanitize())
	}
	return strings.Join(parts, ", ")
}

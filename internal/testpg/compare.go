package testpg

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// Kind is how two databases differ.
type Kind string

// The kinds of difference.
const (
	Missing Kind = "missing" // a row, column or table of the source is not in the target
	Extra   Kind = "extra"   // one of the target is not in the source
	More    Kind = "more"    // further rows that are not listed
)

// Difference is one row (with its text), column or table. A changed row is two:
// its old form is missing and its new form extra.
type Difference struct {
	Table string
	Kind  Kind
	What  string
}

func (d Difference) String() string { return d.Table + ": " + string(d.Kind) + ": " + d.What }

// maxDifferences bounds the rows listed per table.
const maxDifferences = 50

// compareSettings fix how values are written.
var compareSettings = []string{
	"SET search_path = pg_catalog", "SET DateStyle = 'ISO, YMD'", "SET IntervalStyle = postgres", "SET TimeZone = 'UTC'",
	"SET extra_float_digits = 3", "SET bytea_output = hex", "SET client_encoding = UTF8", "SET lc_monetary = 'C'",
	"SET xmloption = content", "SET row_security = off", "SET statement_timeout = 0", "SET transaction_isolation = 'repeatable read'",
}

// Diff compares tables, row by row and column by name, each side in one
// snapshot. Tables are named as SQL does, with their schema, quoted where
// needed, as AllTables returns them. Rows are ordered by the server under
// COLLATE "C" and written by COPY; sums first, and where they differ both are
// read again and merged, with one row of each side in memory. Both databases
// must be in encodings that sort like UTF8 (UTF8, SQL_ASCII with UTF8 in it,
// the LATIN family). Partitioned tables compare as a whole, inheritance parents
// without their children.
func Diff(ctx context.Context, sourceURL, targetURL string, tables []string) ([]Difference, error) {
	return DiffAt(ctx, sourceURL, targetURL, "", tables)
}

// DiffAt is Diff with the target seen in an exported snapshot (PostgreSQL docs,
// pg_export_snapshot), so that writers may go on there. An empty name means now.
func DiffAt(ctx context.Context, sourceURL, targetURL, targetSnapshot string, tables []string) (diffs []Difference, err error) {
	err = notEnded(func() error {
		diffs, err = diffOnce(ctx, sourceURL, targetURL, targetSnapshot, tables)
		return err
	})
	return diffs, err
}

// notEnded does something again whose session was ended from outside, whether or not the server could
// say so: a flip does that on the side that it leaves.
func notEnded(do func() error) error {
	const times = 3
	for n := 1; ; n++ {
		err := do()
		if err == nil || n == times || sqlState(err) != "57P01" && sqlState(err) != "" {
			return err
		}
	}
}

func diffOnce(ctx context.Context, sourceURL, targetURL, targetSnapshot string, tables []string) ([]Difference, error) {
	var sides [2]*side
	snapshots := [2]string{"", targetSnapshot}
	for i, url := range []string{sourceURL, targetURL} {
		s, err := openSide(ctx, url, snapshots[i])
		if err != nil {
			return nil, fmt.Errorf("comparing databases: %w", err)
		}
		defer s.close(ctx)
		sides[i] = s
	}
	exactFloats := sides[0].version >= 120000 && sides[1].version >= 120000
	var all []Difference
	for _, table := range tables {
		diffs, err := diffTable(ctx, sides, table, exactFloats)
		if err != nil {
			return nil, fmt.Errorf("comparing %s: %w", table, err)
		}
		all = append(all, diffs...)
	}
	return all, nil
}

// side is one database in one snapshot.
type side struct {
	conn    *pgx.Conn
	version int
}

func openSide(ctx context.Context, url, snapshot string) (*side, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	s := &side{conn: conn}
	if err := s.begin(ctx, snapshot); err != nil {
		s.close(ctx)
		return nil, err
	}
	return s, nil
}

func (s *side) begin(ctx context.Context, snapshot string) error {
	if err := s.conn.QueryRow(ctx, "SELECT pg_catalog.current_setting('server_version_num')::int").Scan(&s.version); err != nil {
		return err
	}
	start := []string{"BEGIN", compareSettings[len(compareSettings)-1]}
	if snapshot != "" { // before any query
		start = append(start, "SET TRANSACTION SNAPSHOT '"+strings.ReplaceAll(snapshot, "'", "''")+"'")
	}
	for _, sql := range slices.Concat(start, compareSettings[:len(compareSettings)-1]) {
		if _, err := s.conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

func (s *side) close(ctx context.Context) { _ = s.conn.Close(context.WithoutCancel(ctx)) }

// shape is what a table looks like on one side.
type shape struct {
	name    string // quoted, for SQL
	kind    string // pg_class.relkind; "" when there is no such table
	columns []column
}

type column struct{ Name, Type string }

const shapeQuery = `
SELECT n.nspname, c.relname, c.relkind::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = pg_catalog.to_regclass($1)`

const columnsQuery = `
SELECT attname::text, atttypid::pg_catalog.regtype::text
FROM pg_catalog.pg_attribute
WHERE attrelid = pg_catalog.to_regclass($1) AND attnum > 0 AND NOT attisdropped
ORDER BY attname::pg_catalog.text COLLATE "C"`

func (s *side) shape(ctx context.Context, table string) (shape, error) {
	rows, err := s.conn.Query(ctx, shapeQuery, table)
	if err != nil {
		return shape{}, err
	}
	var sh shape
	var schema, name string
	if _, err := pgx.ForEachRow(rows, []any{&schema, &name, &sh.kind}, func() error {
		sh.name = pgx.Identifier{schema, name}.Sanitize()
		return nil
	}); err != nil || sh.kind == "" {
		return sh, err
	}
	if rows, err = s.conn.Query(ctx, columnsQuery, table); err != nil {
		return sh, err
	}
	sh.columns, err = pgx.CollectRows(rows, pgx.RowToStructByPos[column])
	return sh, err
}

func diffTable(ctx context.Context, sides [2]*side, table string, exactFloats bool) ([]Difference, error) {
	var shapes [2]shape
	for i, s := range sides {
		var err error
		if shapes[i], err = s.shape(ctx, table); err != nil {
			return nil, err
		}
	}
	switch {
	case shapes[0].kind == "" && shapes[1].kind == "":
		return nil, fmt.Errorf("no such table on either side")
	case shapes[0].kind == "":
		return []Difference{{table, Extra, "table"}}, nil
	case shapes[1].kind == "":
		return []Difference{{table, Missing, "table"}}, nil
	}
	if diffs := diffColumns(table, shapes); len(diffs) > 0 {
		return diffs, nil
	}
	var queries [2]string
	for i, sh := range shapes {
		queries[i] = copyQuery(sh, exactFloats)
	}
	equal, err := equalSums(ctx, sides, queries)
	if err != nil || equal {
		return nil, err
	}
	return merge(ctx, sides, queries, table, shapes[0].columns)
}

func diffColumns(table string, shapes [2]shape) (diffs []Difference) {
	has := func(sh shape, name string) bool {
		return slices.ContainsFunc(sh.columns, func(c column) bool { return c.Name == name })
	}
	for _, c := range shapes[0].columns {
		if !has(shapes[1], c.Name) {
			diffs = append(diffs, Difference{table, Missing, "column " + c.Name})
		}
	}
	for _, c := range shapes[1].columns {
		if !has(shapes[0], c.Name) {
			diffs = append(diffs, Difference{table, Extra, "column " + c.Name})
		}
	}
	return diffs
}

// floatSends give the bytes of values whose text holds floats. Types are as format_type writes them.
var floatSends = map[string]string{
	"real": "float4send", "double precision": "float8send", "real[]": "array_send", "double precision[]": "array_send", "point[]": "array_send",
	"point": "point_send", "lseg": "lseg_send", "path": "path_send", "box": "box_send", "polygon": "poly_send", "line": "line_send", "circle": "circle_send",
}

// copyQuery writes every row as text, columns by name, in an order that needs
// nothing of the table. Servers before 12 write floats in another way, so there
// the bytes are compared. A cast would take the blanks off the end of a bpchar.
func copyQuery(sh shape, exactFloats bool) string {
	var values, order []string
	for i, c := range sh.columns {
		v := pgx.Identifier{c.Name}.Sanitize()
		if send := floatSends[c.Type]; send != "" && !exactFloats {
			v = "pg_catalog." + send + "(" + v + ")"
		}
		if c.Type == "character" {
			v = "pg_catalog.textin(pg_catalog.bpcharout(" + v + "))"
		}
		values = append(values, fmt.Sprintf("%s::pg_catalog.text AS v%d", v, i))
		order = append(order, fmt.Sprintf(`v%d COLLATE "C"`, i))
	}
	from := sh.name
	if sh.kind == "r" {
		from = "ONLY " + from
	}
	if most := 400; len(order) > most { // what is only sorted by counts as well, and a query has 1,664 columns at most
		rest := make([]string, 0, len(order)-most)
		for i := range order[most:] {
			rest = append(rest, fmt.Sprintf("v%d", most+i))
		}
		order = append(order[:most], "ARRAY["+strings.Join(rest, ", ")+`]::pg_catalog.text COLLATE "C"`)
	}
	if len(values) == 0 { // a table without columns still has rows
		return "COPY (SELECT '' FROM " + from + ") TO STDOUT"
	}
	return "COPY (SELECT * FROM (SELECT " + strings.Join(values, ", ") + " FROM " + from + ") r ORDER BY " + strings.Join(order, ", ") + ") TO STDOUT"
}

func equalSums(ctx context.Context, sides [2]*side, queries [2]string) (bool, error) {
	var sums [2]string
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range sides {
		group.Go(func() error {
			h := sha256.New()
			_, err := s.conn.PgConn().CopyTo(ctx, h, queries[i])
			sums[i] = string(h.Sum(nil))
			return err
		})
	}
	err := group.Wait()
	return sums[0] == sums[1], err
}

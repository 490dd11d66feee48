package testpg_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// odd is a schema with what comparisons trip over; the target's differs in
// physical order and settings only.
const odd = `
CREATE SCHEMA "Odd ""name""";
CREATE TABLE "Odd ""name"""."t.able" (id int, "Text" text, f double precision, r real, b bytea, j jsonb, d timestamptz, i interval, n numeric, a text[], c bpchar);
INSERT INTO "Odd ""name"""."t.able"
SELECT g, CASE g % 7 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN E'tab\tnew\nline\\N' WHEN 3 THEN 'Ünï' WHEN 4 THEN E'\b\f\r' || chr(11) ELSE 'x' || g END,
       g / 3.0::float8, g / 7.0::float4, decode(md5(g::text), 'hex'), '{"a": 1}', 'epoch'::timestamptz + g * interval '1 h', g * interval '1 min', g / 3.0, ARRAY[NULL, '', g::text], 'c '
FROM generate_series(1, 3000) g;
CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2);
CREATE TABLE part (a int, k int) PARTITION BY LIST (k); CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1); INSERT INTO part VALUES (1, 1);
CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
CREATE SEQUENCE s START 5; SELECT nextval('s');
`

const oddTable = `"Odd ""name"""."t.able"`

func oddPair(t *testing.T) (source, target string) {
	t.Helper()
	source, target = testpg.Pair(t)
	ctx := testContext(t)
	execAll(ctx, t, source, odd)
	execAll(ctx, t, target, odd+`
		CREATE TABLE tmp AS SELECT * FROM `+oddTable+` ORDER BY md5(id::text);
		TRUNCATE `+oddTable+`; INSERT INTO `+oddTable+` SELECT * FROM tmp; DROP TABLE tmp;
		DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET DateStyle = ''German'''; EXECUTE 'ALTER DATABASE ' || current_database() || ' SET extra_float_digits = -5'; END $$`)
	return source, target
}

func diff(t *testing.T, source, target string) []testpg.Difference {
	t.Helper()
	ctx := testContext(t)
	tables, err := testpg.AllTables(ctx, source)
	if err != nil {
		t.Fatal(err)
	}
	diffs, err := testpg.Diff(ctx, source, target, tables)
	if err != nil {
		t.Fatal(err)
	}
	return diffs
}

func TestDiffIsQuietOnEqualDatabases(t *testing.T) {
	source, target := oddPair(t)
	tables, err := testpg.AllTables(testContext(t), source)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{oddTable, "public.child", "public.nothing", "public.parent", "public.part1"}; !cmp.Equal(tables, want) {
		t.Errorf("tables: %s", cmp.Diff(want, tables))
	}
	if d := diff(t, source, target); len(d) != 0 {
		t.Errorf("%d differences between equal databases, such as %s", len(d), d[0])
	}
}

func TestDiffFindsPlantedDifferences(t *testing.T) {
	const table = oddTable
	cases := []struct {
		name, sql     string
		missing, more int // rows only in the source, rows only in the target
	}{
		{"a changed value", "UPDATE " + table + " SET b = b || '\\x00' WHERE id = 1500", 1, 1},
		{"a lost row", "DELETE FROM " + table + " WHERE id = 3000", 1, 0},
		{"an added row", "INSERT INTO " + table + " (id) VALUES (0)", 0, 1},
		{"a row twice", "INSERT INTO " + table + " SELECT * FROM " + table + " WHERE id = 8", 0, 1},
		{"NULL to empty", `UPDATE ` + table + ` SET "Text" = '' WHERE id = 7`, 1, 1},
		{"empty to the text of NULL", `UPDATE ` + table + ` SET "Text" = E'\\N' WHERE id = 8`, 1, 1},
		{"the last bit of a float", "UPDATE " + table + " SET f = 0.33333333333333337 WHERE id = 1", 1, 1},
		{"minus zero", "UPDATE " + table + " SET f = '-0' WHERE id = 3", 1, 1},
		{"a numeric's scale", "UPDATE " + table + " SET n = 1.0 WHERE id = 3", 1, 1},
		{"a blank at the end", "UPDATE " + table + " SET c = 'c' WHERE id = 3", 1, 1},
		{"case", `UPDATE ` + table + ` SET "Text" = 'X5' WHERE id = 5`, 1, 1},
		{"two swapped", `UPDATE ` + table + ` SET "Text" = CASE id WHEN 5 THEN 'x6' ELSE 'x5' END WHERE id IN (5, 6)`, 2, 2},
		{"a row of a table without columns", "INSERT INTO nothing DEFAULT VALUES", 0, 1},
		{"a row moved to the child", "INSERT INTO child SELECT * FROM ONLY parent; DELETE FROM ONLY parent", 1, 1},
		{"a row of a partition", "DELETE FROM part1", 1, 0},
	}
	source, target := oddPair(t)
	ctx := testContext(t)
	conn, err := pgx.Connect(ctx, target)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, tc := range cases {
		execAll(ctx, t, target, tc.sql)
		var missing, extra int
		diffs := diff(t, source, target)
		for _, d := range diffs {
			switch d.Kind {
			case testpg.Missing:
				missing++
			case testpg.Extra:
				extra++
			case testpg.More:
				t.Errorf("%s: %s", tc.name, d)
			}
		}
		if missing != tc.missing || extra != tc.more {
			t.Errorf("%s: %d missing and %d extra, want %d and %d: %.2000v", tc.name, missing, extra, tc.missing, tc.more, diffs)
		}
		execAll(ctx, t, target, "TRUNCATE "+table+", parent, child, part, nothing")
		execAll(ctx, t, target, insertsOf(odd))
	}
}

// insertsOf is the part of a script that fills tables.
func insertsOf(script string) string {
	var inserts []string
	for _, s := range strings.Split(script, ";\n") {
		for _, part := range strings.Split(s, "; ") {
			if strings.HasPrefix(strings.TrimSpace(part), "INSERT") {
				inserts = append(inserts, part)
			}
		}
	}
	return strings.Join(inserts, ";")
}

func TestDiffNamesShapesAndBoundsTheList(t *testing.T) {
	source, target := oddPair(t)
	ctx := testContext(t)
	execAll(ctx, t, target, "ALTER TABLE part DROP COLUMN a; ALTER TABLE part ADD COLUMN z int; DROP TABLE nothing; UPDATE "+oddTable+" SET n = 0")
	diffs := diff(t, source, target)
	for _, want := range []testpg.Difference{
		{Table: "public.part1", Kind: testpg.Missing, What: "column a"},
		{Table: "public.part1", Kind: testpg.Extra, What: "column z"},
		{Table: "public.nothing", Kind: testpg.Missing, What: "table"},
		{Table: oddTable, Kind: testpg.More, What: "5950 rows that are not listed"},
	} {
		if !slices.Contains(diffs, want) {
			t.Errorf("not found: %s", want)
		}
	}
	if _, err := testpg.Diff(ctx, source, target, []string{"public.nobody"}); err == nil {
		t.Error("a table that is on neither side is no error")
	}
}

func TestSequences(t *testing.T) {
	source, _ := oddPair(t)
	got, err := testpg.Sequences(testContext(t), source)
	if want := (map[string]testpg.Sequence{"public.s": {Last: 5, Called: true}}); err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v %s", err, cmp.Diff(want, got))
	}
}

func TestSchemaDumpComparesAcrossMajors(t *testing.T) {
	source, target := oddPair(t)
	ctx := testContext(t)
	dump := func(url string) string {
		s, err := testpg.SchemaDump(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := dump(source), dump(target)
	if a != b || !strings.Contains(a, "CREATE TABLE public.nothing") {
		t.Errorf("dumps of equal schemas differ: %s", cmp.Diff(a, b))
	}
	execAll(ctx, t, target, "CREATE INDEX planted ON parent (a)")
	if got := dump(target); !strings.Contains(got, "CREATE INDEX planted") || got == b {
		t.Errorf("a planted index is not in the dump")
	}
	execAll(ctx, t, target, "CREATE SCHEMA hidden; DROP INDEX planted")
	if got, err := testpg.SchemaDump(ctx, target, "hidden"); err != nil || got != b {
		t.Errorf("with the schema left out: %v %s", err, cmp.Diff(b, got))
	}
}

func TestLeaksAreFound(t *testing.T) {
	ctx := testContext(t)
	url := testpg.NewDB(t, testpg.Shared(t, 18))
	if left, err := testpg.Leaks(ctx, url, 0); err != nil || len(left) != 0 {
		t.Fatalf("a fresh database: %v %v", left, err)
	}
	conn, err := pgx.Connect(ctx, url+"&application_name=pgrunbook-x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.PgConn().Exec(ctx, "CREATE TABLE p (); SELECT pg_advisory_lock(7)").ReadAll(); err != nil {
		t.Fatal(err)
	}
	left, err := testpg.Leaks(ctx, url, 50*time.Millisecond)
	if err != nil || len(left) != 2 || !strings.HasPrefix(left[0], "advisory lock") || !strings.Contains(left[1], "pgrunbook-x") {
		t.Errorf("%v: %q", err, left)
	}
	if err := conn.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

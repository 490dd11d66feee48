package compare

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// sides are two databases with a session each.
type sides struct {
	from, to   *pg.Server
	fromC, toC *pgx.Conn
}

func open(t *testing.T, side, url string) (*pg.Server, *pgx.Conn) {
	t.Helper()
	s, err := pg.New(pg.Config{Side: side, URL: url, RunID: "test", Mark: "mark"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := s.Connect(testContext(t), pg.Use{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return s, conn
}

func newSides(t *testing.T) *sides {
	t.Helper()
	a, b := testpg.Pair(t)
	return sidesOf(t, a, b)
}

func sidesOf(t *testing.T, a, b string) *sides {
	t.Helper()
	var s sides
	s.from, s.fromC = open(t, "source", a)
	s.to, s.toC = open(t, "target", b)
	return &s
}

func run(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(testContext(t), sql).ReadAll(); err != nil {
		t.Fatalf("running %.300s: %v", sql, err)
	}
}

// table reads the columns of public.name from a connection; key may be empty.
func table(t *testing.T, conn *pgx.Conn, name string, key ...string) scope.Table {
	t.Helper()
	rows, err := conn.Query(testContext(t), `SELECT attnum, attname::text, format_type(atttypid, atttypmod), atttypid, attnotnull FROM pg_attribute
		WHERE attrelid = ('public.' || $1::text)::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, name)
	if err != nil {
		t.Fatal(err)
	}
	out := scope.Table{ID: 1, Kind: scope.Plain, Data: scope.Live, Identity: scope.FullRow}
	out.Schema, out.Name.Name = "public", name
	var c scope.Column
	if _, err := pgx.ForEachRow(rows, []any{&c.Num, &c.Name, &c.Type, &c.TypeOID, &c.NotNull}, func() error {
		out.Columns = append(out.Columns, c)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(key) > 0 {
		out.Identity, out.Key = scope.ByKey, &scope.Key{}
		for _, k := range key {
			out.Key.Columns = append(out.Key.Columns, scope.KeyColumn{Name: k})
		}
	}
	return out
}

func compareAll(t *testing.T, s *sides, cfg Config) Result {
	t.Helper()
	cfg.From, cfg.To = s.from, s.to
	res, err := Run(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

const (
	wide = `CREATE TABLE public.t (id int PRIMARY KEY, a text, b text, f float8, n numeric, c char(5), v varchar, j jsonb, ts timestamptz, bin bytea, arr float8[], ch "char");`
	fill = `INSERT INTO public.t SELECT g, 'a' || g, 'b' || g, g / 7.0, 1.0, 'ab', NULLIF('v' || g % 10, 'v3'), '{"k": 1}', '2020-01-01 00:00+00'::timestamptz + g * interval '1 h', '\x00ff', ARRAY[0.1, g], 'x' FROM generate_series(1, 5000) g;`
)

func TestW1MutationsAreFound(t *testing.T) {
	cases := []struct {
		name, sql string
		want      []string
	}{
		{"control", "SELECT 1", nil},
		{"change", "UPDATE public.t SET a = 'z' WHERE id = 7", []string{"changed (7): a"}},
		{"delete", "DELETE FROM public.t WHERE id = 4999", []string{"missing (4999)"}},
		{"add", "INSERT INTO public.t (id) VALUES (90000)", []string{"extra (90000)"}},
		{"swap of one cell between rows", "UPDATE public.t SET a = CASE id WHEN 1 THEN 'a2' ELSE 'a1' END WHERE id IN (1, 2)", []string{"changed (1): a", "changed (2): a"}},
		{"swap of two cells in a row", "UPDATE public.t SET a = b, b = a WHERE id = 3", []string{"changed (3): a, b"}},
		{"swap of two rows", "UPDATE public.t SET id = CASE id WHEN 10 THEN -11 ELSE -10 END WHERE id IN (10, 11); UPDATE public.t SET id = -id WHERE id < 0", []string{"changed (10): a, b, f, v, ts, arr", "changed (11): a, b, f, v, ts, arr"}},
		{"NULL to empty", "UPDATE public.t SET v = '' WHERE id = 13", []string{"changed (13): v"}},
		{"empty to NULL", "UPDATE public.t SET a = NULL WHERE id = 14", []string{"changed (14): a"}},
		{"minus zero", "UPDATE public.t SET f = '-0' WHERE id = 5000", []string{"changed (5000): f"}},
		{"1.0 and 1.00", "UPDATE public.t SET n = 1.00 WHERE id = 20", []string{"changed (20): n"}},
		{"case", "UPDATE public.t SET a = 'A21' WHERE id = 21", []string{"changed (21): a"}},
		{"trailing blank", "UPDATE public.t SET a = 'a22 ' WHERE id = 22", []string{"changed (22): a"}},
		{"last digit of a float", "UPDATE public.t SET f = f + 1e-12 WHERE id = 23", []string{"changed (23): f"}},
		{"one bit", `UPDATE public.t SET bin = '\x00fe' WHERE id = 24`, []string{"changed (24): bin"}},
		{"key moved", "UPDATE public.t SET id = 70000 WHERE id = 25", []string{"extra (70000)", "missing (25)"}},
	}
	s := newSides(t)
	run(t, s.fromC, wide+fill)
	run(t, s.toC, wide+fill)
	run(t, s.fromC, "UPDATE public.t SET f = 0 WHERE id = 5000")
	run(t, s.toC, "UPDATE public.t SET f = 0 WHERE id = 5000; CREATE TABLE public.saved AS TABLE public.t")
	tbl := table(t, s.fromC, "t", "id")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			run(t, s.toC, "DELETE FROM public.t; INSERT INTO public.t TABLE public.saved; "+c.sql)
			res := compareAll(t, s, Config{Tables: []scope.Table{tbl}})
			if got := texts(res.Tables[0].Rows); !cmp.Equal(got, c.want) || res.Tables[0].Differs != (c.want != nil) {
				t.Errorf("found %v (%v), want %v", got, res.Tables[0].Differs, c.want)
			}
			count := compareAll(t, s, Config{Tables: []scope.Table{tbl}, Mode: Count})
			if want := c.name == "delete" || c.name == "add"; count.Tables[0].Differs != want {
				t.Errorf("counting finds a difference: %v, want %v", count.Tables[0].Differs, want)
			}
		})
	}
	t.Run("ten rows are named, and whether there are more", func(t *testing.T) {
		for _, rows := range []int{maxRows, 25} {
			run(t, s.toC, fmt.Sprintf("DELETE FROM public.t; INSERT INTO public.t TABLE public.saved; UPDATE public.t SET a = 'z' WHERE id <= %d", rows))
			got := compareAll(t, s, Config{Tables: []scope.Table{tbl}}).Tables[0]
			named := map[string]bool{}
			for id := range rows {
				named[fmt.Sprintf("changed (%d): a", id+1)] = false
			}
			for _, r := range got.Rows {
				if twice, known := named[r.String()]; twice || !known {
					t.Errorf("of %d changed rows it names %s", rows, r)
				}
				named[r.String()] = true
			}
			if len(got.Rows) != maxRows || got.More != (rows > maxRows) {
				t.Errorf("of %d changed rows %d are named, and more: %v", rows, len(got.Rows), got.More)
			}
		}
	})
}

// texts sorts differences by their text: the order is that of hash buckets.
func texts(rows []RowDifference) []string {
	var out []string
	for _, r := range rows {
		out = append(out, r.String())
	}
	for i := range out {
		for j := i; j > 0 && out[j] < out[j-1]; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

func TestTablesWithoutKey(t *testing.T) {
	cases := []struct {
		name, sql string
		want      []string
	}{
		{"control", "SELECT 1", nil},
		{"duplicate added", "INSERT INTO public.k VALUES (1, 'x')", []string{"extra (1,x)"}},
		{"duplicate lost", "DELETE FROM public.k WHERE ctid = (SELECT min(ctid) FROM public.k WHERE a = 1)", []string{"missing (1,x)"}},
		{"cells swapped between rows", "UPDATE public.k SET b = CASE a WHEN 2 THEN 'z' ELSE 'y' END WHERE a IN (2, 3)", []string{"extra (2,z)", "extra (3,y)", "missing (2,y)", "missing (3,z)"}},
		{"NULL and empty", "UPDATE public.k SET b = '' WHERE b IS NULL", []string{`extra (4,"")`, "missing (4,)"}},
	}
	s := newSides(t)
	for _, conn := range []*pgx.Conn{s.fromC, s.toC} {
		run(t, conn, "CREATE TABLE public.k (a int, b text); INSERT INTO public.k VALUES (1, 'x'), (1, 'x'), (2, 'y'), (3, 'z'), (4, NULL)")
	}
	run(t, s.toC, "CREATE TABLE public.saved AS TABLE public.k")
	tbl := table(t, s.fromC, "k")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			run(t, s.toC, "DELETE FROM public.k; INSERT INTO public.k TABLE public.saved; "+c.sql)
			res := compareAll(t, s, Config{Tables: []scope.Table{tbl}})
			if got := texts(res.Tables[0].Rows); !cmp.Equal(got, c.want) {
				t.Errorf("found %v, want %v", got, c.want)
			}
		})
	}
}

// D9: in the replica role, in which rows arrive, nothing enforces a deferrable key.
func TestD9DuplicatesOfADeferrableKey(t *testing.T) {
	s := newSides(t)
	for _, conn := range []*pgx.Conn{s.fromC, s.toC} {
		run(t, conn, "CREATE TABLE public.d (id int PRIMARY KEY DEFERRABLE, mail text UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO public.d VALUES (1, 'a'), (2, 'b')")
	}
	run(t, s.toC, "BEGIN; SET LOCAL session_replication_role = replica; INSERT INTO public.d VALUES (1, 'a'), (3, 'b'); COMMIT")
	res := compareAll(t, s, Config{Tables: []scope.Table{table(t, s.fromC, "d")}})
	if got, want := texts(res.Tables[0].Rows), []string{"extra (1,a)", "extra (3,b)"}; !cmp.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

// Physical order, column order, dropped columns, hostile settings and inheritance change nothing.
func TestSameRowsInAnotherShape(t *testing.T) {
	s := newSides(t)
	run(t, s.fromC, wide+fill)
	run(t, s.toC, `CREATE TABLE public.t (ch "char", gone int, arr float8[], bin bytea, ts timestamptz, j jsonb, v varchar, c char(5), n numeric, f float8, b text, a text, id int PRIMARY KEY);
		ALTER TABLE public.t DROP COLUMN gone;`)
	run(t, s.toC, strings.Replace(strings.Replace(fill, "INSERT INTO public.t", "INSERT INTO public.t (id, a, b, f, n, c, v, j, ts, bin, arr, ch)", 1), "g;", "g ORDER BY -g;", 1))
	run(t, s.toC, "CREATE TABLE public.heir (more int) INHERITS (public.t); INSERT INTO public.heir (id) VALUES (1)")
	for _, set := range []string{"DateStyle = 'SQL, DMY'", "IntervalStyle = sql_standard", "TimeZone = 'Asia/Tokyo'", "extra_float_digits = -10", "bytea_output = escape", "search_path = public", "array_nulls = off"} {
		run(t, s.toC, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET "+strings.ReplaceAll(set, "'", "''")+"', current_database()); END $$")
	}
	res := compareAll(t, s, Config{Tables: []scope.Table{table(t, s.fromC, "t", "id")}})
	if res.Tables[0].Differs || res.Rows != 5000 {
		t.Errorf("%+v", res.Tables[0])
	}
}

// A table is read in ranges when it is large; every row is in one of them.
func TestRanges(t *testing.T) {
	s := newSides(t)
	run(t, s.fromC, wide+fill)
	run(t, s.toC, wide+fill+"UPDATE public.t SET a = 'z' WHERE id IN (1, 2500, 5000); INSERT INTO public.t (id) VALUES (-7)")
	tbl := table(t, s.fromC, "t", "id")
	if err := s.fromC.QueryRow(testContext(t), "SELECT pg_table_size('public.t')").Scan(&tbl.Bytes); err != nil {
		t.Fatal(err)
	}
	var reported []TableResult
	res := compareAll(t, s, Config{Tables: []scope.Table{tbl}, PieceBytes: tbl.Bytes / 5, Workers: 3, Report: func(r TableResult) { reported = append(reported, r) }})
	want := []string{"changed (1): a", "changed (2500): a", "changed (5000): a", "extra (-7)"}
	if got := texts(res.Tables[0].Rows); !cmp.Equal(got, want) || res.Tables[0].FromRows != 5000 || res.Tables[0].ToRows != 5001 || len(reported) != 1 {
		t.Errorf("found %v in %d and %d rows, %d reports", got, res.Tables[0].FromRows, res.Tables[0].ToRows, len(reported))
	}
}

// watched gives passes that call before with their number, take From's snapshot, and call after.
func watched(t *testing.T, s *sides, before, after func(call int)) func(context.Context) (Snapshot, error) {
	t.Helper()
	run(t, s.toC, "CREATE SCHEMA pgrunbook; CREATE TABLE pgrunbook.watermark (from_side text PRIMARY KEY, pass uuid)")
	holder, calls := connectAgain(t, s.fromC), 0
	return func(ctx context.Context) (Snapshot, error) {
		calls++
		before(calls)
		id := fmt.Sprintf("00000000-0000-0000-0000-%012d", calls)
		run(t, s.toC, "INSERT INTO pgrunbook.watermark VALUES ('source', '"+id+"') ON CONFLICT (from_side) DO UPDATE SET pass = excluded.pass")
		run(t, holder, "BEGIN ISOLATION LEVEL REPEATABLE READ")
		var name string
		if err := holder.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&name); err != nil {
			return Snapshot{}, err
		}
		after(calls)
		return Snapshot{PassID: id, Exported: name, Release: func() { run(t, holder, "ROLLBACK") }}, nil
	}
}

// A rewrite after the snapshot makes it read nothing; the guard has it read again, and nothing else.
func TestW4RewriteBetweenSnapshotAndRead(t *testing.T) {
	s := newSides(t)
	const other = "CREATE TABLE public.u AS SELECT g AS id FROM generate_series(1, 100) g;"
	run(t, s.fromC, wide+fill+other)
	run(t, s.toC, wide+fill+other)
	calls, reported := 0, []string{}
	passes := watched(t, s, func(call int) { calls = call }, func(call int) {
		if call == 1 {
			run(t, s.fromC, "ALTER TABLE public.t ALTER COLUMN id TYPE int USING id + 0")
		}
	})
	res := compareAll(t, s, Config{Tables: []scope.Table{table(t, s.fromC, "t", "id"), table(t, s.fromC, "u")}, Pass: passes, Report: func(r TableResult) {
		reported = append(reported, fmt.Sprint(r.Name.Name, " in pass ", calls))
	}})
	if res.Tables[0].Differs || res.Rows != 5100 || calls != 2 || !cmp.Equal(reported, []string{"u in pass 1", "t in pass 2"}) {
		t.Errorf("%+v after %d passes: %v", res.Tables[0], calls, reported)
	}
}

// A table that is truncated during every pass is compared as of the pass: what counts is the time from its
// snapshot on.
func TestTruncatedDuringEachPass(t *testing.T) {
	s := newSides(t)
	run(t, s.fromC, wide+fill)
	run(t, s.toC, wide+fill)
	calls := 0
	passes := watched(t, s, func(call int) {
		calls = call
		for _, c := range []*pgx.Conn{s.fromC, s.toC} {
			run(t, c, "TRUNCATE public.t;"+fill)
		}
	}, func(int) {})
	if res := compareAll(t, s, Config{Tables: []scope.Table{table(t, s.fromC, "t", "id")}, Pass: passes}); res.Tables[0].Differs || res.Rows != 5000 || calls != 1 {
		t.Errorf("%+v after %d passes", res.Tables[0], calls)
	}
}

// One that never holds still is named, with what to do; others are compared all the same.
func TestNeverHoldsStill(t *testing.T) {
	s := newSides(t)
	const other = "CREATE TABLE public.u AS SELECT g AS id FROM generate_series(1, 100) g;"
	run(t, s.fromC, wide+other)
	run(t, s.toC, wide+other)
	reported := 0
	_, err := Run(testContext(t), Config{
		From: s.from, To: s.to, Tables: []scope.Table{table(t, s.fromC, "u"), table(t, s.fromC, "t", "id")},
		Pass:   watched(t, s, func(int) {}, func(int) { run(t, s.fromC, "TRUNCATE public.t") }),
		Report: func(TableResult) { reported++ },
	})
	var named *engine.Error
	if !errors.As(err, &named) || !errors.Is(err, errMoved) || named.Object != `"public"."t"` || named.Hint == "" || reported != 1 {
		t.Errorf("%d tables reported: %v", reported, err)
	}
}

func connectAgain(t *testing.T, conn *pgx.Conn) *pgx.Conn {
	t.Helper()
	c, err := pgx.ConnectConfig(testContext(t), conn.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return c
}

// A pass that somebody else made in between is not compared.
func TestW4AnotherPassIsNotTaken(t *testing.T) {
	s := newSides(t)
	run(t, s.fromC, wide)
	run(t, s.toC, wide+"CREATE SCHEMA pgrunbook; CREATE TABLE pgrunbook.watermark (from_side text PRIMARY KEY, pass uuid); INSERT INTO pgrunbook.watermark VALUES ('source', '00000000-0000-0000-0000-000000000001')")
	calls := 0
	_, err := Run(testContext(t), Config{From: s.from, To: s.to, Tables: []scope.Table{table(t, s.fromC, "t", "id")}, Pass: func(context.Context) (Snapshot, error) {
		calls++
		return Snapshot{PassID: "00000000-0000-0000-0000-000000000002"}, nil
	}})
	if err == nil || calls != maxAttempts {
		t.Errorf("after %d attempts: %v", calls, err)
	}
}

// Servers of different versions and encodings are compared by what they hold, not by its bytes.
func TestW3VersionsAndEncodings(t *testing.T) {
	old := testpg.NewDB(t, testpg.StartT(t, testpg.Options{Major: 12, Encoding: "LATIN1", Locale: "C"}))
	s := sidesOf(t, old, testpg.NewDB(t, testpg.Shared(t, 18)))
	const more = `INSERT INTO public.t (id, a, f, arr, ch) VALUES (-1, chr(233) || 't' || chr(233), 0.1, ARRAY[1e-7, 'NaN'], 'q');`
	run(t, s.fromC, wide+fill+more)
	run(t, s.toC, wide+fill+more)
	tbl := table(t, s.fromC, "t", "id")
	if res := compareAll(t, s, Config{Tables: []scope.Table{tbl}}); res.Tables[0].Differs || res.Rows != 5001 {
		t.Errorf("equal rows: %+v", res.Tables[0])
	}
	run(t, s.toC, `UPDATE public.t SET a = chr(232) || 't' || chr(233) WHERE id = -1`)
	if got := texts(compareAll(t, s, Config{Tables: []scope.Table{tbl}}).Tables[0].Rows); !cmp.Equal(got, []string{"changed (-1): a"}) {
		t.Errorf("found %v", got)
	}
}

// W2: hashes of text under a nondeterministic collation are those of its equality.
func TestW2NondeterministicCollation(t *testing.T) {
	s := newSides(t)
	const ddl = `CREATE COLLATION public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
		CREATE TABLE public.t (id int PRIMARY KEY, v text COLLATE public.ci); INSERT INTO public.t VALUES (1, 'a'), (2, 'b');`
	run(t, s.fromC, ddl)
	run(t, s.toC, ddl+"UPDATE public.t SET v = 'A' WHERE id = 1")
	tbl := table(t, s.fromC, "t", "id")
	if got := texts(compareAll(t, s, Config{Tables: []scope.Table{tbl}}).Tables[0].Rows); !cmp.Equal(got, []string{"changed (1): v"}) {
		t.Errorf("found %v", got)
	}
	m, err := choose(testContext(t), s.fromC, s.toC)
	if err != nil {
		t.Fatal(err)
	}
	sums := [2]string{}
	for i, conn := range []*pgx.Conn{s.fromC, s.toC} {
		pl := plan{table: tbl, m: m, byField: true}
		if err := conn.QueryRow(testContext(t), "SELECT sum("+pl.row()+")::text FROM "+pl.from()).Scan(&sums[i]); err != nil {
			t.Fatal(err)
		}
	}
	if sums[0] == sums[1] {
		t.Error("column by column, 'a' and 'A' have one sum")
	}
}

// Rows too large for one text are hashed column by column; the way there is tried on both sides.
func TestByField(t *testing.T) {
	s := newSides(t)
	run(t, s.fromC, wide+fill)
	run(t, s.toC, wide+fill)
	tbl := table(t, s.fromC, "t", "id")
	sum := func(conn *pgx.Conn) (out string) {
		m, err := choose(testContext(t), s.fromC, s.toC)
		if err != nil {
			t.Fatal(err)
		}
		pl := plan{table: tbl, m: m, byField: true}
		if err := conn.QueryRow(testContext(t), "SELECT sum("+pl.row()+")::text FROM "+pl.from()).Scan(&out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if a, b := sum(s.fromC), sum(s.toC); a != b {
		t.Fatalf("equal rows: %s and %s", a, b)
	}
	for _, sql := range []string{"UPDATE public.t SET a = b, b = a WHERE id = 3", "UPDATE public.t SET v = '' WHERE v IS NULL AND id = 13", "UPDATE public.t SET bin = NULL WHERE id = 1"} {
		before := sum(s.toC)
		run(t, s.toC, sql)
		if sum(s.toC) == before {
			t.Errorf("not seen: %s", sql)
		}
	}
}

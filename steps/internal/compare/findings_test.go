package compare

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// everyFloat has floats in every kind of type that a server without extensions can make of them.
const everyFloat = `
CREATE DOMAIN public.ratio AS float8; CREATE TYPE public.couple AS (a real, b text, c float8[]); CREATE TYPE public.span AS RANGE (subtype = float8);
CREATE TABLE public.t (id int PRIMARY KEY, r real, d float8, rs real[], ds float8[], p point, ps point[], l lseg, b box, pa path, po polygon, ci circle, li line,
  ra public.ratio, co public.couple, sp public.span, plain numeric);
INSERT INTO public.t SELECT g, x, x, ARRAY[x, NULL], ARRAY[x, 'NaN'], point(x, -x), ARRAY[point(x, 0)], lseg(point(x, 0), point(0, x)), box(point(x, x), point(0, 0)),
  path(polygon(box(point(x, x), point(0, 0)))), polygon(box(point(x, x), point(0, 0))), circle(point(x, 0), x), line(point(0, x), point(x, 0)),
  x, ROW(x, 'b', ARRAY[x])::public.couple, public.span(0, x), 1.0
  FROM (SELECT g, 1 / (g + 2.0::float8) AS x FROM generate_series(1, 500) g) s;
INSERT INTO public.t (id, r, d) VALUES (-1, 'Infinity', '-0'), (-2, NULL, 'NaN'), (-3, 1e-45, 5e-324);`

// W6: servers before 12 print floats with other digits, alone and inside of other types.
func TestW6FloatsBeforeTwelve(t *testing.T) {
	s := sidesOf(t, testpg.NewDB(t, testpg.Shared(t, 10)), testpg.NewDB(t, testpg.Shared(t, 18)))
	run(t, s.fromC, everyFloat)
	run(t, s.toC, everyFloat)
	var texts2 [2]string
	for i, conn := range []*pgx.Conn{s.fromC, s.toC} {
		if err := conn.QueryRow(testContext(t), "SELECT t::text FROM public.t WHERE id = 1").Scan(&texts2[i]); err != nil {
			t.Fatal(err)
		}
	}
	if texts2[0] == texts2[1] {
		t.Fatalf("both sides print the row as %s: nothing is to be proved", texts2[0])
	}
	rb, diags := runbook.Parse("t.runbook.hcl", []byte(`runbook "t" {}
source { url = "postgresql://a.example.com/x" }
target { url = "postgresql://b.example.com/x" }
tables { include = ["public.*"] }`), runbook.Options{})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	sc, _, err := scope.Resolve(testContext(t), scope.Input{Source: s.fromC, Runbook: rb})
	if err != nil {
		t.Fatal(err)
	}
	if res := compareAll(t, s, Config{Tables: sc.Tables}); len(res.Tables) != 1 || res.Tables[0].Differs || res.Rows != 503 {
		t.Fatalf("equal rows: %+v", res.Tables)
	}
	// The least differences that there are.
	run(t, s.toC, "UPDATE public.t SET d = d + 5e-17 WHERE id = 1; UPDATE public.t SET d = 0 WHERE id = -1; UPDATE public.t SET p = point(p[0] + 5e-17, p[1]), ra = ra + 5e-17 WHERE id = 2; UPDATE public.t SET r = 0 WHERE id = -3")
	want := []string{"changed (-1): d", "changed (-3): r", "changed (1): d", "changed (2): p, ra"}
	if got := texts(compareAll(t, s, Config{Tables: sc.Tables}).Tables[0].Rows); !cmp.Equal(got, want) {
		t.Errorf("found %v", got)
	}
}

// C6: a verification of everything under one snapshot would hold the source's oldest xmin for as long
// as it takes. Each batch has its own, and the one before is given up first.
func TestC6NoSnapshotForTheWholeDatabase(t *testing.T) {
	s := newSides(t)
	const ddl = `CREATE TABLE public.a (id int PRIMARY KEY, v text); INSERT INTO public.a SELECT g, repeat('a', 100) FROM generate_series(1, 3000) g;
		CREATE TABLE public.b AS TABLE public.a; CREATE TABLE public.c AS TABLE public.a;`
	run(t, s.fromC, ddl)
	run(t, s.toC, ddl+"CREATE SCHEMA pgrunbook; CREATE TABLE pgrunbook.watermark (from_side text PRIMARY KEY, pass uuid)")
	tables := []scope.Table{table(t, s.fromC, "a", "id"), table(t, s.fromC, "b"), table(t, s.fromC, "c")}
	for i := range tables {
		tables[i].Bytes = 400 << 10
	}
	var horizons []int64 // the oldest transaction that our sessions keep, at the beginning of each pass
	holder, calls, held := connectAgain(t, s.fromC), 0, false
	passes := func(ctx context.Context) (Snapshot, error) {
		if held {
			t.Error("a pass begins while the snapshot of the one before is held")
		}
		var oldest int64
		if err := s.fromC.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%verify%' AND datname = current_database() AND backend_xmin IS NOT NULL").Scan(&oldest); err != nil {
			return Snapshot{}, err
		}
		horizons = append(horizons, oldest)
		calls++
		id := fmt.Sprintf("00000000-0000-0000-0000-%012d", calls)
		run(t, s.toC, "INSERT INTO pgrunbook.watermark VALUES ('source', '"+id+"') ON CONFLICT (from_side) DO UPDATE SET pass = excluded.pass")
		run(t, holder, "BEGIN ISOLATION LEVEL REPEATABLE READ")
		var name string
		if err := holder.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&name); err != nil {
			return Snapshot{}, err
		}
		held = true
		return Snapshot{PassID: id, Exported: name, Release: func() {
			if held {
				run(t, holder, "ROLLBACK")
			}
			held = false
		}}, nil
	}
	const piece = 100 << 10 // a quarter of a table: those with a key go by ranges
	res := compareAll(t, s, Config{Tables: tables, PieceBytes: piece, Workers: 2, Pass: passes})
	if len(res.Differing()) > 0 || res.Rows != 9000 {
		t.Errorf("%+v", res)
	}
	if calls < 4 || held {
		t.Errorf("%d snapshots for all, the last one held: %v", calls, held)
	}
	for n, oldest := range horizons {
		if oldest > 0 {
			t.Errorf("%d sessions still see the rows of an earlier batch when number %d begins", oldest, n+1)
		}
	}
}

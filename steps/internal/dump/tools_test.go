package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// program writes a shell script that stands in for one of PostgreSQL's programs.
func program(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestChoosesTools(t *testing.T) {
	all := []Tools{{Dir: "14", Major: 14, Minor: 1}, {Dir: "18a", Major: 18, Minor: 1}, {Dir: "16", Major: 16}, {Dir: "18b", Major: 18, Minor: 4}, {Dir: "17", Major: 17}}
	cases := []struct {
		source, target int
		want           string
	}{{12, 18, "18b"}, {15, 16, "16"}, {16, 14, "16"}, {17, 14, "18b"}, {12, 15, "16"}, {18, 15, "18b"}, {14, 14, "14"}, {19, 19, ""}}
	for _, c := range cases {
		if got := choose(all, max(c.source, oldestMajor), c.target).Dir; got != c.want {
			t.Errorf("from %d to %d: %q, want %q", c.source, c.target, got, c.want)
		}
	}
}

func TestFindSaysWhatToInstall(t *testing.T) {
	dir := t.TempDir()
	program(t, dir, "pg_dump", "echo 'pg_dump (PostgreSQL) 15.3'")
	program(t, dir, "pg_restore", "echo 'pg_restore (PostgreSQL) 15.3'")
	t.Setenv("PATH", dir)
	t.Setenv(binDirsVar, "")
	_, err := Find(t.Context(), 99, 99)
	if hint := engine.HintOf(err); !strings.Contains(hint, "postgresql-client-99") || !strings.Contains(hint, binDirsVar) {
		t.Errorf("got %v, hint %q", err, hint)
	}
	found, ok := toolsIn(t.Context(), dir)
	if want := (Tools{Dir: dir, Major: 15, Minor: 3, Version: "15.3"}); !ok || found != want {
		t.Errorf("found %+v", found)
	}
	t.Setenv(binDirsVar, filepath.Join(dir, "missing"))
	if _, err := Find(t.Context(), 15, 15); engine.HintOf(err) == "" {
		t.Errorf("a directory that is not there gives %v", err)
	}
}

// TestVersionIsAskedOnce: and again, once the programs are others.
func TestVersionIsAskedOnce(t *testing.T) {
	dir, count := t.TempDir(), filepath.Join(t.TempDir(), "count")
	write := func(minor string, at time.Time) {
		for _, name := range []string{"pg_dump", "pg_restore"} {
			program(t, dir, name, "echo >> '"+count+"'; echo '"+name+" (PostgreSQL) 77."+minor+"'")
			if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	look := func(minor int, asked int) {
		t.Helper()
		found, ok := toolsIn(t.Context(), dir)
		said, err := os.ReadFile(count)
		if err != nil || !ok || found.Minor != minor || len(said) != asked {
			t.Errorf("found %+v, asked %d times (%v), want minor %d, %d times", found, len(said), err, minor, asked)
		}
	}
	write("1", time.Unix(1e9, 0))
	look(1, 1)
	look(1, 1)
	write("2", time.Unix(2e9, 0))
	look(2, 2)
}

// TestDebiansWrapperIsNoProgram: on PATH it would stand for one of those that are found beside it.
func TestDebiansWrapperIsNoProgram(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"pg_dump", "pg_restore"} {
		program(t, dir, name, "echo '"+name+" (PostgreSQL) 77.1'")
	}
	t.Setenv("PATH", dir)
	t.Setenv(binDirsVar, "")
	if found, err := Find(t.Context(), 77, 77); err != nil || found.Dir != dir {
		t.Errorf("the program on PATH: %+v, %v", found, err)
	}
	program(t, dir, debianWrapper, "echo 'pg_dump (PostgreSQL) 77.1'")
	for _, name := range []string{"pg_dump", "pg_restore"} {
		if err := errors.Join(os.Remove(filepath.Join(dir, name)), os.Symlink(debianWrapper, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := Find(t.Context(), 77, 77); err == nil {
		t.Errorf("the wrapper was taken for a program: %+v", found)
	}
}

// The password reaches the program by its environment alone, and an end kills its children too.
func TestProgramsGetNoPasswordAndDieWithUs(t *testing.T) {
	dir := t.TempDir()
	program(t, dir, "pg_dump", fmt.Sprintf(`echo "$@" > %[1]s/args; env > %[1]s/env; sleep 1000 & echo $! > %[1]s/child; wait`, dir))
	cluster := testpg.Shared(t, 15)
	if err := cluster.Exec(testContext(t), "postgres", `CREATE ROLE "al ice" LOGIN PASSWORD 's3cr et'`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Exec(context.Background(), "postgres", `DROP ROLE "al ice"`) })
	port := strconv.Itoa(cluster.Port)
	s, err := pg.New(pg.Config{Side: "source", URL: "postgresql://al%20ice:s3cr%20et@/postgres?host=127.0.0.1&port=" + port + "&sslmode=disable", RunID: "r"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Dump(ctx, Tools{Dir: dir, Major: 18}, s, Options{Scope: &scope.Scope{}})
		done <- err
	}()
	child := waitFor(t, filepath.Join(dir, "child"), done)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for _, err := os.Stat("/proc/" + child); err == nil; _, err = os.Stat("/proc/" + child) {
		if st, _ := os.ReadFile("/proc/" + child + "/stat"); strings.Contains(string(st), ") Z ") {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("the child lives on")
		}
		time.Sleep(10 * time.Millisecond)
	}
	args, env := waitFor(t, filepath.Join(dir, "args"), nil), waitFor(t, filepath.Join(dir, "env"), nil)
	if strings.Contains(args, "s3cr") || strings.Contains(args, "al ice") {
		t.Errorf("arguments are %s", args)
	}
	for _, want := range []string{"PGPASSWORD=s3cr et\n", "PGUSER=al ice\n", "PGHOST=127.0.0.1\n", "PGPORT=" + port + "\n", "PGDATABASE=postgres\n", "PGSSLMODE=disable\n", "PGAPPNAME=pgrunbook r dump"} {
		if !strings.Contains(env+"\n", want) {
			t.Errorf("%q is not in the environment:\n%s", want, env)
		}
	}
}

// waitFor reads a file that a program writes; it ends with the program's own end.
func waitFor(t *testing.T, path string, ended <-chan error) string {
	t.Helper()
	for {
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
			return strings.TrimSpace(string(b))
		}
		select {
		case err := <-ended:
			t.Fatalf("the program ended before it wrote %s: %v", path, err)
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestParseList(t *testing.T) {
	got, err := parseList(`;
; Archive created at 2026-11-20
215; 1259 16386 TABLE public a b c "owner"
3197; 2606 16390 FK CONSTRAINT erp child child_fk postgres
;	depends on: 215 7
3; 0 0 COMMENT erp INDEX child_v postgres
;	depends on: 3197
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{DumpID: 215, Class: 1259, OID: 16386, Kind: "TABLE", Label: `public a b c "owner"`},
		{DumpID: 3197, Class: 2606, OID: 16390, Kind: "FK CONSTRAINT", Label: "erp child child_fk postgres", Deps: []int{215, 7}},
		{DumpID: 3, Kind: "COMMENT", Label: "erp INDEX child_v postgres", Deps: []int{3197}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !commentOfObject(got[2]) {
		t.Error("a comment on an index was not recognised")
	}
	for _, bad := range []string{"x", "1; 2", "1; 2 3", "a; 2 3 TABLE"} {
		if _, err := parseList(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

// Rows travel by pg_dump past a closed door that the mark opens, whatever the tables are called; also by programs of 17 and
// later to an older target, which refuses a setting of theirs in each of their sessions.
func TestDataTravels(t *testing.T) {
	for _, majors := range [][2]int{{15, 18}, {18, 12}} {
		t.Run(fmt.Sprintf("%d to %d", majors[0], majors[1]), func(t *testing.T) { dataTravels(t, majors[0], majors[1]) })
	}
}

func dataTravels(t *testing.T, from, to int) {
	tl := tools(t, from, to)
	src, dst := server(t, from, "source"), server(t, to, "target")
	sconn, dconn := connect(t, src), connect(t, dst)
	const define = `CREATE SCHEMA "s.x"; CREATE TABLE "s.x"."T ""a""*?" (id int, v text);
		CREATE TABLE public.p (id int) PARTITION BY LIST (id); CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES IN (1);`
	run(t, sconn, define+`INSERT INTO "s.x"."T ""a""*?" SELECT g, E'tab\t\\N' FROM generate_series(1, 100) g; INSERT INTO public.p VALUES (1), (1)`)
	run(t, dconn, define+`CREATE FUNCTION public.door() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'closed'; END $$;
		CREATE TRIGGER door BEFORE INSERT ON "s.x"."T ""a""*?" FOR EACH STATEMENT WHEN (current_setting('pgrunbook.mark', true) IS DISTINCT FROM 'ma rk\x') EXECUTE FUNCTION public.door();
		ALTER TABLE "s.x"."T ""a""*?" ENABLE ALWAYS TRIGGER door`)
	o := DataOptions{Jobs: 2, TargetMajor: to, Dir: t.TempDir(), ReplicaRole: true, Tables: []scope.Table{
		{Name: scope.Name{Schema: "s.x", Name: `T "a"*?`}},
		{Name: scope.Name{Schema: "public", Name: "p"}, Kind: scope.Partitioned, Members: []scope.Member{{Name: scope.Name{Schema: "public", Name: "p1"}, Leaf: true}}},
	}}
	d, err := DumpData(testContext(t), tl, src, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if err := d.Restore(testContext(t), dst, o); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("without the mark: %v", err)
	}
	run(t, dconn, "TRUNCATE public.p")
	o.Mark = `ma rk\x`
	if err := d.Restore(testContext(t), dst, o); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := dconn.QueryRow(testContext(t), `SELECT count(*) || ' ' || min(v) || ' ' || (SELECT count(*) FROM public.p) FROM "s.x"."T ""a""*?"`).Scan(&got); err != nil || got != "100 tab\t\\N 2" {
		t.Errorf("arrived: %q %v", got, err)
	}
}

// Views that read materialized views through views are refreshed in an order that works.
func TestMatviewsInOrder(t *testing.T) {
	src := server(t, 15, "source")
	conn := connect(t, src)
	run(t, conn, `CREATE TABLE public.t (id int); CREATE MATERIALIZED VIEW public.z AS SELECT 1 AS id; CREATE VIEW public.y AS SELECT id FROM public.z;
		CREATE MATERIALIZED VIEW public.b AS SELECT id FROM public.t; CREATE MATERIALIZED VIEW public.a AS SELECT id FROM public.y;
		CREATE MATERIALIZED VIEW public.empty AS SELECT id FROM public.t WITH NO DATA;
		CREATE OR REPLACE VIEW public.y AS SELECT z.id FROM public.z JOIN public.b USING (id)`)
	list, err := Matviews(testContext(t), conn, &scope.Scope{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range list {
		names = append(names, m.Name.Name)
	}
	if got := strings.Join(names, " "); got != "z b a" {
		t.Errorf("order is %s", got)
	}
}

func TestExcludedTablesTakeAlongWhatNeedsThem(t *testing.T) {
	src := server(t, 15, "source")
	conn := connect(t, src)
	run(t, conn, hostile)
	sc := &scope.Scope{ExcludedSchemas: []string{"tmp"}, ExcludedTables: []scope.Name{{Schema: "erp", Name: "part_a"}}}
	got, err := NotCarried(testContext(t), conn, sc)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(got, "\n")
	for _, want := range []string{"view erp.over_scratch", "view erp.over_over", "constraint to_scratch_id_fkey on table erp.to_scratch"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not named in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "erp.child") || strings.Contains(text, "erp.part ") {
		t.Errorf("too much is named:\n%s", text)
	}
	sc.Tables = []scope.Table{{Name: scope.Name{Schema: "erp", Name: "kid"}}}
	sc.ExcludedTables = []scope.Name{{Schema: "erp", Name: "base"}}
	if _, err := NotCarried(testContext(t), conn, sc); err == nil || !strings.Contains(err.Error(), "erp.kid") {
		t.Errorf("a table whose parent is excluded gives %v", err)
	}
}

// What a broken CONCURRENTLY left is replaced, and rows that break a unique index are named.
func TestBrokenBuildsAreDoneAgain(t *testing.T) {
	dst := server(t, 18, "target")
	conn := connect(t, dst)
	run(t, conn, "CREATE TABLE public.t (id int); INSERT INTO public.t VALUES (1), (1)")
	o := Object{Kind: Unique, Name: "t_id", Table: scope.Name{Schema: "public", Name: "t"}, SQL: []string{"CREATE UNIQUE INDEX t_id ON public.t (id)"}, Constraint: `ALTER TABLE public.t ADD CONSTRAINT t_id UNIQUE USING INDEX t_id`}
	b := &Builder{Target: dst}
	for range 2 {
		err := b.Ensure(testContext(t), conn, o, true)
		if pg.SQLState(err) != "23505" || !strings.Contains(engine.HintOf(err), "(id)=(1)") || !strings.Contains(err.Error(), "unique t_id on public.t") {
			t.Fatalf("got %v, hint %q", err, engine.HintOf(err))
		}
	}
	run(t, conn, "DELETE FROM public.t WHERE ctid = '(0,1)'")
	for range 2 {
		if err := b.Ensure(testContext(t), conn, o, true); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := stateOf(testContext(t), conn, o); st != complete || err != nil {
		t.Errorf("state %v, %v", st, err)
	}
	run(t, conn, "ALTER TABLE public.t DROP CONSTRAINT t_id; CREATE UNIQUE INDEX t_id ON public.t (id)")
	if st, err := stateOf(testContext(t), conn, o); st != partly || err != nil {
		t.Errorf("an index without its constraint has state %v, %v", st, err)
	}
	if err := b.Ensure(testContext(t), conn, o, false); err != nil {
		t.Error(err)
	}
}

// A second cutover finds some of the statements done, a target of somebody else's lacks objects.
func TestFlipStatementsLookFirst(t *testing.T) {
	src, dst := server(t, 15, "source"), server(t, 18, "target")
	sconn, dconn := connect(t, src), connect(t, dst)
	const define = `CREATE TABLE public.t (id int); CREATE DOMAIN public.d AS int; CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
		CREATE TRIGGER a AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f();`
	run(t, dconn, define)
	run(t, sconn, define+`ALTER TABLE public.t ENABLE ALWAYS TRIGGER a; ALTER TABLE public.t ADD CONSTRAINT pos CHECK (id > 0) NOT VALID; ALTER DOMAIN public.d ADD CONSTRAINT dpos CHECK (VALUE > 0) NOT VALID;
		CREATE TRIGGER elsewhere AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f(); ALTER TABLE public.t ENABLE REPLICA TRIGGER elsewhere`)
	for _, want := range []int{3, 0} {
		list, err := FlipStatements(testContext(t), sconn, dconn, &scope.Scope{}, false)
		if err != nil || len(list) != want {
			t.Fatalf("%d statements, want %d: %q %v", len(list), want, list, err)
		}
		for _, sql := range list {
			run(t, dconn, sql)
		}
	}
}

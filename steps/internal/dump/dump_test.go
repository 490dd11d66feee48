package dump

import (
	"context"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// server opens a side on a fresh database of a major.
func server(t *testing.T, major int, side string) *pg.Server {
	t.Helper()
	s, err := pg.New(pg.Config{Side: side, URL: testpg.NewDB(t, testpg.Shared(t, major)), RunID: "test", Mark: "mark"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t *testing.T, s *pg.Server) *pgx.Conn {
	t.Helper()
	conn, err := s.Connect(testContext(t), pg.Use{Name: "test", Marked: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(testContext(t), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("running %.200s: %v", sql, err)
	}
}

// tools finds clients for a pair of majors.
func tools(t *testing.T, source, target int) Tools {
	t.Helper()
	dir, err := testpg.ClientBinDir(testContext(t), max(source, target))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(binDirsVar, dir)
	found, err := Find(testContext(t), source, target)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

//go:embed testdata/hostile.sql
var hostile string

// qualifier is what newer servers leave out when they print a view of one table.
var qualifier = regexp.MustCompile(`\b(child|parent|p)\.`)

// definitions is pg_dump's text of a database, line by line, sorted, without what cannot be equal.
func definitions(t *testing.T, tl Tools, s *pg.Server) []string {
	t.Helper()
	out, err := tl.run(testContext(t), session{server: s, name: "definitions"}, "pg_dump", "--schema-only", "--no-publications",
		"--exclude-schema=pgrunbook", "--exclude-schema=tmp", "--exclude-table=erp.over_scratch", "--exclude-table=erp.over_over")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		if line == "" || strings.HasPrefix(line, "--") || strings.HasPrefix(line, "\\") || strings.Contains(line, "scratch_id_fkey") || line == "ALTER TABLE ONLY erp.to_scratch" {
			continue
		}
		lines = append(lines, qualifier.ReplaceAllString(line, ""))
	}
	slices.Sort(lines)
	return lines
}

// carry does what the schema and constraints phases do, without rows.
func carry(t *testing.T, tl Tools, src, dst *pg.Server, sc *scope.Scope, o RestoreOptions) *Archive {
	t.Helper()
	ctx := testContext(t)
	a, err := Dump(ctx, tl, src, Options{Scope: sc})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	if err := a.Restore(ctx, dst, a.Pre, o); err != nil {
		t.Fatal(err)
	}
	return a
}

func afterRows(t *testing.T, a *Archive, src, dst *pg.Server, sc *scope.Scope, o RestoreOptions) []Object {
	t.Helper()
	ctx := testContext(t)
	sconn, dconn := connect(t, src), connect(t, dst)
	objects, err := PostData(ctx, sconn, sc)
	if err != nil {
		t.Fatal(err)
	}
	objects = WithRoles(objects, func(role string) (string, bool) { return role, true })
	b := &Builder{Target: dst, Objects: objects, Parallel: 2}
	for range 2 { // the second time finds everything there
		if err := b.EnsureAll(ctx, Pick(objects, func(o Object) bool { return o.isIndex() && !o.Late }), true); err != nil {
			t.Fatal(err)
		}
		broken, err := b.EnsureForeignKeys(ctx, Pick(objects, func(o Object) bool { return o.Kind == ForeignKey }))
		if err != nil || len(broken) > 0 {
			t.Fatal(broken, err)
		}
		rest, err := a.Rest(ctx, sconn, dconn)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Restore(ctx, dst, rest, o); err != nil {
			t.Fatal(err)
		}
		if err := b.EnsureAll(ctx, Pick(objects, func(o Object) bool { return o.Late }), false); err != nil {
			t.Fatal(err)
		}
		if err := b.EnsureAll(ctx, Pick(objects, func(o Object) bool { return !o.isIndex() && o.Kind != ForeignKey }), false); err != nil {
			t.Fatal(err)
		}
	}
	return objects
}

func TestStructureArrivesWhole(t *testing.T) {
	for _, majors := range testpg.Some([2]int{12, 18}, [2]int{15, 18}, [2]int{15, 15}) {
		t.Run(fmt.Sprintf("%d to %d", majors[0], majors[1]), func(t *testing.T) {
			tl := tools(t, majors[0], majors[1])
			src, dst := server(t, majors[0], "source"), server(t, majors[1], "target")
			sconn, dconn := connect(t, src), connect(t, dst)
			run(t, sconn, hostile)
			sc := &scope.Scope{
				ExcludedSchemas: []string{"tmp"},
				Tables:          []scope.Table{{Name: scope.Name{Schema: "erp", Name: "child"}, Key: &scope.Key{Index: scope.Name{Schema: "erp", Name: "child_pk"}}}},
			}
			o := RestoreOptions{Mark: "mark", TargetMajor: majors[1], OneTx: true}
			a := carry(t, tl, src, dst, sc, o)
			var late int
			if err := dconn.QueryRow(testContext(t), `SELECT (SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace::regnamespace::text = 'erp')
				+ (SELECT count(*) FROM pg_constraint WHERE contype IN ('p', 'u', 'x', 'f') AND connamespace::regnamespace::text = 'erp')
				+ (SELECT count(*) FROM pg_trigger)`).Scan(&late); err != nil || late != 0 {
				t.Fatalf("%d keys, indexes or triggers before the rows (%v)", late, err)
			}
			objects := afterRows(t, a, src, dst, sc, o)
			var always string
			if err := dconn.QueryRow(testContext(t), "SELECT string_agg(tgname || tgenabled::text, ' ' ORDER BY tgname) FROM pg_trigger WHERE tgname IN ('t_always', 't_off', 't_touch')").Scan(&always); err != nil {
				t.Fatal(err)
			}
			if want := "t_alwaysD t_offD t_touchO"; always != want {
				t.Errorf("before the flip triggers are %q, want %q", always, want)
			}
			for _, sql := range AtFlip(objects) {
				run(t, dconn, sql)
			}
			if diff := cmp.Diff(definitions(t, tl, src), definitions(t, tl, dst)); diff != "" {
				t.Errorf("definitions differ (-source +target):\n%s", diff)
			}
		})
	}
}

func TestPoliciesAreForTheTargetsRoles(t *testing.T) {
	policy := func(roles ...string) Object {
		return Object{Kind: Policy, Name: "p", SQL: []string{"x", "COMMENT"}, policy: &policyRoles{head: "H TO ", roles: roles, tail: " USING (a)"}}
	}
	got := WithRoles([]Object{policy("old", "", "gone"), policy("gone"), {Kind: Statistics, Name: "s.t", SQL: []string{"CREATE"}, owner: "old"}}, func(role string) (string, bool) {
		return "new", role == "old"
	})
	if want := []string{`H TO "new", PUBLIC USING (a)`, "COMMENT"}; !slices.Equal(got[0].SQL, want) {
		t.Errorf("got %q", got[0].SQL)
	}
	if got[1].NotCarried == "" {
		t.Error("a policy without roles was made")
	}
	if want := []string{"CREATE", `ALTER STATISTICS s.t OWNER TO "new"`}; !slices.Equal(got[2].SQL, want) {
		t.Errorf("got %q", got[2].SQL)
	}
}

package dump

import (
	"context"
	"testing"
	"time"

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
		t.Fatalf("running %s: %v", sql, err)
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

func TestX(t *testing.T) {
	ctx := testContext(t)
	tl := tools(t, 15, 18)
	t.Log(tl)
	src, dst := server(t, 15, "source"), server(t, 15, "target")
	run(t, connect(t, src), "create table public.a(id int primary key)")
	a, err := Dump(ctx, tl, src, Options{Scope: &scope.Scope{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(a.Pre, a.Post)
	t.Log(a.Restore(ctx, dst, a.Pre, RestoreOptions{Mark: "x", OneTx: true, TargetMajor: 15}))
}

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pgrunbook/pgrunbook/internal/schematest"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// clusters are the two servers that scripts share, started by the first one that asks.
var clusters struct {
	sync.Mutex
	source, target *testpg.Cluster
}

// tests removes the servers before testscript ends the process.
type tests struct{ m *testing.M }

func (t tests) Run() int {
	code := t.m.Run()
	for _, c := range []*testpg.Cluster{clusters.source, clusters.target} {
		if c == nil {
			continue
		}
		if err := c.Remove(); err != nil {
			fmt.Fprintln(os.Stderr, "removing a test cluster:", err)
			code = max(code, 1)
		}
	}
	return code
}

// checked looks for what the tests left behind.
type checked struct{ tests }

func (c checked) Run() int { return testpg.Run(c.tests) }

func TestMain(m *testing.M) {
	testscript.Main(checked{tests{m}}, map[string]func(){"pgrunbook": scripted})
}

func TestScripts(t *testing.T) { runScripts(t, "testdata/script") }

// TestLongScripts plays what the short form of make test leaves out.
func TestLongScripts(t *testing.T) { runScripts(t, "testdata/full") }

func runScripts(t *testing.T, dir string) {
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		WorkdirRoot:         t.TempDir(), // its own is left behind where -run picks some
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			// A developer's own servers must not be met.
			e.Setenv("PGSERVICEFILE", e.WorkDir+"/no-services")
			e.Setenv("HOME", e.WorkDir)
			if dirs, ok := os.LookupEnv("PGRUNBOOK_PG_BIN_DIRS"); ok {
				e.Setenv("PGRUNBOOK_PG_BIN_DIRS", dirs)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"databases": databases,
			"services":  services,
			"sql":       runSQL,
			"exits":     exits,
			"fits":      fits,
			"mode":      mode,
			"waitfor":   waitFor,
			"appears":   appears,
		},
	})
}

var databaseCount atomic.Int64

// databases makes a database on both servers and puts their addresses into SOURCE_URL and
// TARGET_URL.
func databases(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	clusters.Lock()
	defer clusters.Unlock()
	source, target, err := testpg.PairMajors()
	ts.Check(err)
	if clusters.source == nil {
		clusters.source, err = testpg.Start(ctx, testpg.Options{Major: source, Auth: "scram", Password: "hunter22"})
		ts.Check(err)
		clusters.target, err = testpg.Start(ctx, testpg.Options{Major: target, Auth: "scram", Password: "hunter22"})
		ts.Check(err)
	}
	name := fmt.Sprintf("script%d", databaseCount.Add(1))
	for env, c := range map[string]*testpg.Cluster{"SOURCE_URL": clusters.source, "TARGET_URL": clusters.target} {
		ts.Check(c.Exec(ctx, "postgres", "CREATE DATABASE "+name))
		ts.Setenv(env, c.URL(name, c.Superuser))
		ts.Defer(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := c.DropDB(ctx, name); err != nil {
				ts.Logf("dropping %s: %v", name, err)
			}
		})
	}
}

// services writes SOURCE_URL and TARGET_URL as two services into the file that PGSERVICEFILE names:
// services OLD NEW.
func services(ts *testscript.TestScript, _ bool, args []string) {
	var text strings.Builder
	for i, variable := range []string{"SOURCE_URL", "TARGET_URL"} {
		at, err := pgx.ParseConfig(ts.Getenv(variable))
		ts.Check(err)
		fmt.Fprintf(&text, "[%s]\nhost=%s\nport=%d\ndbname=%s\nuser=%s\npassword=%s\nsslmode=disable\n", args[i], at.Host, at.Port, at.Database, at.User, at.Password)
	}
	ts.Check(os.WriteFile(ts.Getenv("PGSERVICEFILE"), []byte(text.String()), 0o600))
}

// runSQL runs a statement on SOURCE_URL or TARGET_URL; with a second argument the first value of
// its result must be that text.
func runSQL(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: sql source|target STATEMENT [VALUE]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := testpg.Connect(ctx, ts.Getenv(strings.ToUpper(args[0])+"_URL"))
	ts.Check(err)
	defer conn.Close(ctx)
	results, err := conn.PgConn().Exec(ctx, args[1]).ReadAll()
	if neg {
		if err == nil {
			ts.Fatalf("%s succeeded", args[1])
		}
		return
	}
	ts.Check(err)
	if len(args) < 3 {
		return
	}
	got := ""
	if last := results[len(results)-1]; len(last.Rows) > 0 {
		got = string(last.Rows[0][0])
	}
	if got != args[2] {
		ts.Fatalf("%s gives %q, want %q", args[1], got, args[2])
	}
}

// exits runs pgrunbook and compares its exit code: exits 4 validate x.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec("pgrunbook", args[1:]...)
	code := "0"
	if err != nil {
		code = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if code != args[0] {
		ts.Fatalf("exit code is %s, want %s", code, args[0])
	}
}

// fits holds every line of stdout to the published schema, and wants lines of these types among them:
// fits plan summary. A stream begins with its version and ends with its summary.
func fits(ts *testscript.TestScript, _ bool, args []string) {
	types, err := schematest.Lines(ts.ReadFile("stdout"))
	ts.Check(err)
	for _, want := range args {
		if !slices.Contains(types, want) {
			ts.Fatalf("no line is of type %s, they are of %v", want, types)
		}
	}
	if len(types) > 1 && (types[0] != "version" || types[len(types)-1] != "summary") {
		ts.Fatalf("the stream is of %v", types)
	}
}

// mode compares a file's permission bits: mode 600 FILE.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("mode is %s, want %s", got, args[0])
	}
}

// waitFor asks the target until a statement gives a value; a table that is not there yet gives none.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := testpg.Connect(ctx, ts.Getenv("TARGET_URL"))
	ts.Check(err)
	defer conn.Close(ctx)
	for {
		results, err := conn.PgConn().Exec(ctx, args[0]).ReadAll()
		if err == nil && len(results[0].Rows) > 0 && string(results[0].Rows[0][0]) == args[1] {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%s never gave %s", args[0], args[1])
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// appears waits until a file has a text: appears FILE TEXT.
func appears(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && strings.Contains(string(text), args[1]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s never had %q:\n%s", args[0], args[1], text)
		}
	}
}

package examples_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// binaryDir holds the program that the tests run; it is built once.
var binaryDir string

type suite struct{ m *testing.M }

func (s suite) Run() int {
	dir, err := os.MkdirTemp("", "pgrunbook-examples-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a directory for the program:", err)
		return 1
	}
	binaryDir = dir
	defer func() { _ = os.RemoveAll(dir) }()
	return s.m.Run()
}

func TestMain(m *testing.M) { testpg.Main(suite{m}) }

var build = sync.OnceValues(func() (string, error) {
	path := filepath.Join(binaryDir, "pgrunbook")
	out, err := exec.Command("go", "build", "-o", path, "../cmd/pgrunbook").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the program: %w: %s", err, out)
	}
	return path, nil
})

// program is the real binary in a copy of an example's folder, with nothing of our environment.
type program struct {
	t       *testing.T
	path    string
	dir     string
	runbook string
	env     []string
	leftOut []string     // tables that do not go along
	output  bytes.Buffer // of all runs
}

func newProgram(t *testing.T, example string, env ...string) *program {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(example)); err != nil {
		t.Fatalf("copying the example: %v", err)
	}
	env = append(env, "PATH="+clients(t)+":"+os.Getenv("PATH"), "HOME="+t.TempDir(), "TMPDIR="+os.TempDir(), "LANG=C.UTF-8", "PGRUNBOOK_PG_BIN_DIRS="+clients(t), "PGRUNBOOK_INPUT=0")
	return &program{t: t, path: path, dir: dir, runbook: example + ".runbook.hcl", env: env}
}

// clients is where pg_dump, pg_restore and psql of the newest major are.
func clients(t *testing.T) string {
	t.Helper()
	dir, err := testpg.ClientBinDir(t.Context(), newest)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

const newest = 18

// want runs the program and demands an exit code. RUNBOOK among the arguments is the example's file.
func (p *program) want(code int, args ...string) string {
	p.t.Helper()
	for i, a := range args {
		if a == "RUNBOOK" {
			args[i] = p.runbook
		}
	}
	began := time.Now()
	out, got := p.start(p.path, args...)
	p.t.Logf("pgrunbook %s: exit %d after %s", strings.Join(args, " "), got, time.Since(began).Round(time.Millisecond))
	if got != code {
		p.t.Fatalf("pgrunbook %s ended with %d, want %d:\n%s", strings.Join(args, " "), got, code, out)
	}
	return out
}

// start runs any program as want does and gives its output and exit code.
func (p *program) start(path string, args ...string) (string, int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	out, err := cmd.CombinedOutput()
	p.output.Write(out)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatalf("running %s: %v", path, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// query gives the first value of a query's first row, as text.
func query(t *testing.T, url, sql string, args ...any) string {
	t.Helper()
	conn, err := testpg.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	var value string
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// tryScript runs statements in one session and gives their error.
func tryScript(t *testing.T, url, sql string) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	_, err = conn.PgConn().Exec(t.Context(), sql).ReadAll()
	return err
}

func script(t *testing.T, url, sql string) {
	t.Helper()
	if err := tryScript(t, url, sql); err != nil {
		t.Fatalf("%v in: %.200s", err, sql)
	}
}

func scriptFile(t *testing.T, url, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	script(t, url, string(text))
}

// same demands that both sides have the same rows in every table of both but those left out.
func same(t *testing.T, sourceURL, targetURL string, leftOut ...string) {
	t.Helper()
	out := map[string]bool{}
	for _, name := range leftOut {
		out[name] = true
	}
	var tables []string
	for _, url := range []string{sourceURL, targetURL} {
		names, err := testpg.AllTables(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !out[name] {
				out[name] = true
				tables = append(tables, name)
			}
		}
	}
	if len(tables) == 0 {
		t.Fatal("there are no tables to compare")
	}
	diffs, err := testpg.Diff(t.Context(), sourceURL, targetURL, tables)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range diffs {
		if t.Errorf("differs: %s", d); i == 9 {
			t.Fatalf("and %d more", len(diffs)-10)
		}
	}
}

// schemaDump is a database's definitions; PostgreSQL 10 writes triggers with another word.
func schemaDump(t *testing.T, url string, exclude ...string) string {
	t.Helper()
	dump, err := testpg.SchemaDump(t.Context(), url, exclude...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(dump, "EXECUTE PROCEDURE", "EXECUTE FUNCTION")
}

// TestExamplesAreValid reads every runbook of this folder without a server and without variables.
func TestExamplesAreValid(t *testing.T) {
	var found int
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".runbook.hcl") {
			return err
		}
		found++
		rb, diags := runbook.Load(path, runbook.Options{Validate: true, Getenv: func(string) (string, bool) { return "", false }})
		for _, d := range diags {
			t.Errorf("%s: %v", path, d)
		}
		formatted, diags := runbook.Format(path, rb.Text)
		if diags.HasErrors() || !bytes.Equal(formatted, rb.Text) {
			t.Errorf("%s is not formatted: pgrunbook fmt %s", path, path)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".runbook.hcl")
		if rb.Name != name {
			t.Errorf("%s holds runbook %q", path, rb.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 7 {
		t.Errorf("only %d runbooks were found", found)
	}
}

// TestExamplesValidate has the program read them too: it knows the kinds of steps.
func TestExamplesValidate(t *testing.T) {
	for _, example := range []string{"inplace-upgrade", "to-managed-cloud", "major-upgrade", "second-server", "pgbouncer-cutover", "ci-two-jobs"} {
		p := newProgram(t, example)
		p.want(0, "validate", "RUNBOOK")
		p.want(0, "fmt", "--check", "RUNBOOK")
	}
}

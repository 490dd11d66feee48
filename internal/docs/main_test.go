package docs

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

var update = flag.Bool("update", false, "rewrite docs/faults.md, and the blocks of README.md that changed")

// root is the project's folder, from here.
const root = "../.."

// binaries holds the programs that the tests run; each is built once.
var binaries string

type suite struct{ m *testing.M }

func (s suite) Run() int {
	dir, err := os.MkdirTemp("", "pgrunbook-docs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a directory for the program:", err)
		return 1
	}
	binaries = dir
	defer func() { _ = os.RemoveAll(dir) }()
	return s.m.Run()
}

func TestMain(m *testing.M) { testpg.Main(suite{m}) }

func buildProgram(name string, args ...string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		path := filepath.Join(binaries, name)
		out, err := exec.Command("go", append(append([]string{"build", "-o", path}, args...), root+"/cmd/pgrunbook")...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("building the program: %w: %s", err, out)
		}
		return path, nil
	})
}

var (
	plainProgram = buildProgram("pgrunbook")
	dyingProgram = buildProgram("pgrunbook-failpoints", "-tags", "failpoint")
)

// pair is two servers with the shop on the first, and the program between them.
type pair struct {
	t                    *testing.T
	source, target       *testpg.Cluster
	sourceURL, targetURL string
	program, dir, file   string
	clients              string // folder of psql and pg_dump
	env                  []string
}

// newPair starts both servers, fills the source and writes testdata/shop.runbook.hcl. Replacements
// are pairs of old and new text in it.
func newPair(t *testing.T, build func() (string, error), replace ...string) *pair {
	t.Helper()
	from, to, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, dir: t.TempDir(), file: "shop.runbook.hcl"}
	if p.program, err = build(); err != nil {
		t.Fatal(err)
	}
	p.source, p.target = testpg.StartT(t, testpg.Options{Major: from}), testpg.StartT(t, testpg.Options{Major: to})
	for _, c := range []*testpg.Cluster{p.source, p.target} {
		p.sql(c.ConnString(), "CREATE DATABASE shop")
	}
	p.sourceURL, p.targetURL = testpg.Adopt(t, p.source, "shop"), testpg.Adopt(t, p.target, "shop")
	p.sql(p.sourceURL, read(t, "testdata/shop.sql"))
	text := strings.NewReplacer(replace...).Replace(read(t, "testdata/shop.runbook.hcl"))
	if err := os.WriteFile(filepath.Join(p.dir, p.file), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.clients = clients(t, to)
	p.env = []string{
		"SOURCE_URL=" + p.sourceURL, "TARGET_URL=" + p.targetURL, "PGRUNBOOK_PG_BIN_DIRS=" + p.clients,
		"PATH=" + p.clients + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8", "PGRUNBOOK_INPUT=0",
	}
	return p
}

func clients(t *testing.T, major int) string {
	t.Helper()
	dir, err := testpg.ClientBinDir(t.Context(), major)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// run runs the program and gives what it printed and its exit code; a kill is -1.
func (p *pair) run(env []string, args ...string) (string, int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.program, args...)
	cmd.Dir, cmd.Env = p.dir, append(p.env, env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatalf("running pgrunbook: %v", err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// want runs the program and demands an exit code.
func (p *pair) want(code int, args ...string) string {
	p.t.Helper()
	out, got := p.run(nil, args...)
	if got != code {
		p.t.Fatalf("pgrunbook %s ended with %d, want %d:\n%s", strings.Join(args, " "), got, code, out)
	}
	return out
}

// psql runs lines of a page as a person would, in one psql with ON_ERROR_STOP.
func (p *pair) psql(url, lines string) string {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), filepath.Join(p.clients, "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url)
	cmd.Stdin, cmd.Env = strings.NewReader(lines), p.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("psql: %v: %s\nin:\n%s", err, out, lines)
	}
	return strings.TrimSpace(string(out))
}

// try runs statements and gives their error.
func (p *pair) try(url, sql string) error {
	p.t.Helper()
	conn, err := pgx.Connect(p.t.Context(), url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(p.t.Context())) }()
	_, err = conn.PgConn().Exec(p.t.Context(), sql).ReadAll()
	return err
}

func (p *pair) sql(url, sql string) {
	p.t.Helper()
	if err := p.try(url, sql); err != nil {
		p.t.Fatalf("%v in: %.200s", err, sql)
	}
}

// list gives the first column of a query's rows.
func (p *pair) list(url, sql string) []string {
	p.t.Helper()
	conn, err := testpg.Connect(p.t.Context(), url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(p.t.Context())) }()
	rows, err := conn.Query(p.t.Context(), sql)
	if err != nil {
		p.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sqlState gives the SQLSTATE of an error, or "".
func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

package pooler

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestMain(m *testing.M) { testpg.Main(m) }

// fixture is one pgbouncer whose database erp leads to the source of a pair.
type fixture struct {
	t              *testing.T
	ctx            context.Context
	source, target string // URLs
	bouncer        *testpg.Bouncer
	cfg            Config
	p              *Pooler
}

func newFixture(t *testing.T, o testpg.BouncerOptions) *fixture {
	t.Helper()
	f := &fixture{t: t}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	f.ctx = ctx
	f.source, f.target = testpg.Pair(t)
	for _, url := range []string{f.source, f.target} {
		f.exec(url, "CREATE TABLE hits (id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())")
	}
	if o.Raw == "" {
		o.Databases = map[string]string{"erp": f.source}
	}
	o.Raw = strings.ReplaceAll(o.Raw, "SOURCE", f.words(f.source))
	f.start(o)
	return f
}

func (f *fixture) start(o testpg.BouncerOptions) {
	f.bouncer = testpg.StartBouncerT(f.t, o)
	f.cfg = Config{Name: "main", Admin: f.bouncer.Console(testpg.BouncerAdmin), Database: "erp", ConfigFile: f.bouncer.DatabasesFile, Connect: f.words(f.target), Timeout: 5 * time.Second, MaxBlock: 2 * time.Second}
	f.p = f.pooler(f.cfg)
}

func (f *fixture) pooler(cfg Config) *Pooler {
	f.t.Helper()
	p, err := New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(p.Close)
	return p
}

// words is a URL as an entry has it.
func (f *fixture) words(url string) string {
	f.t.Helper()
	line, err := testpg.BouncerEntry("", url)
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.TrimPrefix(line, " = ")
}

func (f *fixture) place(url string) Place {
	f.t.Helper()
	ps, err := pairs(f.words(url))
	if err != nil {
		f.t.Fatal(err)
	}
	at, err := placeOf("erp", ps)
	if err != nil {
		f.t.Fatal(err)
	}
	return at
}

func (f *fixture) connect(url string) *pgx.Conn {
	f.t.Helper()
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		f.t.Fatal(err)
	}
	conf.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(f.ctx, conf)
	if err != nil {
		f.t.Fatalf("connecting: %v", err)
	}
	f.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (f *fixture) exec(url, sql string) {
	f.t.Helper()
	conn := f.connect(url)
	if _, err := conn.Exec(f.ctx, sql); err != nil {
		f.t.Fatalf("%s: %v", sql, err)
	}
	if err := conn.Close(f.ctx); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) hits(url string) int {
	f.t.Helper()
	conn := f.connect(url)
	defer func() { _ = conn.Close(f.ctx) }()
	var n int
	if err := conn.QueryRow(f.ctx, "SELECT count(*) FROM hits").Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

func (f *fixture) state() State {
	f.t.Helper()
	s, err := f.p.State(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// wantAt asserts that the database is not paused and points to a URL.
func (f *fixture) wantAt(url string) {
	f.t.Helper()
	if s := f.state(); s.Paused || s.Points != f.place(url) {
		f.t.Errorf("state %+v, want resumed and at %s", s, f.place(url))
	}
}

func (f *fixture) file() string {
	f.t.Helper()
	text, err := os.ReadFile(f.bouncer.DatabasesFile)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(text)
}

// bench is a pgbench that writes into hits through the pooler.
type bench struct {
	cmd  *exec.Cmd
	out  *strings.Builder
	done chan error
}

// pgbench starts 8 clients at full speed for some seconds.
func (f *fixture) pgbench(seconds int, args ...string) *bench {
	f.t.Helper()
	path, err := testpg.PgbenchPath(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	script := filepath.Join(f.t.TempDir(), "script.sql")
	if err := os.WriteFile(script, []byte("BEGIN;\nINSERT INTO hits DEFAULT VALUES;\nSELECT count(*) FROM hits WHERE id = 1;\nCOMMIT;\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	args = append([]string{"-n", "-c", "8", "-j", "2", "-T", strconv.Itoa(seconds), "-M", "simple", "-f", script}, args...)
	b := &bench{cmd: exec.CommandContext(f.ctx, path, append(args, f.bouncer.URL("erp", "postgres"))...), out: &strings.Builder{}, done: make(chan error, 1)}
	b.cmd.Stdout, b.cmd.Stderr = b.out, b.out
	if err := b.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() { b.done <- b.cmd.Wait() }()
	f.t.Cleanup(func() { _ = b.cmd.Process.Kill() })
	f.eventually("pgbench writes", func() bool { return f.hits(f.source) > 100 })
	return b
}

var processed = regexp.MustCompile(`transactions actually processed: (\d+)`)

// wait gives how many transactions succeeded; one that failed ends the test.
func (b *bench) wait(t *testing.T) int {
	t.Helper()
	err := <-b.done
	out := b.out.String()
	m := processed.FindStringSubmatch(out)
	if err != nil || m == nil || strings.Contains(out, "aborted") || strings.Contains(out, "ERROR") || strings.Contains(out, "error:") ||
		strings.Contains(out, "failed transactions") && !strings.Contains(out, "failed transactions: 0 ") {
		t.Fatalf("pgbench: %v\n%s", err, out)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (f *fixture) eventually(what string, done func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("never came true: %s", what)
		}
	}
}

// query asks through the pooler which database answers.
func (f *fixture) query(conn *pgx.Conn) string {
	f.t.Helper()
	var name string
	if err := conn.QueryRow(f.ctx, "SELECT current_database()::text || ' ' || current_setting('port')").Scan(&name); err != nil {
		f.t.Fatalf("through the pooler: %v", err)
	}
	return name
}

func (f *fixture) nameAt(url string) string {
	at := f.place(url)
	return fmt.Sprintf("%s %d", at.Database, at.Port)
}

package suites_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

var update = flag.Bool("update", false, "write what was refused into testdata; with PGRUNBOOK_SOAK")

// program is the product, built once.
var program string

func TestMain(m *testing.M) { testpg.Main(built{m}) }

type built struct{ m *testing.M }

func (b built) Run() int {
	dir, err := os.MkdirTemp("", "pgrunbook-suites-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		program = filepath.Join(dir, "pgrunbook")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", program, "github.com/pgrunbook/pgrunbook/cmd/pgrunbook").CombinedOutput(); err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the program:", err)
		return 1
	}
	return b.m.Run()
}

func soak() bool { return os.Getenv("PGRUNBOOK_SOAK") != "" }

// The schemas that tests work in tell how their tables are followed: by key, or by whole rows where
// some have none.
const (
	keyed = "keyed_"
	whole = "whole_"
)

const runbook = "runbook \"suites\" {}\n" + testpg.RunbookServers + `schema { on_ddl = "carry" }
tables { include = ["keyed_*.*", "whole_*.*"] }
table "whole_*.*" { identity = "full_row" }
verify { enabled = false }
`

// rig is one migration that is in catch-up all the time.
type rig struct {
	t              *testing.T
	dir            string
	source, target string
	env            []string
	mu             sync.Mutex
	said           string // by the last call of the program
	passes         int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	r.source, r.target = testpg.Pair(t)
	major, _, err := testpg.PairMajors()
	r.must(err)
	clients, err := testpg.ClientBinDir(t.Context(), major)
	r.must(err)
	r.env = append(os.Environ(), "SOURCE_URL="+r.source, "TARGET_URL="+r.target, "PGRUNBOOK_PG_BIN_DIRS="+clients)
	r.must(os.WriteFile(filepath.Join(r.dir, "suites.runbook.hcl"), []byte(runbook), 0o600))
	r.must(r.sql("", `CREATE SCHEMA keyed_; CREATE TABLE keyed_.always (id int PRIMARY KEY, n int); INSERT INTO keyed_.always VALUES (1, 0);
		CREATE SCHEMA whole_; CREATE TABLE whole_.always (id int, n int); INSERT INTO whole_.always VALUES (1, 0)`))
	r.follow(func(_, why string) { t.Fatalf("the program does not begin: %s\n%s", why, r.said) })
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// url is the source's with settings of a session.
func (r *rig) url(schema string) string {
	if schema == "" {
		return r.source
	}
	return r.source + cond(strings.Contains(r.source, "?"), "&", "?") + "options=-csearch_path%3D" + schema + "%2Cpublic"
}

func cond[T any](yes bool, a, b T) T {
	if yes {
		return a
	}
	return b
}

// sql runs statements on the source as the tests do, in one message.
func (r *rig) sql(schema, text string) error {
	conn, err := pgx.Connect(r.t.Context(), r.url(schema))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.PgConn().Exec(r.t.Context(), text).ReadAll()
	return err
}

// column reads one column on a side.
func (r *rig) column(url, sql string, args ...any) []string {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), url)
	r.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(r.t.Context(), sql, args...)
	r.must(err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	r.must(err)
	return list
}

// apply lets the program follow until it is less than a second behind. It gives the error that the
// program ends with; "" is none.
func (r *rig) apply(ctx context.Context) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "apply", "--json", "--auto-approve", "--until", "catch_up", "suites.runbook.hcl")
	cmd.Dir, cmd.Env = r.dir, r.env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.Output()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passes++
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	r.said = strings.Join(lines[max(0, len(lines)-30):], "\n")
	if err == nil {
		return ""
	}
	var end struct{ Error string }
	if json.Unmarshal([]byte(lines[len(lines)-1]), &end) != nil || end.Error == "" {
		r.t.Errorf("the program ended without a word: %v\n%s", err, r.said)
		return err.Error()
	}
	return end.Error
}

// schemaName finds the schema that an error is about.
var schemaName = regexp.MustCompile(`\b(?:keyed|whole)_[a-z0-9_]+`)

var address = regexp.MustCompile(`127\.0\.0\.1:\d+/\w+`)

// temporary finds what a definition names in a session's own schema.
var temporary = regexp.MustCompile(`(?:schema|type|relation) "pg_temp_\d+(?:\.[^"]*)?"`)

// stable is what of an error is the same each time.
func stable(why, schema string) string {
	first, _, _ := strings.Cut(strings.ReplaceAll(why, schema, "SCHEMA"), "\n")
	return temporary.ReplaceAllString(address.ReplaceAllString(first, "ADDRESS"), "something temporary")
}

// follow brings the target up to date. refuse ends what the program refuses.
func (r *rig) follow(refuse func(schema, why string)) {
	r.t.Helper()
	last := ""
	for range 100 {
		why := r.apply(r.t.Context())
		if why == "" {
			return
		}
		again := why == last
		if last = why; !again { // what was made or dropped at that moment is another thing a moment later
			continue
		}
		refuse(schemaName.FindString(why), why)
	}
	r.t.Fatalf("the program does not follow: %s\n%s", last, r.said)
}

// drop ends all of a test.
func (r *rig) drop(schema string) {
	r.t.Helper()
	r.must(r.sql("", "DROP SCHEMA IF EXISTS "+schema+" CASCADE"))
}

// follower makes passes all the time, until it is ended.
type follower struct {
	cancel context.CancelFunc
	done   chan struct{}
	stuck  atomic.Bool // the last two said the same error
}

func (r *rig) following() *follower {
	ctx, cancel := context.WithCancel(r.t.Context())
	f := &follower{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		last := ""
		for ctx.Err() == nil {
			why := r.apply(r.t.Context()) // each one ends by itself
			f.stuck.Store(why != "" && why == last)
			last = why
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return f
}

func (f *follower) end() {
	f.cancel()
	<-f.done
}

// capturedSQL gives the tables of a schema that have our triggers.
const capturedSQL = `SELECT DISTINCT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname LIKE 'pgrunbook\_capture\_%' WHERE c.relkind = 'r' AND n.nspname = $1 ORDER BY 1`

// captured lists the tables of a schema whose changes are recorded.
func (r *rig) captured(schema string) []string { return r.column(r.source, capturedSQL, schema) }

// writes counts rows that sessions which have ended have written to tables of a schema with our triggers.
func (r *rig) writes(schema string) int64 {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), r.source)
	r.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	for late := time.Now().Add(30 * time.Second); time.Now().Before(late); time.Sleep(20 * time.Millisecond) {
		var open bool // statistics are sent when a session ends
		r.must(conn.QueryRow(r.t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'isolation%')").Scan(&open))
		if !open {
			break
		}
	}
	var n int64
	r.must(conn.QueryRow(r.t.Context(), `SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::int8 FROM pg_stat_user_tables s WHERE schemaname = $1
		AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = s.relid AND t.tgname LIKE 'pgrunbook\_capture\_%')`, schema).Scan(&n))
	return n
}

// equal compares what is captured of a schema.
func (r *rig) equal(schema string) bool {
	r.t.Helper()
	tables := r.captured(schema)
	diffs, err := testpg.Diff(r.t.Context(), r.source, r.target, tables)
	r.must(err)
	for _, d := range diffs[:min(len(diffs), 10)] {
		r.t.Errorf("%s", d)
	}
	return len(diffs) == 0
}

// gone looks that the target holds no table of a schema that the source does not have.
func (r *rig) gone() {
	r.t.Helper()
	have, err := testpg.AllTables(r.t.Context(), r.source)
	r.must(err)
	left, err := testpg.AllTables(r.t.Context(), r.target)
	r.must(err)
	for _, name := range left {
		if !slices.Contains(have, name) {
			r.t.Errorf("%s is still on the target", name)
		}
	}
}

// golden compares lines with a file of testdata, or, where they are not all, with some of its lines.
func golden(t *testing.T, name, head string, lines []string, all bool) {
	t.Helper()
	path := filepath.Join("testdata", name)
	text := head + strings.Join(lines, "\n") + "\n"
	if *update && all {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if os.Getenv("PGRUNBOOK_TEST_PAIR") != "" {
		return // other servers refuse other things
	}
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(raw)), "\n")
	for _, line := range lines {
		if !slices.Contains(want, line) {
			t.Errorf("testdata/%s does not say: %s", name, line)
		}
	}
}

package cutover_test

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
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

//go:embed schema.sql
var schemaSQL string

//go:embed runbook.hcl
var runbookHCL string

// program is the product, built once with its failpoints.
var program string

func TestMain(m *testing.M) { testpg.Main(built{m}) }

type built struct{ m *testing.M }

func (b built) Run() int {
	dir, err := os.MkdirTemp("", "pgrunbook-cutover-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a directory for the program:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "pgrunbook")
	out, err := exec.Command("go", "build", "-tags", "failpoint", "-o", program, "github.com/pgrunbook/pgrunbook/cmd/pgrunbook").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "building the program: %v\n%s", err, out)
		return 1
	}
	return b.m.Run()
}

const (
	onSource = 0
	onTarget = 1
)

// plain is a cutover on a loaded machine with two cores.
const plain = `
cutover {
  max_write_block = "5s"
  attempts        = 40
  retry_every     = "300ms"
  sequence_margin = 100
}
rollback { keep_for = "1h" }
`

// rig is one migration with an application that never stops.
type rig struct {
	t              *testing.T
	dir            string
	source, target string // URLs
	env            []string
	ledger         *testpg.Ledger
	cancel         context.CancelFunc
	wait           sync.WaitGroup
	log            bytes.Buffer // what the program said, in order
	runs           int
}

var slots = make(chan struct{}, 2) // rigs at the same time: each keeps a core busy

// newRig fills the source and starts the ledger's clients: they write at the source until they are
// refused, then at the target, and so on. text is the runbook from its cutover on.
func newRig(t *testing.T, text string) *rig {
	t.Helper()
	r := newIdleRig(t)
	r.write(text)
	r.begin(r.source, r.target)
	return r
}

// newIdleRig has no runbook and no clients yet.
func newIdleRig(t *testing.T) *rig {
	t.Helper()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	return newPairRig(t)
}

// newPairRig is an idle rig on the usual pair of majors.
func newPairRig(t *testing.T) *rig {
	t.Helper()
	source, target := testpg.Pair(t)
	_, newest, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	return rigOn(t, schemaSQL, source, target, newest)
}

// rigOn is a rig on two databases, the newer one's major at hand.
func rigOn(t *testing.T, schema, source, target string, newest int) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), ledger: testpg.NewLedger(testpg.LedgerOptions{Accounts: 100, Pause: 50 * time.Millisecond, TxTimeout: 20 * time.Second})}
	r.source, r.target = source, target
	bin, err := testpg.ClientBinDir(t.Context(), newest)
	r.must(err)
	r.env = []string{
		"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8",
		"PGRUNBOOK_PG_BIN_DIRS=" + bin, "SOURCE_URL=" + r.source, "TARGET_URL=" + r.target,
	}
	r.sql(r.source, schema)
	r.must(r.ledger.Setup(t.Context(), r.source))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what the program said:\n%s", r.log.String())
		}
	})
	return r
}

// begin lets the ledger's clients write at the first URL that takes them.
func (r *rig) begin(urls ...string) {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.wait.Go(func() {
		if err := r.ledger.Run(ctx, urls, 2); err != nil {
			r.t.Errorf("the ledger's clients: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
}

// write puts a text behind the runbook's fixed part.
func (r *rig) write(text string) {
	r.t.Helper()
	r.must(os.WriteFile(filepath.Join(r.dir, "move.runbook.hcl"), []byte(runbookHCL+text), 0o600))
}

func (r *rig) stop() {
	r.cancel()
	r.wait.Wait()
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) connect(url string) *pgx.Conn {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), url)
	r.must(err)
	r.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// sql runs statements in one session.
func (r *rig) sql(url, text string) {
	r.t.Helper()
	if err := r.try(url, text); err != nil {
		r.t.Fatalf("%v in: %.200s", err, text)
	}
}

func (r *rig) try(url, text string) error {
	r.t.Helper()
	conn := r.connect(url)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err := conn.PgConn().Exec(r.t.Context(), text).ReadAll()
	return err
}

// ask gives a query's first value as text.
func (r *rig) ask(url, sql string) string {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), url)
	r.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	var s string
	if err := conn.QueryRow(r.t.Context(), sql).Scan(&s); err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
	return s
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// want runs a command and demands an exit code.
func (r *rig) want(code int, args ...string) string {
	r.t.Helper()
	began := time.Now()
	o := r.start("", args...).end()
	r.t.Logf("pgrunbook %s: exit code %d after %s", strings.Join(args, " "), o.code, time.Since(began).Round(time.Millisecond))
	if o.code != code || o.signal != 0 {
		r.t.Fatalf("pgrunbook %s ended with %d %v, want %d:\n%s", strings.Join(args, " "), o.code, o.signal, code, o.text)
	}
	return o.text
}

// says demands that a text has every part, wherever its lines are broken.
func (r *rig) says(text string, parts ...string) {
	r.t.Helper()
	text = strings.Join(strings.Fields(text), " ")
	for _, p := range parts {
		if !strings.Contains(text, p) {
			r.t.Errorf("%q is not said in:\n%s", p, text)
		}
	}
}

// eventually waits for something that needs no further command.
func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// acknowledged counts commits that the ledger's clients were told of, on one side.
func (r *rig) acknowledged(side int) int {
	by := r.ledger.Stats().ByServer
	if side < len(by) {
		return by[side]
	}
	return 0
}

// writing waits for acknowledged commits on a side, and demands that there are none on the other.
func (r *rig) writing(side int) {
	r.t.Helper()
	before := r.acknowledged(side)
	r.eventually(fmt.Sprintf("writes on side %d", side), func() bool { return r.acknowledged(side) > before+3 })
	before, other := r.acknowledged(side), r.acknowledged(1-side)
	r.eventually(fmt.Sprintf("writes on side %d", side), func() bool { return r.acknowledged(side) > before+10 })
	if now := r.acknowledged(1 - side); now != other {
		r.t.Errorf("%d commits on side %d while side %d takes writes", now-other, 1-side, side)
	}
}

// refused demands that a side refuses a write, whatever its database's default is, and returns the words.
func (r *rig) refused(url, state string) string {
	r.t.Helper()
	err := r.try(url, "BEGIN READ WRITE; INSERT INTO app.bag VALUES (1, 'by mistake'); COMMIT")
	if sqlState(err) != state {
		r.t.Errorf("a write: %v, want it refused with %s", err, state)
	}
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return err.Error() + " " + e.Detail
	}
	return fmt.Sprint(err)
}

// same demands equal rows in the application's tables, which nobody but the test writes, and equal definitions.
func (r *rig) same() {
	r.t.Helper()
	all, err := testpg.AllTables(r.t.Context(), r.source)
	r.must(err)
	var tables []string
	for _, name := range all {
		if strings.HasPrefix(name, "app.") {
			tables = append(tables, name)
		}
	}
	if len(tables) < 7 {
		r.t.Fatalf("only %v are compared", tables)
	}
	diffs, err := testpg.Diff(r.t.Context(), r.source, r.target, tables)
	r.must(err)
	for i, d := range diffs {
		if r.t.Errorf("differs: %s", d); i == 9 {
			break
		}
	}
	apart, err := testpg.DefinitionsApart(r.t.Context(), r.source, r.target, "public") // what a test points at is there
	r.must(err)
	if apart != "" {
		r.t.Errorf("definitions differ:\n%s", apart)
	}
}

// ahead demands that no sequence of a side stands behind the other's.
func (r *rig) ahead(url, other string) {
	r.t.Helper()
	now, err := testpg.Sequences(r.t.Context(), url)
	r.must(err)
	old, err := testpg.Sequences(r.t.Context(), other)
	r.must(err)
	if len(old) < 2 {
		r.t.Fatalf("only %d sequences are compared", len(old))
	}
	for name, s := range old {
		if n, ok := now[name]; !ok || n.Last < s.Last {
			r.t.Errorf("sequence %s stands at %d, on the side that was left at %d", name, n.Last, s.Last)
		}
	}
}

// balance ends the application and checks every commit that it was told of.
func (r *rig) balance(url string) {
	r.t.Helper()
	r.stop()
	report, err := r.ledger.Check(r.t.Context(), url)
	r.must(err)
	if !report.OK() || report.Acknowledged == 0 {
		r.t.Errorf("the ledger: %s", report)
	}
	r.t.Logf("%s; longest gap %s", report, report.LongestGap.Round(time.Millisecond))
}

package faults_test

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

//go:embed schema.sql
var schemaSQL string

//go:embed faults.runbook.hcl
var runbookHCL []byte

// program is the product, built once with its failpoints.
var program string

func TestMain(m *testing.M) { testpg.Main(built{m}) }

type built struct{ m *testing.M }

func (b built) Run() int {
	dir, err := os.MkdirTemp("", "pgrunbook-faults-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		program = filepath.Join(dir, "pgrunbook")
		var out []byte
		out, err = exec.Command("go", "build", "-tags", "failpoint", "-o", program, "github.com/pgrunbook/pgrunbook/cmd/pgrunbook").CombinedOutput()
		err = errors.Join(err, cond(err != nil, errors.New(string(out)), nil))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the program:", err)
		return 1
	}
	return b.m.Run()
}

func cond[T any](yes bool, a, b T) T {
	if yes {
		return a
	}
	return b
}

func soak() bool { return os.Getenv("PGRUNBOOK_SOAK") != "" }

// seed is random, printed, and can be given.
func seed(t *testing.T) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("PGRUNBOOK_FAULTS_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("PGRUNBOOK_FAULTS_SEED=%d", n)
	return randomOf(n)
}

func randomOf(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, 1)) }

// probeSQL is a write that a closed gate refuses.
const probeSQL = "UPDATE app.probe SET n = n + 1"

// majors are the source's and the target's.
func majors(t *testing.T) (source, target int) {
	t.Helper()
	source, target, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	return source, target
}

// rig is one migration: two databases, clients that never stop, and the oracles.
type rig struct {
	t              *testing.T
	dir            string
	source, target string    // URLs
	via            [2]string // URLs that the program is given instead: proxies, poolers, other roles; empty is the same
	clients        string    // folder of pg_dump
	ledger         *testpg.Ledger
	client         *client
	sides          *testpg.Sides
	ways           [2]*testpg.Turnstile // to source and target
	cancel         context.CancelFunc
	wait           sync.WaitGroup
	log            bytes.Buffer // what the program said, in order
	runs           int
	proxy          *testpg.Proxy // before the source, where a scene needs one
	set            bool          // the scenery of scenes_test.go is there
	waits          bool          // a run may stop and ask for what a person has to do
	found          []string      // what was wrong in the midst of a command
	uneven         string        // a state of the target that no moment of the source was like; set by summed
	without        string        // the rules that the program leaves out, as PGRUNBOOK_MUTANT takes them
}

var slots = make(chan struct{}, 2) // rigs at the same time: each keeps a core busy

// newRig is a rig on the shared servers.
func newRig(t *testing.T) *rig {
	t.Helper()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	source, target := testpg.Pair(t)
	return newRigOn(t, source, target)
}

// newRigOn is a rig on two fresh databases, for a test that has taken its slot.
func newRigOn(t *testing.T, source, target string) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), source: source, target: target, ledger: testpg.NewLedger(testpg.LedgerOptions{Accounts: 100, Pause: 60 * time.Millisecond, TxTimeout: 20 * time.Second})}
	major, _, err := testpg.PairMajors()
	r.must(err)
	r.clients, err = testpg.ClientBinDir(t.Context(), major)
	r.must(err)
	r.must(os.WriteFile(filepath.Join(r.dir, "faults.runbook.hcl"), runbookHCL, 0o600))
	r.sql(r.source, schemaSQL)
	r.must(r.ledger.Setup(t.Context(), r.source))
	r.ways[0], err = testpg.NewTurnstile(r.source, r.target, probeSQL, true)
	r.must(err)
	r.ways[1], err = testpg.NewTurnstile(r.target, r.source, probeSQL, false)
	r.must(err)
	r.sides = &testpg.Sides{URLs: [2]string{r.source, r.target}, Probe: probeSQL, Torn: r.ledger.Torn()}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	urls := []string{r.ways[0].URL(), r.ways[1].URL()}
	r.wait.Go(func() {
		if err := r.ledger.Run(ctx, urls, 2); err != nil {
			t.Errorf("the ledger's clients: %v", err)
		}
	})
	r.client = &client{urls: urls, random: rand.New(rand.NewPCG(1, 2))}
	r.wait.Go(func() { r.client.run(ctx) })
	r.wait.Go(func() { r.sides.Run(ctx) })
	t.Cleanup(r.stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what the program said:\n%s", r.log.String())
		}
	})
	return r
}

// stop ends the clients.
func (r *rig) stop() {
	r.cancel()
	r.wait.Wait()
	if r.client.wrong != nil {
		r.t.Errorf("a statement of the clients cannot run: %v", r.client.wrong)
	}
	for _, w := range r.ways {
		w.Close()
	}
}

// edit changes the runbook.
func (r *rig) edit(old, now string) {
	r.t.Helper()
	path := filepath.Join(r.dir, "faults.runbook.hcl")
	text, err := os.ReadFile(path)
	r.must(err)
	if !strings.Contains(string(text), old) {
		r.t.Fatalf("the runbook does not say %s", old)
	}
	r.must(os.WriteFile(path, []byte(strings.Replace(string(text), old, now, 1)), 0o600))
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) sql(url, text string) {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), url)
	r.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.PgConn().Exec(r.t.Context(), text).ReadAll()
	r.must(err)
}

// moved checks one way from the closed side to the other: 0 is the source, 1 the target.
func (r *rig) moved(from, to int) {
	r.t.Helper()
	for _, wrong := range r.carried(from, to) {
		r.t.Error(wrong)
	}
	r.oneSide()
	if r.t.Failed() {
		r.t.FailNow()
	}
}

// carried says how the side that was left differs from what the other one held before its first client, and in its definitions.
func (r *rig) carried(from, to int) (wrong []string) {
	r.t.Helper()
	ctx := r.t.Context()
	urls := [2]string{r.source, r.target}
	if !testpg.Refuses(ctx, urls[from], probeSQL) {
		return []string{"the side that was left takes writes"}
	}
	snapshot, err := r.ways[to].Wait(ctx)
	r.must(err)
	tables, err := testpg.AllTables(ctx, urls[from])
	r.must(err)
	diffs, err := testpg.DiffAt(ctx, urls[from], urls[to], snapshot, tables)
	r.must(err)
	for _, d := range diffs {
		wrong = append(wrong, "differs: "+d.String())
	}
	old, err := testpg.Sequences(ctx, urls[from])
	r.must(err)
	now, err := testpg.Sequences(ctx, urls[to])
	r.must(err)
	for name, s := range old {
		if n, ok := now[name]; !ok || n.Last < s.Last {
			wrong = append(wrong, fmt.Sprintf("sequence %s stands at %d, on the side that was left at %d", name, n.Last, s.Last))
		}
	}
	apart, err := testpg.DefinitionsApart(ctx, urls[from], urls[to], "aside", "evil") // which tests have on one side
	r.must(err)
	if apart != "" {
		wrong = append(wrong, "definitions differ:\n"+apart)
	}
	return wrong
}

// turn makes the next flip leave a side, for the other one.
func (r *rig) turn(from int) {
	r.ways[1-from].Shut()
	r.client.left.Store(int32(from))
}

// oneSide asks whether two sides ever took writes.
func (r *rig) oneSide() {
	r.t.Helper()
	if err := r.sides.Err(); err != nil {
		r.t.Error(err)
	}
}

// writing waits for acknowledged commits on a side.
func (r *rig) writing(side int) {
	r.t.Helper()
	if !r.writes(side, time.Minute) {
		r.t.Fatalf("nobody writes on side %d", side)
	}
}

// writes waits so long, and says whether there were some.
func (r *rig) writes(side int, limit time.Duration) bool {
	before := r.acknowledged(side)
	for deadline := time.Now().Add(limit); r.acknowledged(side) < before+3; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// acknowledged counts the ledger's commits on a side.
func (r *rig) acknowledged(side int) int {
	by := r.ledger.Stats().ByServer
	return cond(side < len(by), by, make([]int, side+1))[side]
}

// balance ends the clients and checks every commit they were told of, at the side where they ended.
func (r *rig) balance(url string) {
	r.t.Helper()
	r.stop()
	report, err := r.ledger.Check(r.t.Context(), url)
	r.must(err)
	if !report.OK() {
		r.t.Errorf("the ledger: %s", report)
	}
	if report.Acknowledged == 0 {
		r.t.Error("the ledger has no commit: nothing was proved")
	}
	r.oneSide()
}

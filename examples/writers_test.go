package examples_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// writers are clients that write at the source and nowhere else, so that after the flip nobody
// writes and both sides can be compared. Refused ones try again until stop.
type writers struct {
	t      *testing.T
	ledger *testpg.Ledger
	cancel context.CancelFunc
	wait   sync.WaitGroup
	done   atomic.Int64 // statements that were committed
}

// startWriters makes a ledger in the source and lets it and the statements run. A statement's $1 is
// a random number.
func startWriters(t *testing.T, sourceURL string, statements ...string) *writers {
	t.Helper()
	w := &writers{t: t, ledger: testpg.NewLedger(testpg.LedgerOptions{Accounts: 200, Pause: 40 * time.Millisecond})}
	if err := w.ledger.Setup(t.Context(), sourceURL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.wait.Go(func() {
		if err := w.ledger.Run(ctx, []string{sourceURL}, 2); err != nil {
			t.Errorf("the ledger's clients: %v", err)
		}
	})
	for seed := range uint64(min(len(statements), 2)) {
		w.wait.Go(func() { w.write(ctx, sourceURL, statements, rand.New(rand.NewPCG(seed, 7))) })
	}
	t.Cleanup(w.stop)
	return w
}

func (w *writers) write(ctx context.Context, url string, statements []string, random *rand.Rand) {
	var conn *pgx.Conn
	for ctx.Err() == nil {
		var err error
		if conn == nil {
			conn, err = pgx.Connect(ctx, url)
		}
		if err == nil {
			err = one(conn, statements[random.IntN(len(statements))], random.IntN(1_000_000))
		}
		pause := 40 * time.Millisecond
		switch state := stateOf(err); {
		case err == nil:
			w.done.Add(1)
		case strings.HasPrefix(state, "23"), state == "40P01": // the application's own business
		case state == "25006", state == "57P01", state == "":
			pause = 50 * time.Millisecond
		default:
			w.t.Errorf("a writer failed: %v", err)
		}
		if conn != nil && conn.IsClosed() {
			conn = nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	if conn != nil {
		_ = conn.Close(context.Background())
	}
}

// one runs a statement to its end, whatever happens to the test meanwhile.
func one(conn *pgx.Conn, sql string, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var args []any
	if strings.Contains(sql, "$1") {
		args = append(args, n)
	}
	_, err := conn.Exec(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
	return err
}

func stateOf(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// more waits until the writers have committed something more, the ledger included.
func (w *writers) more() {
	w.t.Helper()
	n, acknowledged := w.done.Load(), w.ledger.Stats().Acknowledged
	for range 2000 {
		if w.done.Load() > n+20 && w.ledger.Stats().Acknowledged > acknowledged+20 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("the writers stand still: %d statements, %+v", w.done.Load(), w.ledger.Stats())
}

func (w *writers) stop() {
	w.cancel()
	w.wait.Wait()
}

// kept demands that a database has every acknowledged commit of the ledger and nothing else.
func (w *writers) kept(url string) {
	w.t.Helper()
	report, err := w.ledger.Check(w.t.Context(), url)
	if err != nil {
		w.t.Fatal(err)
	}
	if !report.OK() || report.Acknowledged == 0 {
		w.t.Errorf("the ledger: %s", report)
	}
	w.t.Logf("%d acknowledged commits, longest gap %s", report.Acknowledged, report.LongestGap.Round(time.Millisecond))
}

// moveTo lets the ledger's clients write at another server for a moment, and looks again.
func (w *writers) moveTo(url string) {
	w.t.Helper()
	before := w.ledger.Stats().Acknowledged
	ctx, cancel := context.WithCancel(w.t.Context())
	w.wait.Go(func() {
		if err := w.ledger.Run(ctx, []string{url}, 2); err != nil {
			w.t.Errorf("the ledger's clients: %v", err)
		}
	})
	for range 2000 {
		if w.ledger.Stats().Acknowledged > before+20 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	w.wait.Wait()
	if w.ledger.Stats().Acknowledged <= before {
		w.t.Fatalf("nobody can write at the new server: %+v", w.ledger.Stats())
	}
	w.kept(url)
}

// back rolls the cutover back after writes at the new server, and writes at the old one again.
func (w *writers) back(p *program, sourceURL, targetURL, writes, probe string, flags ...string) {
	w.t.Helper()
	script(w.t, targetURL, writes)
	p.want(0, append([]string{"rollback", "RUNBOOK", "--auto-approve"}, flags...)...)
	same(w.t, sourceURL, targetURL, p.leftOut...)
	refused(w.t, targetURL, probe)
	w.kept(sourceURL)
	w.moveTo(sourceURL)
}

// refused demands that a side takes no writes.
func refused(t *testing.T, url, sql string) {
	t.Helper()
	err := tryScript(t, url, "SET default_transaction_read_only = off; BEGIN; "+sql+"; COMMIT")
	if stateOf(err) != "25006" {
		t.Errorf("%s: %v, want it refused with 25006", sql, err)
	}
}

// pgbench runs TPC-B at the source until the test stops it or the server refuses it.
func pgbench(t *testing.T, url string, arguments ...string) (stop func()) {
	t.Helper()
	path, err := testpg.PgbenchPath(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, append(arguments, url)...)
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		_ = cmd.Wait() // killed, or refused after the flip
	})
	t.Cleanup(stop)
	return stop
}

// initPgbench makes and fills pgbench's tables.
func initPgbench(t *testing.T, url string, scale string) {
	t.Helper()
	path, err := testpg.PgbenchPath(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), path, "-i", "-q", "-s", scale, url).CombinedOutput(); err != nil {
		t.Fatalf("filling pgbench's tables: %v: %s", err, out)
	}
}

package pg

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func oid(t *testing.T, conn *pgx.Conn, table string) uint32 {
	t.Helper()
	var id uint32
	if err := conn.QueryRow(testContext(t), "SELECT $1::regclass::oid", table).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

func lockTable(table string) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "LOCK TABLE "+table+" IN SHARE ROW EXCLUSIVE MODE")
		return err
	}
}

func TestWithLockNamesWhoIsInTheWayAndGivesUp(t *testing.T) {
	url := testpg.NewDB(t, testpg.Shared(t, testMajor))
	s := newServer(t, Config{URL: url})
	conn, app := connect(t, s, Use{}), connect(t, s, Use{Name: "the application"})
	run(t, conn, "CREATE TABLE public.t (i int)")
	prepared, gid := connect(t, s, Use{}), "left "+show(t, conn, "SELECT current_database()::text")
	run(t, prepared, "BEGIN", "INSERT INTO public.t VALUES (1)", "PREPARE TRANSACTION "+Literal(gid))
	run(t, app, "BEGIN", "INSERT INTO public.t VALUES (1)")
	var waits []LockWait
	err := WithLock(testContext(t), conn, Etiquette{
		Object: "public.t", Relations: []uint32{oid(t, conn, "public.t")}, LockTimeout: 20 * time.Millisecond, GiveUp: 3 * time.Second,
		Report: func(w LockWait) { waits = append(waits, w) },
	}, lockTable("public.t"))
	var lockErr *LockError
	if !errors.As(err, &lockErr) || SQLState(err) != "55P03" {
		t.Fatalf("error is %v", err)
	}
	if len(lockErr.Blockers) != 2 || len(waits) == 0 || len(waits[0].Blockers) != 2 {
		t.Fatalf("blockers %v, waits %v", lockErr.Blockers, waits)
	}
	b := lockErr.Blockers[0]
	if b.PID != int32(app.PgConn().PID()) || b.State != "idle in transaction" || !b.Granted || !strings.Contains(b.Application, "the application") {
		t.Errorf("first blocker %+v", b)
	}
	if got := lockErr.Blockers[1]; got.Prepared != gid || got.User != "postgres" {
		t.Errorf("second blocker %+v", got)
	}
	for _, want := range []string{"public.t", "idle in transaction", "prepared transaction", "the application"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if got := show(t, conn, "SHOW lock_timeout"); got != "0" {
		t.Errorf("lock_timeout is %s afterwards", got)
	}
	run(t, conn, "ROLLBACK PREPARED "+Literal(gid))
}

func TestWithLockGetsItOnceTheWayIsFree(t *testing.T) {
	s := newServer(t, Config{URL: testpg.NewDB(t, testpg.Shared(t, testMajor))})
	conn, app := connect(t, s, Use{}), connect(t, s, Use{})
	run(t, conn, "CREATE TABLE public.t (i int)")
	run(t, app, "BEGIN", "INSERT INTO public.t VALUES (1)")
	tries := 0
	err := WithLock(testContext(t), conn, Etiquette{
		Object: "public.t", Relations: []uint32{oid(t, conn, "public.t")}, LockTimeout: 20 * time.Millisecond,
		Report: func(w LockWait) {
			if w.Attempt == 1 {
				run(t, app, "COMMIT")
			}
		},
	}, func(ctx context.Context, tx pgx.Tx) error {
		tries++
		return lockTable("public.t")(ctx, tx)
	})
	if err != nil || tries < 2 {
		t.Errorf("%d tries, error %v", tries, err)
	}
	want := errors.New("not a lock's")
	if err := WithLock(testContext(t), conn, Etiquette{}, func(context.Context, pgx.Tx) error { return want }); !errors.Is(err, want) {
		t.Errorf("error is %v", err)
	}
}

// TestS1WithLockLetsAutovacuumYield: an autovacuum is cancelled only by a waiter of deadlock_timeout.
func TestS1WithLockLetsAutovacuumYield(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: testMajor, Settings: map[string]string{
		"autovacuum_naptime": "1s", "autovacuum_vacuum_cost_delay": "100ms", "autovacuum_vacuum_cost_limit": "1", "deadlock_timeout": "1s",
	}})
	s := newServer(t, Config{URL: c.ConnString()})
	conn := connect(t, s, Use{})
	run(t, conn, "CREATE TABLE public.t (i int, pad text) WITH (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0)",
		"INSERT INTO public.t SELECT i, repeat('x', 500) FROM generate_series(1, 30000) i", "DELETE FROM public.t WHERE i % 2 = 0")
	rel := oid(t, conn, "public.t")
	ctx := testContext(t)
	for {
		blockers, err := Blockers(ctx, conn, ShareRowExclusive, rel)
		if err != nil {
			t.Fatal(err)
		}
		if len(blockers) > 0 {
			if !blockers[0].Autovacuum || blockers[0].Wraparound {
				t.Fatalf("blockers %v", blockers)
			}
			break
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	attempts := 0
	err := WithLock(ctx, conn, Etiquette{Object: "public.t", Relations: []uint32{rel}, Report: func(LockWait) { attempts++ }}, lockTable("public.t"))
	if err != nil || attempts != 1 {
		t.Errorf("%d failed attempts, error %v", attempts, err)
	}
}

func TestCancellable(t *testing.T) {
	vacuum, app := Blocker{PID: 1, Autovacuum: true}, Blocker{PID: 2}
	done := map[int32]bool{}
	for _, tt := range []struct {
		name     string
		blockers []Blocker
		want     bool
	}{
		{"nobody", nil, false},
		{"with an application", []Blocker{vacuum, app}, false},
		{"against wraparound", []Blocker{{PID: 3, Autovacuum: true, Wraparound: true}}, false},
		{"alone", []Blocker{vacuum}, true},
		{"a second time", []Blocker{vacuum}, false},
	} {
		if got := cancellable(tt.blockers, done); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestF03TerminateLeftovers(t *testing.T) {
	url := testpg.NewDB(t, testpg.Shared(t, testMajor))
	cfg := Config{URL: url, RunID: "a_1"}
	alive, dead := newServer(t, cfg), newServer(t, cfg)
	other := newServer(t, Config{URL: url, RunID: "ax1"}) // would match a_1 as a LIKE pattern
	ours, ourSecond := connect(t, alive, Use{}), connect(t, alive.ForRun("a_1", "m"), Use{Name: "pass"})
	worker, foreign := connect(t, dead, Use{Name: "worker 1"}), connect(t, other, Use{Name: "pass"})
	left := connect(t, dead, Use{Name: "hold"})
	run(t, left, "BEGIN", "CREATE TABLE public.t (i int)")
	pids, err := alive.TerminateLeftovers(testContext(t), ours)
	if err != nil || len(pids) != 1 || uint32(pids[0]) != left.PgConn().PID() {
		t.Fatalf("ended %v, %v", pids, err)
	}
	for _, conn := range []*pgx.Conn{ours, ourSecond, worker, foreign} {
		run(t, conn, "SELECT 1")
	}
	if _, err := left.Exec(testContext(t), "SELECT 1"); !IsConnLost(err) {
		t.Errorf("the leftover session lives: %v", err)
	}
	run(t, ours, "CREATE TABLE public.t (i int)")
	if pids, err := alive.TerminateLeftovers(testContext(t), ours); err != nil || len(pids) > 0 {
		t.Errorf("second time: %v, %v", pids, err)
	}
}

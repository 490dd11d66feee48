package freeze

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// queued waits until somebody waits for the gate's key at the source.
func (p *pair) queued(why string) {
	p.t.Helper()
	conn := p.connect(p.source)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var n int
		if err := conn.QueryRow(context.Background(), `SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
			WHERE l.locktype = 'advisory' AND NOT l.granted`).Scan(&n); err != nil {
			p.t.Fatal(err)
		}
		if n > 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("nobody waits for the gate: %s", why)
		}
	}
}

func (p *pair) run(conn *pgx.Conn, sql string) {
	p.t.Helper()
	if _, err := conn.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
}

// holding asks for the source's hold, as an attempt does.
func (p *pair) holding() <-chan error {
	p.t.Helper()
	c, err := p.freeze.open(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.close(context.Background()) })
	held := make(chan error, 1)
	go func() {
		_, err := p.freeze.hold(context.Background(), c.from, c.look, p.freeze.From, flagClosed)
		held <- err
	}()
	return held
}

// gaveWay demands that a hold gave way, and that its end names who it gave way to, and nobody else.
func (p *pair) gaveWay(err error, to *pgx.Conn) {
	p.t.Helper()
	var blocked *BlockedError
	if !errors.Is(err, ErrBusy) || !errors.As(err, &blocked) {
		p.t.Errorf("the hold: %v, want it to give way and to say to whom", err)
		return
	}
	if len(blocked.Blockers) != 1 || blocked.Blockers[0].PID != int32(to.PgConn().PID()) {
		p.t.Errorf("it names %v, want only pid %d", blocked, to.PgConn().PID())
	}
}

// A monitoring query on pg_sequences keeps a lock on the gate's sequence until its transaction ends:
// the flag is set first, so that this is noticed before anybody waits.
func TestR2MonitoringTransactionStopsNobody(t *testing.T) {
	p := newPair(t)
	monitor := p.connect(p.source)
	p.run(monitor, "BEGIN; SELECT pg_sequence_last_value('pgrunbook.gate_flag'::regclass)")
	_, err := p.freeze.Attempt(context.Background(), 1)
	if err == nil {
		p.wantSide("target") // this major takes no lock for it
		return
	}
	p.gaveWay(err, monitor)
	p.wantSide("source")
	p.run(monitor, "COMMIT")
	if _, err := p.freeze.Attempt(context.Background(), 2); err != nil {
		t.Fatal(err)
	}
	p.wantSide("target")
}

// Switch steps run while writers wait on both sides: nobody is refused meanwhile, and when the runner
// dies in one the source takes writes.
func TestR3SwitchStepsRunUnderTheHold(t *testing.T) {
	p := newPair(t)
	p.freeze.Budget = 20 * time.Second
	var source, target string
	p.freeze.Switch = []SwitchStep{{
		Name: "dns", Timeout: 15 * time.Second, Undo: func(context.Context) error { return nil },
		Do: func(context.Context) error {
			source, target = p.waits(p.source), p.waits(p.target)
			p.exec(p.source, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			                   WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 hold%'`)
			return nil
		},
	}}
	// A session that dies as its COMMIT is sent has not said whether it came to it: that is looked up.
	if _, err := p.freeze.Attempt(context.Background(), 1); !errors.Is(err, ErrNotNow) && !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v", err)
	}
	if source != "57014" || target != "57014" {
		t.Errorf("in a switch step a writer got %q at the source and %q at the target, want both to wait", source, target)
	}
	p.wantSide("source")
}

// A TRUNCATE that comes once the final pass has let the table go waits at the gate with the table in hand,
// and is refused by the flip: it is no reason to undo anything.
func TestR9TruncateThatComesDuringTheFreeze(t *testing.T) {
	p := newPair(t)
	p.freeze.Budget = 20 * time.Second
	late, refused := p.connect(p.source), make(chan error, 1)
	p.passed = func(context.Context) error {
		go func() {
			_, err := late.Exec(context.Background(), "TRUNCATE public.account")
			refused <- err
		}()
		p.queued("the TRUNCATE behind the freeze")
		return nil
	}
	if _, err := p.freeze.Attempt(context.Background(), 1); err != nil {
		t.Error(err)
	}
	if got := state(<-refused); got != "25006" {
		t.Errorf("the TRUNCATE ended with %q, want it refused", got)
	}
	p.wantSide("target")
}

// A runner that is killed while it waits for the gate leaves its request in the queue: only the
// server's own limit takes it out, and until then every other writer stands behind it.
func TestR6KilledWhileQueueing(t *testing.T) {
	p := newPair(t)
	idle, runner := p.connect(p.source), p.connect(p.source)
	p.run(idle, "BEGIN; UPDATE public.account SET balance = 0 WHERE id = 2")
	done := make(chan error, 1)
	go func() {
		_, err := take(context.Background(), runner, "source", p.freeze.Run, flagClosed)
		done <- err
	}()
	p.queued("the freeze behind an idle writer")
	_ = runner.PgConn().Conn().Close() // no cancel, no good-bye: what a SIGKILL leaves
	if got := p.write(p.source); got != "" {
		t.Errorf("a writer behind a dead runner's request: %q", got)
	}
	if err := <-done; err == nil {
		t.Error("the hold was taken beside a writer")
	}
	p.run(idle, "COMMIT")
	p.wantSide("source")
}

// Row locks are taken without passing the gate: a waits for b, b for the hold, the hold for a. The
// server finds no victim before deadlock_timeout; the hold gives way before that, and nobody fails.
func TestR11RowLocksTakenBeforeTheGate(t *testing.T) {
	p := newPair(t)
	a, b := p.connect(p.source), p.connect(p.source)
	p.run(a, "BEGIN; SELECT * FROM public.account WHERE id = 1 FOR UPDATE")
	p.run(b, "BEGIN; UPDATE public.account SET balance = 1 WHERE id = 2")
	bDone := make(chan error, 1)
	go func() {
		_, err := b.PgConn().Exec(context.Background(), "UPDATE public.account SET balance = 2 WHERE id = 1; COMMIT").ReadAll()
		bDone <- err
	}()
	held := p.holding()
	p.queued("the freeze behind b")
	p.run(a, "UPDATE public.account SET balance = 3 WHERE id = 1; COMMIT")
	p.gaveWay(<-held, b)
	if err := <-bDone; err != nil {
		t.Errorf("the application's other transaction: %v", err)
	}
	p.wantSide("source")
}

// One unit of work on two connections (an audit by dblink): the outer one holds the gate, the inner
// one queues behind the freeze, and no detector sees that. The freeze gives way.
func TestR12OneUnitOfWorkOnTwoConnections(t *testing.T) {
	p := newPair(t)
	outer, inner := p.connect(p.source), p.connect(p.source)
	p.run(outer, "BEGIN; UPDATE public.account SET balance = 1 WHERE id = 1")
	held := p.holding()
	p.queued("the freeze behind the outer connection")
	p.run(inner, "INSERT INTO public.account VALUES (50, 1)")
	p.run(outer, "COMMIT")
	p.gaveWay(<-held, outer)
	p.wantSide("source")
}

// A COMMIT that waits for a standby shows the old flag: whoever looks without the key in hand takes
// the freeze for undone, and the COMMIT closes the source afterwards.
func TestR17CommitThatWaitsForAStandby(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: 15})
	p := newPairOn(t, c)
	hold, err := take(context.Background(), p.connect(p.source), "source", p.freeze.Run, flagClosed)
	if err != nil {
		t.Fatal(err)
	}
	p.exec(p.source, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	p.exec(p.source, "SELECT pg_reload_conf()")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	watch := p.connect(p.source)
	waits := func(conn *pgx.Conn) (yes bool) {
		for deadline := time.Now().Add(2 * time.Second); !yes && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			err := watch.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')", int32(conn.PgConn().PID())).Scan(&yes)
			if err != nil {
				t.Fatal(err)
			}
		}
		return yes
	}
	// The checkpointer tells the others of the setting, at its leisure.
	for n, known := 0, false; !known; n++ {
		probe := p.connect(p.source)
		go func() { _, _ = probe.Exec(ctx, fmt.Sprintf("CREATE TABLE public.probe_%d ()", n)) }()
		if known = waits(probe); n == 20 {
			t.Fatal("no COMMIT waits for a standby")
		}
		p.run(watch, fmt.Sprintf("SELECT pg_terminate_backend(%d)", probe.PgConn().PID()))
	}
	pid := int32(hold.conn.PgConn().PID())
	p.run(hold.conn, "SET application_name = 'pgrunbook "+p.freeze.Run.ID+" hold'")
	if err := hold.Commit(ctx); err == nil || refused(err) {
		t.Fatalf("a COMMIT that has no answer ended with %v", err)
	}
	waiting := func() (yes bool) {
		if err := watch.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')", pid).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		return yes
	}
	if _, err := p.freeze.From.ForRun(p.freeze.Run.ID, p.freeze.Run.Mark).TerminateLeftovers(ctx, p.connect(p.source)); err != nil { // as the next command does
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * holdStatement); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if !waiting() {
			t.Fatal("the COMMIT did not wait on for a standby: nobody but the standby may end that")
		}
	}
	var plain int64
	if err := watch.QueryRow(ctx, "SELECT last_value FROM pgrunbook.gate_flag").Scan(&plain); err != nil || plain != flagOpen {
		t.Fatalf("without the key the flag is %d, %v: there is nothing to be wrong about", plain, err)
	}
	look, end := context.WithTimeout(ctx, 700*time.Millisecond)
	defer end()
	if s, err := p.freeze.Look(look); err == nil {
		t.Errorf("a look that should wait says %+v", s)
	}
	p.exec(p.source, "ALTER SYSTEM RESET synchronous_standby_names")
	p.exec(p.source, "SELECT pg_reload_conf()")
	for waiting() {
		time.Sleep(10 * time.Millisecond)
	}
	if opened, err := p.freeze.Resolve(ctx); err != nil || !opened {
		t.Fatalf("opened %v, %v", opened, err)
	}
	p.wantSide("target")
}

// During a hold the application's pools grow until no connection is left: the one that the freeze
// opens last has a place kept for it.
func TestR30NoConnectionIsLeft(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: 15, Settings: map[string]string{"max_connections": "20", "superuser_reserved_connections": "0"}})
	p := newPairOn(t, c)
	p.freeze.Budget = 20 * time.Second
	p.passed = func(context.Context) error {
		for {
			conn, err := pgx.Connect(context.Background(), p.source)
			if state(err) == "53300" {
				return nil
			}
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = conn.Close(context.Background()) })
		}
	}
	if _, err := p.freeze.Attempt(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
}

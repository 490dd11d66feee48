package freeze

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestFlip(t *testing.T) {
	p := newPair(t)
	p.wantSide("source")
	cert, err := p.freeze.Attempt(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	p.wantSide("target")
	if cert.Blocked <= 0 || cert.Blocked > p.freeze.Budget || cert.Proof.Looks < 1 || len(cert.Marks) != 5 {
		t.Errorf("certificate %+v", cert)
	}
}

// A hold that is lost without the runner being told must not lose a write: the flag is part of
// the hold (a flag set over another connection lost 191 to 205 commits here).
func TestR1HoldLostUnnoticed(t *testing.T) {
	p := newPair(t)
	p.passed = func(context.Context) error {
		p.exec(p.source, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		                   WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 hold%'`)
		if got := p.write(p.source); got != "" {
			t.Errorf("write after the hold was lost: %s", got)
		}
		return nil
	}
	_, err := p.freeze.Attempt(context.Background(), 1)
	if err == nil {
		t.Fatal("flipped without a hold")
	}
	p.wantSide("source")
	p.passed = func(context.Context) error { return nil }
	if _, err := p.freeze.Attempt(context.Background(), 2); err != nil {
		t.Fatal("second attempt:", err)
	}
	p.wantSide("target")
}

// A stopped process still acknowledges TCP, so only the server's own timeout frees the writers.
func TestR5StoppedRunnerLosesTheHold(t *testing.T) {
	p := newPair(t)
	conn := p.connect(p.source)
	hold, err := take(context.Background(), conn, "source", p.freeze.Run, flagClosed)
	if err != nil {
		t.Fatal(err)
	}
	hold.mu.Lock() // no heartbeat gets through from here on
	start := time.Now()
	if got := p.write(p.source); got != "" {
		t.Fatalf("write in an abandoned hold: %s", got)
	}
	if waited := time.Since(start); waited < idleTimeout/2 {
		t.Errorf("the write waited only %s: the hold did not hold", waited)
	}
	hold.mu.Unlock()
	if err := hold.Commit(context.Background()); err == nil {
		t.Error("COMMIT of a lost hold succeeded")
	}
	p.wantSide("source")
}

// What undoes the switch steps may take long: the application writes on at from meanwhile, and who was
// sent to to waits there until it is sent back.
func TestR26BudgetUndoesSwitchStepsInReverse(t *testing.T) {
	p := newPair(t)
	p.freeze.Budget = 3 * time.Second
	var did []string
	step := func(name string, d time.Duration) SwitchStep {
		return SwitchStep{
			Name: name, Timeout: time.Minute,
			Do: func(ctx context.Context) error {
				did = append(did, name)
				select {
				case <-time.After(d):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			Undo: func(context.Context) error {
				did = append(did, "undo "+name)
				if s, t := p.write(p.source), p.waits(p.target); s != "" || t != "57014" {
					p.t.Errorf("during undo %s a write at the source ended with %q, want it to succeed, and one at the target with %q, want it to wait", name, s, t)
				}
				return nil
			},
		}
	}
	p.freeze.Switch = []SwitchStep{step("dns", 0), step("slow", time.Minute), step("never", 0)}
	_, err := p.freeze.Attempt(context.Background(), 1)
	if !errors.Is(err, ErrNotNow) {
		t.Fatalf("got %v", err)
	}
	want := []string{"dns", "slow", "undo slow", "undo dns"}
	if len(did) != len(want) {
		t.Fatalf("did %v, want %v", did, want)
	}
	for i := range want {
		if did[i] != want[i] {
			t.Fatalf("did %v, want %v", did, want)
		}
	}
	p.wantSide("source")
}

// What ends while an attempt is undone is not why it was.
func TestWhyAnAttemptIsUndone(t *testing.T) {
	p := newPair(t)
	p.freeze.Budget = time.Minute
	p.freeze.Switch = []SwitchStep{{
		Name: "dns", Timeout: time.Minute, Do: func(context.Context) error { return errors.New("no such zone") },
		Undo: func(context.Context) error {
			p.exec(p.target, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			                   WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 hold%'`)
			time.Sleep(3 * heartbeatEvery)
			return nil
		},
	}}
	_, err := p.freeze.Attempt(context.Background(), 1)
	if err == nil || !strings.Contains(err.Error(), "no such zone") || strings.Contains(err.Error(), "was lost") {
		t.Errorf("got %v", err)
	}
	p.wantSide("source")
}

// A runner that dies between the two COMMITs leaves both sides closed; whoever calls Resolve ends it.
func TestResolveBetweenTheCommits(t *testing.T) {
	p := newPair(t)
	p.exec(p.source, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 1")
	if got := p.sides(); got != `source "25006", target "25006"` {
		t.Fatalf("not between the commits: %s", got)
	}
	for range 2 {
		opened, err := p.freeze.Resolve(context.Background())
		if err != nil || !opened {
			t.Fatalf("opened %v, %v", opened, err)
		}
		p.wantSide("target")
	}
}

func TestResolveBeforeTheFlipChangesNothing(t *testing.T) {
	p := newPair(t)
	opened, err := p.freeze.Resolve(context.Background())
	if err != nil || opened {
		t.Fatalf("opened %v, %v", opened, err)
	}
	p.wantSide("source")
}

// Writers that hold nothing must be found, or what they commit after the final pass is lost.
func TestR7ProofFindsWritersThatHoldNothing(t *testing.T) {
	for name, sql := range map[string]string{
		"disabled trigger": "BEGIN; ALTER TABLE public.account DISABLE TRIGGER ALL; UPDATE public.account SET balance = 0 WHERE id = 2",
		"created a table":  "BEGIN; CREATE TABLE public.invoice AS SELECT 1 AS id",
		"prepared":         "BEGIN; ALTER TABLE public.account DISABLE TRIGGER ALL; UPDATE public.account SET balance = 0 WHERE id = 2; PREPARE TRANSACTION 'r7'",
		"replica role": `ALTER TABLE public.account ENABLE TRIGGER "!pgrunbook_gate"; BEGIN; SET LOCAL session_replication_role = replica;
		             UPDATE public.account SET balance = 0 WHERE id = 3`,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			writer := p.connect(p.source)
			if _, err := writer.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
				t.Fatal(err)
			}
			_, err := p.freeze.Attempt(context.Background(), 1)
			var blocked *BlockedError
			if !errors.As(err, &blocked) || !errors.Is(err, ErrNotNow) {
				t.Fatalf("got %v", err)
			}
			end := "ROLLBACK"
			if name == "prepared" {
				end = "ROLLBACK PREPARED 'r7'"
			}
			if _, err := writer.Exec(context.Background(), end); err != nil {
				t.Fatal(err)
			}
			if _, err := p.freeze.Attempt(context.Background(), 2); err != nil {
				t.Fatal("once it is gone:", err)
			}
		})
	}
}

// An idle writer must not be queued behind: every other writer would wait with us.
func TestR13IdleWriterIsNamedAndNotQueuedBehind(t *testing.T) {
	p := newPair(t)
	writer := p.connect(p.source)
	if _, err := writer.PgConn().Exec(context.Background(), "BEGIN; UPDATE public.account SET balance = 0 WHERE id = 2").ReadAll(); err != nil {
		t.Fatal(err)
	}
	_, err := p.freeze.Attempt(context.Background(), 1) // younger than a second: queued for, given up
	if slow := (*BlockedError)(nil); !errors.Is(err, ErrBusy) && !errors.As(err, &slow) {
		t.Fatalf("got %v", err)
	}
	time.Sleep(oldWriter)
	_, err = p.freeze.Attempt(context.Background(), 2)
	var blocked *BlockedError
	if !errors.As(err, &blocked) || blocked.Blockers[0].PID != int32(writer.PgConn().PID()) {
		t.Fatalf("got %v", err)
	}
	if _, err := writer.Exec(context.Background(), "COMMIT"); err != nil {
		t.Fatal("the writer was hurt:", err)
	}
	p.wantSide("source")
}

// A session on the target that saw the data before the final pass must not commit what it
// computed from it.
func TestR21OldSnapshotOnTheTargetIsEnded(t *testing.T) {
	p := newPair(t)
	old := p.connect(p.target)
	if _, err := old.PgConn().Exec(context.Background(), "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM public.account").ReadAll(); err != nil {
		t.Fatal(err)
	}
	cert, err := p.freeze.Attempt(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.Ended) != 1 {
		t.Errorf("ended %v", cert.Ended)
	}
	if _, err := old.Exec(context.Background(), "INSERT INTO public.account VALUES (99, 0)"); err == nil {
		t.Error("the old snapshot wrote")
	}
}

func TestRehearsalLetsGo(t *testing.T) {
	p := newPair(t)
	p.freeze.Rehearsal = true
	switched := false
	p.freeze.Switch = []SwitchStep{{Name: "dns", Timeout: time.Second, Do: func(context.Context) error { switched = true; return nil }}}
	for n := range 2 {
		cert, err := p.freeze.Attempt(context.Background(), n+1)
		if err != nil {
			t.Fatal(err)
		}
		if cert.Blocked <= 0 || switched {
			t.Errorf("certificate %+v, switched %v", cert, switched)
		}
		p.wantSide("source")
	}
}

// An attempt that comes to no end says how long writers waited for it, and so does one that carried
// everything over: what is predicted rests on that.
func TestMarksSayHowLongWritersWaited(t *testing.T) {
	p := newPair(t)
	took := map[string]time.Duration{}
	p.freeze.Mark = func(name, _ string, waited time.Duration) { took[name] = waited }
	fails := errors.New("no room")
	p.passed = func(context.Context) error { return fails }
	if _, err := p.freeze.Attempt(context.Background(), 1); !errors.Is(err, fails) {
		t.Errorf("the attempt ended with %v", err)
	}
	if took[MarkHold] <= 0 || took[MarkUndo] <= took[MarkHold] || took[MarkCarried] != 0 {
		t.Errorf("of an attempt whose pass failed: %v", took)
	}
	p.wantSide("source")
	clear(took)
	p.passed = func(context.Context) error { return nil }
	p.freeze.AtOpen = func(context.Context, ExecFunc) error { return fails }
	if _, err := p.freeze.Attempt(context.Background(), 2); !errors.Is(err, fails) {
		t.Errorf("the attempt ended with %v", err)
	}
	if took[MarkCarried] <= took[MarkHold] || took[MarkUndo] <= took[MarkCarried] {
		t.Errorf("of an attempt that could not open the target: %v", took)
	}
	p.wantSide("source")
}

// A target that falls silent while its hold works holds up the source's writers no longer than one
// statement may take: heartbeats wait behind the statement and would not notice.
func TestF14SilentTargetInItsHold(t *testing.T) {
	p := newPair(t)
	u, err := url.Parse(p.target)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := testpg.Listen(context.Background(), u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	p.freeze.To, p.freeze.Budget = server(t, "target", proxy.URL(p.target)), 10*time.Minute
	p.freeze.AtOpen = func(ctx context.Context, exec ExecFunc) error {
		proxy.BlackHole(true)
		return exec(ctx, "SELECT 1")
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Minute, errors.New("the source was held for a minute"))
	defer cancel()
	_, err = p.freeze.Attempt(ctx, 1)
	if !errors.Is(err, ErrNotNow) || ctx.Err() != nil {
		t.Errorf("got %v, %v", err, context.Cause(ctx))
	}
	if proxy.Fired(testpg.FaultBlackHole) == 0 {
		t.Error("nothing was held back")
	}
	proxy.Heal()
	p.wantSide("source")
}

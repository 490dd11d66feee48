package freeze

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// hold takes a side's gate as a runner does, with its heartbeat.
func (p *pair) hold(srv *pg.Server, flag int) *Hold {
	p.t.Helper()
	ctx := context.Background()
	conn, err := srv.Connect(ctx, pg.Use{Name: holdName, Marked: true, Hold: true})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close(ctx) })
	h, err := take(ctx, conn, srv.Side(), p.freeze.Run, flag)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { h.Release(ctx) })
	return h
}

// gates opens the sessions that look at both gates, until the test ends.
func (p *pair) gates() {
	p.t.Helper()
	ctx := context.Background()
	var err error
	if p.freeze.Gates, err = OpenGates(ctx, p.freeze.From, p.freeze.To); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { p.freeze.Gates.Close(ctx) })
}

// A runner that stands still, or only seems to, between the COMMITs still holds to. Who ends the flip
// does not wait for that, and the runner's COMMIT comes too late.
func TestF03ResolveEndsTheHoldOnTo(t *testing.T) {
	p := newPair(t)
	ctx := context.Background()
	p.exec(p.source, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 1")
	hold := p.hold(p.freeze.To, flagOpen)
	p.gates()
	s, err := p.freeze.Look(ctx)
	if err != nil || !s.FromClosed || !s.ToClosed {
		t.Fatalf("looking: %+v, %v", s, err)
	}
	if opened, err := p.freeze.Resolve(ctx); err != nil || !opened {
		t.Fatalf("opened %v, %v", opened, err)
	}
	p.wantSide("target")
	if err := hold.Commit(ctx); err == nil {
		t.Error("the runner that was stood in for could COMMIT all the same")
	}
	p.wantSide("target")
}

// While a hold is there, nobody may conclude anything from from's flag: one looks without waiting, the
// other waits.
func TestLooksDuringTheHold(t *testing.T) {
	p := newPair(t)
	ctx := context.Background()
	p.gates()
	hold := p.hold(p.freeze.From, flagClosed)
	if closed, err := p.freeze.FromClosed(ctx); err != nil || closed {
		t.Errorf("in the hold from is closed: %v, %v", closed, err)
	}
	told := make(chan error, 1)
	go func() {
		told <- p.freeze.WhileFromWrites(ctx, func(context.Context, func(context.Context) error) error {
			return errors.New("it was told that from is open")
		})
	}()
	p.queued("the look waits for the hold's end")
	if err := hold.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-told; !errors.Is(err, ErrClosedSince) {
		t.Errorf("after the COMMIT: %v", err)
	}
	if closed, err := p.freeze.FromClosed(ctx); err != nil || !closed {
		t.Errorf("after the COMMIT from is closed: %v, %v", closed, err)
	}
}

// What is concluded from an open gate is recorded before a hold can begin.
func TestNoHoldWhileFromWrites(t *testing.T) {
	p := newPair(t)
	err := p.freeze.WhileFromWrites(context.Background(), func(ctx context.Context, still func(context.Context) error) error {
		conn, err := p.freeze.From.Connect(ctx, pg.Use{Name: holdName, Marked: true, Hold: true})
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }()
		if _, err := take(ctx, conn, "source", p.freeze.Run, flagClosed); !errors.Is(err, ErrBusy) {
			t.Errorf("a hold began meanwhile: %v", err)
		}
		return still(ctx)
	})
	if err != nil {
		t.Error(err)
	}
	p.wantSide("source")
}

// A hold that its server does not end is ended by whoever knows its name: its COMMIT comes too late. Another
// process's is let be, and so is one at its COMMIT, which may wait for a standby.
func TestF08HoldsAreEndedByName(t *testing.T) {
	p := newPair(t)
	ctx := context.Background()
	p.gates()
	names := p.freeze.HoldNames()
	ends := func(want string) {
		t.Helper()
		if ended, err := p.freeze.EndHolds(ctx, names); err != nil || strings.Join(ended, " ") != want {
			t.Errorf("ended holds on %q, want %q: %v", ended, want, err)
		}
	}
	other := p.hold(server(t, "source", p.source), flagClosed)
	ends("")
	if err := other.Alive(ctx); err != nil {
		t.Errorf("another process's hold was ended: %v", err)
	}
	other.Release(ctx)
	busy := p.hold(p.freeze.From, flagClosed)
	working := make(chan error, 1)
	go func() { working <- busy.Exec(ctx, "SELECT pg_sleep(0.8)") }()
	p.working()
	ends("")
	if err := <-working; err != nil {
		t.Errorf("a hold whose session was at work was ended: %v", err)
	}
	to := p.hold(p.freeze.To, flagOpen)
	ends("source target")
	for _, hold := range []*Hold{busy, to} {
		if err := hold.Commit(ctx); err == nil {
			t.Error("a hold that was ended could COMMIT")
		}
	}
	p.wantSide("source")
}

// mayNotEnd takes from everybody what ends a session.
const mayNotEnd = `DO $$ BEGIN EXECUTE format('ALTER FUNCTION %s RENAME TO not_for_us',
  (SELECT oid::regprocedure FROM pg_proc WHERE proname = 'pg_terminate_backend')); END $$`

// A side on which holds may not be ended keeps that of the other side no longer: whose it is, is said.
func TestF08HoldsThatMayNotBeEnded(t *testing.T) {
	for i, side := range []string{"source", "target"} {
		t.Run(side, func(t *testing.T) {
			p := newPair(t)
			ctx := context.Background()
			p.gates()
			holds := []*Hold{p.hold(p.freeze.From, flagClosed), p.hold(p.freeze.To, flagOpen)}
			p.exec([]string{p.source, p.target}[i], mayNotEnd)
			ended, err := p.freeze.EndHolds(ctx, p.freeze.HoldNames())
			if other := []string{"target", "source"}[i]; len(ended) != 1 || ended[0] != other {
				t.Errorf("ended holds on %q, want the %s", ended, other)
			}
			if pg.SQLState(err) != "42883" || !strings.Contains(err.Error(), "hold on the "+side) {
				t.Errorf("of the %s it says %v", side, err)
			}
			if err := holds[1-i].Commit(ctx); err == nil {
				t.Error("a hold that was ended could COMMIT")
			}
			if err := holds[i].Alive(ctx); err != nil {
				t.Errorf("a hold that may not be ended is gone: %v", err)
			}
		})
	}
}

// working waits until a statement sleeps on the source.
func (p *pair) working() {
	p.t.Helper()
	conn := p.connect(p.source)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		var n int
		if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'").Scan(&n); err != nil || time.Now().After(deadline) {
			p.t.Fatalf("nobody is at work: %v", err)
		}
		if n > 0 {
			return
		}
	}
}

// Somebody cancels the wait of from's COMMIT for a synchronous standby: from shows itself closed, and a failover to that
// standby would open it again. The runner does not take the COMMIT's word, and who ends the flip opens to only when a
// later COMMIT was waited for.
func TestR17CommitWhoseWaitWasCancelled(t *testing.T) {
	major, _, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: major})
	p := newPairOn(t, c)
	ctx := context.Background()
	hold := p.hold(p.freeze.From, flagClosed)
	pid := hold.conn.PgConn().PID()
	back := testpg.LoseStandbyT(t, c)
	committed := make(chan error, 1)
	go func() { committed <- hold.Commit(ctx) }()
	testpg.CancelStandbyT(t, p.source, fmt.Sprintf("pid = %d", pid), committed)
	if err := <-committed; !errors.Is(err, pg.ErrAlone) || refused(err) {
		t.Fatalf("the COMMIT whose wait was cancelled ended with %v", err)
	}
	p.wantSide(`source "25006", target "25006"`)
	p.gates()
	resolved := make(chan error, 1)
	go func() {
		opened, err := p.freeze.Resolve(ctx)
		if err == nil && !opened {
			err = errors.New("it did not open the target")
		}
		resolved <- err
	}()
	testpg.AwaitStandbyT(t, p.source, fmt.Sprintf("pid = %d", p.freeze.Gates.from.PgConn().PID()), resolved)
	p.wantSide(`source "25006", target "25006"`)
	back()
	if err := <-resolved; err != nil {
		t.Fatal(err)
	}
	p.wantSide("target")
}

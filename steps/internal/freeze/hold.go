package freeze

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// The limits of a hold. They live on the server, so that a runner that is dead, stopped or cut
// off loses the hold within a second: keepalives and tcp_user_timeout do not do that
// (a stopped process still acknowledges, and unacknowledged data stops keepalives).
const (
	idleTimeout    = time.Second            // idle_in_transaction_session_timeout of the hold
	drainTimeout   = 250 * time.Millisecond // longest wait for writers in flight; below deadlock_timeout
	holdStatement  = time.Second            // statement_timeout of the hold
	heartbeatEvery = 200 * time.Millisecond
	answerWait     = time.Second            // longest wait for what a live server answers at once, COMMIT included
	releaseWait    = 300 * time.Millisecond // for ROLLBACK: the server rolls back without it as well
)

// holdName is in the application_name of a hold's session: whoever ends a flip finds it by that.
const holdName = "hold"

// Flag values of the gate's sequence. Anything but Open is closed.
const (
	flagOpen   = 0
	flagClosed = 1
)

// ErrBusy says that the application's writers did not make room in time; nothing was changed.
var ErrBusy = errors.New("writers in flight did not end in time")

// errNoCommit marks a COMMIT that is known not to have happened: it was never sent, or the server answered
// that it rolled back.
var errNoCommit = errors.New("nothing was committed")

// Hold is one transaction on one connection that holds a side's gate. Its COMMIT makes the flag
// that it set visible; its end in any other way undoes it.
type Hold struct {
	side    string
	conn    *pgx.Conn
	mu      sync.Mutex // the connection: heartbeat, statements and the end take turns
	ended   bool
	stop    context.CancelFunc
	beating sync.WaitGroup
	lost    chan struct{} // closed when a heartbeat failed
	cause   error         // why; set before lost is closed
	Took    time.Duration // from BEGIN until the gate was held: what the drain cost
	Since   time.Time     // when writers began to wait, by the runner's clock
	over    time.Time     // when they no longer did; zero: they do
	Drained []Blocker     // who had passed the gate and was waited for, at most 100
}

// begin is the hold's transaction. The flag comes first: ALTER SEQUENCE is transactional, nobody
// sees it before COMMIT, and at the end of a freeze a monitoring query on pg_sequences could
// block it. READ COMMITTED, since a snapshot taken before the wait would be too old.
const begin = `
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL idle_in_transaction_session_timeout = %d;
SET LOCAL lock_timeout = %d;
SET LOCAL statement_timeout = %d;
SET LOCAL synchronous_commit = on;
ALTER SEQUENCE pgrunbook.gate_flag RESTART %d`

// hold takes a side's gate, or names who kept it from that. look is a second session there.
func (f *Freeze) hold(ctx context.Context, conn, look *pgx.Conn, srv *pg.Server, flag int) (*Hold, error) {
	// Just before the hold, which waits for exactly these: the look costs no writer anything.
	lookCtx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	before, err := blockers(lookCtx, look, inFlightSQL, f.Run.GateKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotNow, err)
	}
	hold, err := take(ctx, conn, srv.Side(), f.Run, flag)
	if errors.Is(err, ErrBusy) {
		if left := inTheWay(ctx, look, f.Run, before); len(left) > 0 {
			err = fmt.Errorf("%w: %w", err, &BlockedError{Blockers: left})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotNow, err)
	}
	hold.Drained = before
	return hold, nil
}

// take holds the gate of the side behind conn and sets its flag, invisible until Commit.
// A wait that is too long ends with ErrBusy and nothing changed.
func take(ctx context.Context, conn *pgx.Conn, side string, run scope.Run, flag int) (*Hold, error) {
	start := time.Now()
	sql := fmt.Sprintf(begin, idleTimeout.Milliseconds(), drainTimeout.Milliseconds(), holdStatement.Milliseconds(), flag)
	switch {
	case failpoint.Mutant("freeze.setval"):
		sql = strings.Replace(sql, "ALTER SEQUENCE pgrunbook.gate_flag RESTART", "SELECT pg_catalog.setval('pgrunbook.gate_flag',", 1) + ")"
	case failpoint.Mutant("freeze.flag_outside"): // flip sets it, over another connection
		sql, _, _ = strings.Cut(sql, "ALTER SEQUENCE")
	}
	takeCtx, cancel := context.WithTimeout(ctx, drainTimeout+answerWait)
	defer cancel()
	_, err := conn.PgConn().Exec(takeCtx, sql).ReadAll()
	if err == nil && !failpoint.Mutant("freeze.no_drain") {
		_, err = conn.Exec(takeCtx, "SELECT pg_catalog.pg_advisory_xact_lock($1)", run.GateKey)
	}
	if err != nil {
		rollback(ctx, conn)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && (pgErr.Code == "55P03" || pgErr.Code == "57014") {
			return nil, fmt.Errorf("holding the gate on the %s: %w after %s: %w", side, ErrBusy, drainTimeout, err)
		}
		return nil, fmt.Errorf("holding the gate on the %s: %w", side, err)
	}
	hold := &Hold{side: side, conn: conn, lost: make(chan struct{}), Took: time.Since(start), Since: start}
	beatCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	hold.stop = stop
	if failpoint.Mutant("freeze.flag_outside") { // nobody is told that the hold is gone
		return hold, nil
	}
	hold.beating.Add(1)
	go hold.beat(beatCtx)
	return hold, nil
}

// beat keeps the server from ending the hold while the runner lives.
func (h *Hold) beat(ctx context.Context) {
	defer h.beating.Done()
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h.mu.Lock()
		if h.ended {
			h.mu.Unlock()
			return
		}
		beatCtx, cancel := context.WithTimeout(ctx, idleTimeout)
		_, err := h.conn.Exec(beatCtx, "SELECT 1")
		cancel()
		h.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			h.cause = fmt.Errorf("the hold on the %s was lost: %w", h.side, err)
			close(h.lost)
			return
		}
	}
}

// Lost is closed when the hold is known to be gone. It can be gone without this being known:
// only a successful Commit proves that it was there until the end.
func (h *Hold) Lost() <-chan struct{} { return h.lost }

// Cause says why the hold was lost.
func (h *Hold) Cause() error {
	select {
	case <-h.lost:
		return h.cause
	default:
		return nil
	}
}

// Exec runs one short statement in the hold's transaction. It waits for a heartbeat's answer, and heartbeats wait for it, so it must notice
// a network that has fallen silent by itself; the server gives it up at that time as well.
func (h *Hold) Exec(ctx context.Context, sql string, args ...any) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return fmt.Errorf("the hold on the %s has ended", h.side)
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	_, err := h.conn.Exec(ctx, sql, args...)
	return err
}

// Alive asks the server for a sign, so that an answer that would not come is missed before it matters.
func (h *Hold) Alive(ctx context.Context) error {
	if err := h.Exec(ctx, "SELECT 1"); err != nil {
		return fmt.Errorf("the hold on the %s does not answer: %w", h.side, err)
	}
	return nil
}

// Commit ends the hold and makes the flag visible: the one act that cannot succeed when the hold
// was lost. After an error that is not the server's own answer the outcome is unknown.
func (h *Hold) Commit(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended { // by Release, which the budget may call at any time
		return fmt.Errorf("committing the hold on the %s: it had been let go: %w", h.side, errNoCommit)
	}
	h.ended = true
	h.stop()
	tag, err := commit(ctx, h.conn.PgConn())
	h.over = time.Now()
	if err != nil {
		return fmt.Errorf("committing the hold on the %s: %w", h.side, err)
	}
	if tag != "COMMIT" { // a failed transaction answers ROLLBACK without an error
		return fmt.Errorf("committing the hold on the %s: the server answered %s: %w", h.side, tag, errNoCommit)
	}
	return nil
}

// Release undoes the hold: the application writes on, it saw only latency. When the connection
// is gone the server has done it already, or does it within a second. It may be called at any time, from any
// goroutine: a COMMIT that has begun is waited for and stays, one that has not is refused.
func (h *Hold) Release(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return
	}
	h.ended = true
	h.stop()
	rollback(ctx, h.conn)
	h.over = time.Now()
}

// Held is how long writers waited, or have waited up to now.
func (h *Hold) Held() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over.IsZero() {
		return time.Since(h.Since)
	}
	return h.over.Sub(h.Since)
}

// rollback must work while the walk is being stopped, so it has a context of its own.
func rollback(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseWait)
	defer cancel()
	if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
		_ = conn.PgConn().Conn().Close() // the server rolls back when the socket is gone
	}
}

package freeze

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// ErrUnknown says that the outcome of from's COMMIT is not known: Resolve must look.
var ErrUnknown = errors.New("the outcome of the flip is not known yet")

// oldSnapshotsSQL ends to's sessions that still see the data as it was before the final pass:
// what they computed from it must not be committed after the flip.
const oldSnapshotsSQL = `
SELECT pid, coalesce(application_name, ''), pg_terminate_backend(pid)
  FROM pg_stat_activity
 WHERE datname = current_database() AND backend_type = 'client backend'
   AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND application_name NOT LIKE 'pgrunbook%'
   AND xact_start < now()`

// ready does what must stand between the last switch step and the two COMMITs.
func (f *Freeze) ready(ctx context.Context, c *conns, hold *Hold, cert *Certificate) error {
	if err := f.Check(ctx); err != nil {
		return err
	}
	if f.AtClose != nil {
		if err := f.AtClose(ctx, hold.Exec); err != nil {
			return fmt.Errorf("preparing the closing of the %s: %w", f.From.Side(), err)
		}
	}
	old := oldSnapshotsSQL
	if failpoint.Mutant("freeze.old_snapshots") {
		old += " AND false"
	}
	rows, err := c.watch.Query(ctx, old)
	if err != nil {
		return fmt.Errorf("ending sessions on the %s that have an old snapshot: %w", f.To.Side(), err)
	}
	cert.Ended, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var pid int32
		var app string
		var done bool
		err := row.Scan(&pid, &app, &done)
		return fmt.Sprintf("pid %d, application %q", pid, app), err
	})
	if err != nil {
		return fmt.Errorf("ending sessions on the %s that have an old snapshot: %w", f.To.Side(), err)
	}
	cert.Decided = time.Since(cert.Began)
	if err := f.Decide(ctx, cert); err != nil {
		return fmt.Errorf("recording the decision: %w", err)
	}
	failpoint.Hit("freeze.decided")
	return nil
}

// flip is the two COMMITs. Before the first, from is writable whatever happens; after the second,
// to is. Between them neither is, and Resolve ends that state.
func (f *Freeze) flip(ctx context.Context, c *conns, hold, toHold *Hold, cert *Certificate, mark func(string, string), undo func()) error {
	witness, err := f.witness(ctx, c)
	if err != nil {
		undo()
		return f.why(ctx, err)
	}
	defer func() { _ = witness.Close(context.WithoutCancel(ctx)) }()
	// A to that has fallen silent since is noticed here, where nothing has happened yet, and not
	// between the COMMITs, where neither side would take writes until it is back.
	if err := toHold.Alive(ctx); err != nil {
		undo()
		return f.why(ctx, err)
	}
	if cause := context.Cause(ctx); cause != nil {
		undo()
		return fmt.Errorf("%w: %w", ErrNotNow, cause)
	}
	// From here on a signal or the budget must not cut a COMMIT in half.
	flipCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*answerWait)
	defer cancel()
	if failpoint.Mutant("freeze.target_first") {
		hold, toHold = toHold, hold
	}
	if failpoint.Mutant("freeze.flag_outside") {
		_, err := c.look.PgConn().Exec(flipCtx, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 1").ReadAll()
		if err == nil {
			_, err = c.watch.PgConn().Exec(flipCtx, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 0").ReadAll()
		}
		return err
	}
	if err := hold.Commit(flipCtx); err != nil {
		if refused(err) {
			undo()
			return fmt.Errorf("%w: %w", ErrNotNow, err)
		}
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	failpoint.Hit("freeze.between")
	// from is closed now. A failover to a standby that had not got that would have opened it
	// again: the witness, a connection made a moment ago by from's own name, must see it closed.
	if err := f.closedAt(flipCtx, witness); err != nil && !failpoint.Mutant("freeze.target_first") {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if err := toHold.Commit(flipCtx); err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	cert.Flip(time.Now())
	mark("flip", fmt.Sprintf("the %s takes writes; they were blocked for %s", f.To.Side(), cert.Blocked.Round(time.Millisecond)))
	failpoint.Hit("freeze.flipped")
	return nil
}

// refused reports whether the server itself said that a COMMIT did not happen.
func refused(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		// 57P01..57P03: the backend was ended while it may have been committing.
		return pgErr.Code[:2] != "57" && pgErr.Code[:2] != "08"
	}
	return false
}

const placeSQL = `
SELECT pg_is_in_recovery(), pg_postmaster_start_time()::text`

// witness opens a new connection to from and makes sure that it is the same server as the hold's.
func (f *Freeze) witness(ctx context.Context, c *conns) (*pgx.Conn, error) {
	_ = c.spare.Close(ctx)
	conn, err := f.From.Connect(ctx, pg.Use{Name: "freeze witness", LockTimeout: drainTimeout, Hold: true})
	if err != nil {
		return nil, err
	}
	var standby [2]bool
	var start [2]string
	for i, on := range []*pgx.Conn{c.look, conn} {
		if err := on.QueryRow(ctx, placeSQL).Scan(&standby[i], &start[i]); err != nil {
			_ = conn.Close(ctx)
			return nil, err
		}
	}
	if standby[1] || start[0] != start[1] {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("a new connection to the %s reaches another server than the hold: a failover is under way", f.From.Side())
	}
	return conn, nil
}

// closedAt takes the gate's key before it reads the flag: a COMMIT that waits for a standby shows
// the old flag and keeps the key.
func (f *Freeze) closedAt(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	r, err := readFlag(ctx, conn, f.Run.GateKey)
	if err != nil {
		return err
	}
	if r.flag == flagOpen {
		return fmt.Errorf("the %s still shows an open gate after the COMMIT that closed it", f.From.Side())
	}
	return nil
}

package freeze

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// ErrUnknown says that the outcome of from's COMMIT is not known: Resolve must look.
var ErrUnknown = errors.New("the outcome of the flip is not known yet")

// unendable names to's sessions that still see the data as it was before the final pass, and that our
// role may not end. A short one ends by itself: others that begin meanwhile see what the pass has brought.
func unendable(ctx context.Context, conn *pgx.Conn, side string) ([]Blocker, error) {
	var first []pg.Session
	for try := 1; ; try++ {
		left, err := pg.Unendable(ctx, conn, pg.OldSnapshots)
		if try == 1 {
			first = left
		}
		left = slices.DeleteFunc(left, func(s pg.Session) bool { return !slices.Contains(first, s) })
		if err != nil || len(left) == 0 {
			return nil, err
		}
		if try < looks {
			if err := pause(ctx); err != nil {
				return nil, err
			}
			continue
		}
		var list []Blocker
		for _, s := range left {
			list = append(list, Blocker{
				PID: s.PID, User: s.User, App: s.Application, Hint: fmt.Sprintf("SELECT pg_terminate_backend(%d)", s.PID),
				What: "a transaction on the " + side + " with a snapshot, which our role may not end",
			})
		}
		return list, nil
	}
}

// endOld ends to's sessions with an old snapshot: what they computed from it must not be committed
// after the flip. One that may not be ended is in the way.
func endOld(ctx context.Context, conn *pgx.Conn, side string) (ended []string, err error) {
	which := pg.OldSnapshots
	if failpoint.Mutant("freeze.old_snapshots") {
		which = pg.NoClients
	}
	gone, left, err := pg.EndClients(ctx, conn, which)
	if err != nil {
		return nil, fmt.Errorf("ending sessions on the %s that have an old snapshot: %w", side, err)
	}
	for _, s := range gone {
		ended = append(ended, s.String())
	}
	if len(left) == 0 {
		return ended, nil
	}
	still, err := unendable(ctx, conn, side)
	if err == nil && len(still) > 0 {
		err = &BlockedError{Blockers: still}
	}
	return ended, err
}

// ready does what must stand between the last switch step and the two COMMITs.
func (f *Freeze) ready(ctx context.Context, c *conns, hold *Hold, cert *Certificate) error {
	if f.AtClose != nil {
		if err := f.AtClose(ctx, hold.Exec); err != nil {
			return fmt.Errorf("preparing the closing of the %s: %w", f.From.Side(), err)
		}
	}
	var err error
	if cert.Ended, err = endOld(ctx, c.watch, f.To.Side()); err != nil {
		return err
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
		err = f.why(ctx, err)
		undo()
		return err
	}
	defer func() { _ = witness.Close(context.WithoutCancel(ctx)) }()
	if err := f.lastLook(ctx, c); err != nil {
		err = f.why(ctx, err)
		undo()
		return err
	}
	// A to that has fallen silent since is noticed here, where nothing has happened yet, and not
	// between the COMMITs, where neither side would take writes until it is back.
	if err := toHold.Alive(ctx); err != nil {
		err = f.why(ctx, err)
		undo()
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		err := f.why(ctx, cause)
		undo()
		return err
	}
	// From here on a signal or the budget must not cut a COMMIT in half: they may end the hold before it, and
	// then it is refused, or come too late.
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
			err = f.why(ctx, err)
			undo()
			return err
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
	mark(MarkFlip, fmt.Sprintf("the %s takes writes; they were blocked for %s", f.To.Side(), cert.Blocked.Round(time.Millisecond)))
	failpoint.Hit("freeze.flipped")
	return nil
}

// lastLook proves once more, just before the first COMMIT, that nothing gets past the gate: the final pass,
// the switch and the decision took their time. Who is at it is named by the first question; what was
// committed by then shows in the deltas and in the catalog, which are asked after that. Where the gate alone was
// off, capture has the rows.
func (f *Freeze) lastLook(ctx context.Context, c *conns) error {
	if failpoint.Mutant("freeze.no_last_look") {
		return nil
	}
	if _, err := f.prove(ctx, c.look, c.oids, true); err != nil {
		return err
	}
	if !failpoint.Mutant("freeze.no_count") {
		if left, err := f.Pending(ctx); err != nil {
			return err
		} else if left != 0 {
			return fmt.Errorf("%s came past the gate after the final pass", engine.Plural(int(left), "change"))
		}
	}
	if err := f.Check(ctx); err != nil {
		return err
	}
	failpoint.Hit("freeze.looked")
	return nil
}

// refused reports whether a COMMIT is known not to have happened: it was not sent, or the server itself said so.
func refused(err error) bool {
	if errors.Is(err, errNoCommit) {
		return true
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	// What ends the backend (FATAL, PANIC) may have come after the record: where the log could not be flushed,
	// recovery may find it. 57P01..57P03 and 08 say the same, in whatever severity a pooler passes them on.
	return pgErr.SeverityUnlocalized == "ERROR" && !strings.HasPrefix(pgErr.Code, "57") && !strings.HasPrefix(pgErr.Code, "08")
}

const placeSQL = `
SELECT pg_is_in_recovery(), pg_postmaster_start_time()::text`

// spareTries is how often the witness asks for the place that was kept for it.
const spareTries = 20

// witness opens a new connection to from and makes sure that it is the same server as the hold's.
func (f *Freeze) witness(ctx context.Context, c *conns) (*pgx.Conn, error) {
	_ = c.spare.Close(ctx)
	use := pg.Use{Name: "freeze witness", LockTimeout: drainTimeout, Hold: true}
	conn, err := f.From.Connect(ctx, use)
	for try := 1; pg.SQLState(err) == "53300" && try < spareTries; try++ { // its process is not gone yet
		if err := pause(ctx); err != nil {
			return nil, err
		}
		conn, err = f.From.Connect(ctx, use)
	}
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

package freeze

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// resolveWait is how long Resolve waits for the gate's key: a COMMIT of a dead runner that waits
// for a standby keeps it.
const resolveWait = 10 * time.Second

// resolveIdle is how long a resolver may stand still within a transaction.
const resolveIdle = 2 * time.Second

// State is where the two gates stand.
type State struct {
	FromClosed bool
	ToClosed   bool
}

// Look reads both gates, each with its key in hand.
func (f *Freeze) Look(ctx context.Context) (State, error) {
	var s State
	for _, side := range []struct {
		srv    *pg.Server
		closed *bool
	}{{f.From, &s.FromClosed}, {f.To, &s.ToClosed}} {
		conn, err := resolver(ctx, side.srv, pg.Use{Name: "gate look"})
		if err != nil {
			return s, err
		}
		flag, err := readFlag(ctx, conn, f.Run.GateKey)
		_ = conn.Close(ctx)
		if err != nil {
			return s, err
		}
		*side.closed = flag != flagOpen
	}
	return s, nil
}

// Resolve ends the state between the two COMMITs, for a flip that is recorded as decided: it takes
// from's key first, then reads the flag. Closed means that from's COMMIT happened, so to is opened;
// open means that it did not, so nothing is changed and the freeze starts over. It reports whether
// to takes writes now. Calling it again, or from two processes, does no harm.
//
// Both sessions are there before the flag is read. A later runner ends the sessions of earlier ones
// before it does anything: so one that stood still after it had read the flag cannot open to when
// writes have long gone back to from.
func (f *Freeze) Resolve(ctx context.Context) (opened bool, err error) {
	to, err := resolver(ctx, f.To, pg.Use{Name: "resolve", Marked: true})
	if err != nil {
		return false, err
	}
	defer func() { _ = to.Close(context.WithoutCancel(ctx)) }()
	from, err := resolver(ctx, f.From, pg.Use{Name: "resolve"})
	if err != nil {
		return false, err
	}
	defer func() { _ = from.Close(context.WithoutCancel(ctx)) }()
	flag, err := f.fromFlag(ctx, from)
	if err != nil || flag == flagOpen {
		return false, err
	}
	var standby bool
	if err := from.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		return false, err
	}
	if standby {
		return false, fmt.Errorf("the %s is in recovery: it cannot prove that it is closed for good", f.From.Side())
	}
	failpoint.Hit("freeze.resolving")
	return f.openTo(ctx, from, to)
}

// resolver opens a session that keeps nothing locked for long when its process stands still or is
// cut off: it is a process like the one that it stands in for.
func resolver(ctx context.Context, srv *pg.Server, use pg.Use) (*pgx.Conn, error) {
	use.LockTimeout, use.Hold = resolveWait, true
	conn, err := srv.Connect(ctx, use)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "SET idle_in_transaction_session_timeout = "+strconv.FormatInt(resolveIdle.Milliseconds(), 10)); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("preparing a session on the %s: %w", srv.Side(), err)
	}
	return conn, nil
}

// fromFlag reads whether from's COMMIT happened.
func (f *Freeze) fromFlag(ctx context.Context, from *pgx.Conn) (int64, error) {
	flag, err := readFlag(ctx, from, f.Run.GateKey)
	if failpoint.Mutant("freeze.trust_journal") {
		flag = flagClosed
	}
	return flag, err
}

// openTo opens to's gate in one transaction, with what belongs to the opening. With to's key in hand
// it looks at from once more: whoever gave to up meanwhile held that key while from was opened.
func (f *Freeze) openTo(ctx context.Context, from, to *pgx.Conn) (opened bool, err error) {
	flag, err := readFlag(ctx, to, f.Run.GateKey)
	if err != nil || flag == flagOpen {
		return err == nil, err
	}
	fail := func(err error) (bool, error) { return false, fmt.Errorf("opening the %s: %w", f.To.Side(), err) }
	tx, err := to.Begin(ctx)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	exec := func(ctx context.Context, sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	// Table locks before the key: a client that waits at the gate for the key holds its table.
	if err := f.AtOpen(ctx, exec); err != nil {
		return fail(err)
	}
	if err := exec(ctx, fmt.Sprintf("ALTER SEQUENCE pgrunbook.gate_flag RESTART %d", flagOpen)); err != nil {
		return fail(err)
	}
	if err := exec(ctx, "SELECT pg_advisory_xact_lock($1)", f.Run.GateKey); err != nil {
		return fail(err)
	}
	if flag, err = f.fromFlag(ctx, from); err != nil || flag == flagOpen {
		return false, err
	}
	failpoint.Hit("freeze.resolved")
	if err := tx.Commit(ctx); err != nil {
		return fail(err)
	}
	return true, nil
}

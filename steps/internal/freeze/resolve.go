package freeze

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Resolve ends the state between the two COMMITs, for a flip that is recorded as decided: it takes
// from's key first, then reads the flag. Closed means that from's COMMIT happened, so to is opened;
// open means that it did not, so nothing is changed and the freeze starts over. It reports whether
// to takes writes now. Calling it again, or from two processes, does no harm.
//
// Both sessions are there before the flag is read. A later runner ends the sessions of earlier ones
// before it does anything: so one that stood still after it had read the flag cannot open to when
// writes have long gone back to from.
func (f *Freeze) Resolve(ctx context.Context) (opened bool, err error) {
	g, done, err := f.gates(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	r, err := f.fromFlag(ctx, g)
	if err != nil || r.flag == flagOpen {
		return false, err
	}
	if r.standby {
		return false, fmt.Errorf("the %s is in recovery: it cannot prove that it is closed for good", f.From.Side())
	}
	failpoint.Hit("freeze.resolving")
	return f.openTo(ctx, g)
}

// endHoldSQL ends who holds a gate for a flip, found by the name of its session.
const endHoldSQL = `
SELECT count(pg_terminate_backend(l.pid))
  FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND ((l.classid::int8 << 32) | l.objid::int8) = $1
   AND l.pid <> pg_backend_pid() AND left(a.application_name, length($2)) = $2`

// endSilentSQL ends the session of a name that holds a gate, or waits for it, for a flip. One that is at its COMMIT is
// let be: it may wait for a standby, without which that would stand.
const endSilentSQL = `
SELECT count(*) FROM (
  SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
   WHERE a.application_name = $2 AND a.datname = current_database() AND a.pid <> pg_backend_pid()
     AND EXISTS (
       SELECT FROM pg_locks l
        WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.objsubid = 1 AND l.mode = 'ExclusiveLock'
          AND l.database = a.datid AND ((l.classid::int8 << 32) | l.objid::int8) = $1
          AND (NOT l.granted OR a.state LIKE 'idle in transaction%'))) ended`

// HoldNames are how the holds of this process are known on from and on to.
func (f *Freeze) HoldNames() [2]string {
	return [2]string{f.From.ApplicationName(holdName), f.To.ApplicationName(holdName)}
}

// EndHolds ends the holds of those names, of a process that has been silent for longer than its servers let a hold live:
// they count that by their wall clocks, and one that goes back meanwhile leaves it there. It gives the sides on which
// there was one. A side that does not let its holds be ended, or does not answer, keeps nothing from the other. It needs Gates.
func (f *Freeze) EndHolds(ctx context.Context, names [2]string) (ended []string, err error) {
	var counts [2]int
	var errs [2]error
	var both sync.WaitGroup
	for i, conn := range []*pgx.Conn{f.Gates.from, f.Gates.to} {
		both.Go(func() { errs[i] = conn.QueryRow(ctx, endSilentSQL, f.Run.GateKey, names[i]).Scan(&counts[i]) })
	}
	both.Wait()
	for i, srv := range []*pg.Server{f.From, f.To} {
		if counts[i] > 0 {
			ended = append(ended, srv.Side())
		}
		if errs[i] != nil {
			errs[i] = fmt.Errorf("ending a silent runner's hold on the %s: %w", srv.Side(), errs[i])
		}
	}
	return ended, errors.Join(errs[:]...)
}

// toFlag reads whether to's COMMIT happened. Where a runner stands still between the COMMITs it ends
// that one's hold instead of waiting until the server does: its COMMIT is refused then, or it has
// happened. Without the right to end it, it waits.
func (f *Freeze) toFlag(ctx context.Context, g *Gates) (reading, error) {
	r, err := readWith(ctx, g.to, tryKeySQL, f.Run.GateKey)
	if err != nil || r.had {
		return r, err
	}
	_, _ = g.to.Exec(ctx, endHoldSQL, f.Run.GateKey, "pgrunbook "+f.Run.ID+" "+holdName+" ")
	return readFlag(ctx, g.to, f.Run.GateKey)
}

// fromFlag reads whether from's COMMIT happened.
func (f *Freeze) fromFlag(ctx context.Context, g *Gates) (reading, error) {
	r, err := readFlag(ctx, g.from, f.Run.GateKey)
	if failpoint.Mutant("freeze.trust_journal") {
		r.flag = flagClosed
	}
	return r, err
}

// errStays is the end of an opening that found from open.
var errStays = errors.New("from takes writes")

// openTo opens to's gate in one transaction, with what belongs to the opening. With to's key in hand
// it looks at from once more: whoever gave to up meanwhile held that key while from was opened. Neither
// side takes writes until it is through: so it waits for table locks in short tries, and whoever is in the
// way is dealt with in between.
func (f *Freeze) openTo(ctx context.Context, g *Gates) (opened bool, err error) {
	r, err := f.toFlag(ctx, g)
	if err != nil || r.flag == flagOpen {
		return err == nil, err
	}
	// from's COMMIT may be seen and stand there alone: a failover would open from beside to.
	if err := pg.MakeDurable(ctx, g.from); err != nil {
		return false, fmt.Errorf("making sure that the %s stays closed: %w", f.From.Side(), err)
	}
	err = pg.WithLock(ctx, g.to, f.Opening, func(ctx context.Context, tx pgx.Tx) error { return f.openIn(ctx, g, tx) })
	if err == nil {
		failpoint.Hit("freeze.opened")
		return true, nil
	}
	if errors.Is(err, errStays) {
		return false, nil
	}
	if !g.to.IsClosed() { // another process may have opened it between two tries
		if r, lookErr := readWith(ctx, g.to, tryKeySQL, f.Run.GateKey); lookErr == nil && r.had && r.flag == flagOpen {
			return true, nil
		}
	}
	return false, fmt.Errorf("opening the %s: %w", f.To.Side(), err)
}

// openIn is one try.
func (f *Freeze) openIn(ctx context.Context, g *Gates, tx pgx.Tx) error {
	exec := func(ctx context.Context, sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	// Table locks before the key: a client that waits at the gate for the key holds its table.
	if err := f.AtOpen(ctx, exec); err != nil {
		return err
	}
	sql := fmt.Sprintf("ALTER SEQUENCE pgrunbook.gate_flag RESTART %d; SELECT pg_catalog.pg_advisory_xact_lock(%d)", flagOpen, f.Run.GateKey)
	if _, err := g.to.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return err
	}
	r, err := f.fromFlag(ctx, g)
	if err != nil {
		return err
	}
	if r.flag == flagOpen {
		return errStays
	}
	failpoint.Hit("freeze.resolved")
	return nil
}

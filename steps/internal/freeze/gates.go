package freeze

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

const (
	// resolveWait is how long a look waits for the gate's key: a COMMIT of a dead runner that waits
	// for a standby keeps it.
	resolveWait = 10 * time.Second
	// resolveIdle is how long a resolver may stand still within a transaction.
	resolveIdle = 2 * time.Second
	// keptOpen is the same while it does something outside the database with from's key in hand.
	keptOpen = 6 * time.Second
)

// Gates is a session on each side with which a process finds out who may write and ends a flip. A
// guardian opens them before the flip: between the two COMMITs a new session would cost most of the
// time that neither side takes writes.
type Gates struct{ from, to *pgx.Conn }

// OpenGates opens both sessions at the same time.
func OpenGates(ctx context.Context, from, to *pg.Server) (*Gates, error) {
	g, errs := &Gates{}, [2]error{}
	var both sync.WaitGroup
	both.Go(func() { g.from, errs[0] = resolver(ctx, from, pg.Use{Name: "resolve"}) })
	both.Go(func() { g.to, errs[1] = resolver(ctx, to, pg.Use{Name: "resolve", Marked: true}) })
	both.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		g.Close(ctx)
		return nil, err
	}
	return g, nil
}

// Close ends both sessions.
func (g *Gates) Close(ctx context.Context) {
	if g == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for _, conn := range []*pgx.Conn{g.from, g.to} {
		if conn != nil {
			_ = conn.Close(ctx)
		}
	}
}

// Warm makes sure that both sessions answer, with what they will be asked: what a session asks for the
// first time takes it longest.
func (f *Freeze) Warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	var errs [2]error
	var both sync.WaitGroup
	for i, conn := range []*pgx.Conn{f.Gates.from, f.Gates.to} {
		both.Go(func() { _, errs[i] = readWith(ctx, conn, tryKeySQL, f.Run.GateKey) })
	}
	both.Wait()
	return errors.Join(errs[:]...)
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

// gates gives the sessions that are there, or some for the moment; done ends those.
func (f *Freeze) gates(ctx context.Context) (g *Gates, done func(), err error) {
	if f.Gates != nil {
		return f.Gates, func() {}, nil
	}
	if g, err = OpenGates(ctx, f.From, f.To); err != nil {
		return nil, nil, err
	}
	return g, func() { g.Close(ctx) }, nil
}

// A flag is read in the transaction that has the key, by a statement of its own: one that was begun
// before the key was had would read the sequence's old file. Both go to the server together, as one
// transaction.
const (
	keySQL    = "SELECT pg_catalog.pg_advisory_xact_lock_shared(%d);"
	tryKeySQL = "SELECT pg_catalog.pg_try_advisory_xact_lock_shared(%d);"
	flagSQL   = "SELECT last_value, pg_catalog.pg_is_in_recovery() FROM pgrunbook.gate_flag"
)

// reading is what a side says of itself.
type reading struct {
	had     bool // the key; without it the flag says nothing
	flag    int64
	standby bool
}

// readFlag reads a side's flag with the gate's key in hand, shared.
func readFlag(ctx context.Context, conn *pgx.Conn, key int64) (reading, error) {
	return readWith(ctx, conn, keySQL, key)
}

func readWith(ctx context.Context, conn *pgx.Conn, lock string, key int64) (r reading, err error) {
	results, err := conn.PgConn().Exec(ctx, fmt.Sprintf(lock, key)+flagSQL).ReadAll()
	if err != nil {
		return r, fmt.Errorf("reading the gate: %w", err)
	}
	if len(results) != 2 || len(results[0].Rows) != 1 || len(results[1].Rows) != 1 {
		return r, errors.New("reading the gate: the answer is incomplete")
	}
	row := results[1].Rows[0]
	if r.flag, err = strconv.ParseInt(string(row[0]), 10, 64); err != nil {
		return r, fmt.Errorf("reading the gate: %w", err)
	}
	r.had, r.standby = string(results[0].Rows[0][0]) != "f", string(row[1]) == "t"
	return r, nil
}

// State is where the two gates stand.
type State struct {
	FromClosed bool
	ToClosed   bool
}

// Look reads both gates, each with its key in hand. Where from is closed it does not wait for to's
// key: a runner that stands still between the COMMITs has it, and to counts as closed.
func (f *Freeze) Look(ctx context.Context) (s State, err error) {
	g, done, err := f.gates(ctx)
	if err != nil {
		return s, err
	}
	defer done()
	r, err := readFlag(ctx, g.from, f.Run.GateKey)
	if err != nil {
		return s, err
	}
	s.FromClosed = r.flag != flagOpen
	lock := keySQL
	if s.FromClosed {
		lock = tryKeySQL
	}
	r, err = readWith(ctx, g.to, lock, f.Run.GateKey)
	s.ToClosed = !r.had || r.flag != flagOpen
	return s, err
}

// FromClosed looks whether from is closed without waiting for its key: while a hold is there, its end
// will tell. It needs Gates.
func (f *Freeze) FromClosed(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	r, err := readWith(ctx, f.Gates.from, tryKeySQL, f.Run.GateKey)
	return err == nil && r.had && r.flag != flagOpen, err
}

// ErrClosedSince is for a conclusion that does not hold any more.
var ErrClosedSince = errors.New("its gate was closed meanwhile")

// WhileFromWrites calls do with from's key in hand, shared, if from is open: no hold is there, and
// none can begin, until do has recorded what follows from that. A process that was slow to act on
// what it had read would otherwise undo a later flip. do asks still just before what it does for
// good: the key is there for keptOpen from then on, even if this process stands still.
func (f *Freeze) WhileFromWrites(ctx context.Context, do func(ctx context.Context, still func(context.Context) error) error) error {
	g, done, err := f.gates(ctx)
	if err != nil {
		return err
	}
	defer done()
	tx, err := g.from.Begin(ctx)
	if err != nil {
		return fmt.Errorf("keeping the %s open: %w", f.From.Side(), err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	sql := fmt.Sprintf("SET LOCAL idle_in_transaction_session_timeout = %d", keptOpen.Milliseconds())
	if _, err := tx.Exec(ctx, sql); err != nil {
		return fmt.Errorf("keeping the %s open: %w", f.From.Side(), err)
	}
	r, err := readFlag(ctx, g.from, f.Run.GateKey)
	if err == nil && r.flag != flagOpen {
		err = ErrClosedSince
	}
	if err != nil {
		return fmt.Errorf("keeping the %s open: %w", f.From.Side(), err)
	}
	return do(ctx, func(ctx context.Context) error {
		_, err := tx.Exec(ctx, "SELECT 1")
		return err
	})
}

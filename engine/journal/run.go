package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// ErrNoRun says that a target holds no journal, or no run that is meant.
var ErrNoRun = errors.New("no run on this target")

// RunState is a run's state.
type RunState string

// A target database has at most one active run; ended ones are kept until Drop.
const (
	Active   RunState = "active"
	Finished RunState = "finished"
	Aborted  RunState = "aborted"
)

// Run is one run of a runbook, as the journal has it. Its methods may be called from many
// goroutines. The exported fields do not change after Open.
type Run struct {
	ID             string // short, in application_name and comments
	Name           string // the runbook's label
	Epoch          int64  // of the runner that holds the run; every take-over adds one
	State          RunState
	Mark           string // random; sessions that carry it pass our triggers
	GateKey        int64  // key of the gate's advisory lock, positive
	Plan           *engine.Plan
	Digest         string // of Plan
	SourceIdentity engine.Identity
	TargetIdentity engine.Identity
	ToolVersion    string // that began the run
	Started        time.Time
	Ended          time.Time // zero while active
	New            bool      // made by this Open
	Reopened       bool      // it had been aborted

	target  *pg.Server
	use     pg.Use
	redact  func(string) string
	mu      sync.Mutex // guards conn
	conn    *pgx.Conn
	lock    *lock // nil without the runner's lock
	source  *lock
	alive   context.Context
	lose    context.CancelCauseFunc
	dropped atomic.Bool

	stealFrom string // as OpenOptions have it

	eventsOnce sync.Once
	events     atomic.Pointer[eventSink]
}

// querier reads on a connection or in a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const runColumns = `id, name, epoch, state, plan::text, plan_digest, source_identity::text, target_identity::text,
       tool_version, mark, gate_key, started, ended`

func scanRun(row pgx.Row, r *Run) error {
	var plan, source, target string
	var ended *time.Time
	err := row.Scan(&r.ID, &r.Name, &r.Epoch, &r.State, &plan, &r.Digest, &source, &target, &r.ToolVersion, &r.Mark, &r.GateKey, &r.Started, &ended)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNoRun
	}
	if err != nil {
		return fmt.Errorf("reading the run: %w", err)
	}
	if ended != nil {
		r.Ended = *ended
	}
	r.Plan = &engine.Plan{}
	for _, f := range []struct {
		text string
		into any
	}{{plan, r.Plan}, {source, &r.SourceIdentity}, {target, &r.TargetIdentity}} {
		if err := json.Unmarshal([]byte(f.text), f.into); err != nil {
			return fmt.Errorf("reading the accepted plan of run %s: %w", r.ID, err)
		}
	}
	if r.Plan.Format > engine.PlanFormat {
		e := engine.Errorf(engine.ClassPreflight, fmt.Sprintf("Use pgrunbook %s or newer.", r.ToolVersion),
			"its accepted plan has format %d, written by pgrunbook %s; this build reads up to format %d", r.Plan.Format, r.ToolVersion, engine.PlanFormat)
		e.Op, e.Object = "reading run", r.ID
		return e
	}
	return nil
}

// latestSQL finds the active run, else the one that ended last.
const latestSQL = `SELECT ` + runColumns + ` FROM pgrunbook.run ORDER BY (state = 'active') DESC, started DESC LIMIT 1`

// OpenReadOnly reads the target's active run, or the one that ended last, without a lock and
// without the right to write. It returns ErrNoRun where there is none.
func OpenReadOnly(ctx context.Context, target *pg.Server) (*Run, error) {
	return attach(ctx, target, pg.Use{Name: "status", ReadOnly: true})
}

// Attach joins the target's active run at its present epoch without the runner's lock: for
// worker, approve, pause and set. It returns ErrNoRun where there is none.
func Attach(ctx context.Context, target *pg.Server, name string) (*Run, error) {
	r, err := attach(ctx, target, pg.Use{Name: name})
	if err != nil {
		return nil, err
	}
	if r.State != Active {
		r.Close(ctx)
		return nil, fmt.Errorf("%w: run %s is %s", ErrNoRun, r.ID, r.State)
	}
	return r, nil
}

func attach(ctx context.Context, target *pg.Server, use pg.Use) (*Run, error) {
	r := newRun(target, use, nil)
	err := r.do(ctx, func(conn *pgx.Conn) error {
		_, ours, _, err := look(ctx, conn)
		if err != nil {
			return err
		}
		if !ours {
			return ErrNoRun
		}
		version, err := versionOf(ctx, conn, SchemaVersion)
		if err != nil {
			return err
		}
		if version < SchemaVersion {
			return engine.Errorf(engine.ClassFailed, "pgrunbook apply migrates the journal of a run that is not over; of one that is over, read it with the build that made it.", "the journal has version %d, this build reads version %d", version, SchemaVersion)
		}
		if err := scanRun(conn.QueryRow(ctx, latestSQL), r); err != nil {
			return err
		}
		return r.whole(ctx, conn)
	})
	if err == nil {
		err = r.rename(ctx)
	}
	if err != nil {
		r.Close(ctx)
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	return r, nil
}

// rename closes the session that was opened before the run was known: the next one carries the
// run's name, and a later runner finds and ends what this one leaves behind.
func (r *Run) rename(ctx context.Context) error {
	if r.use.ReadOnly {
		return nil
	}
	r.target = r.target.ForRun(r.ID, r.Mark)
	return r.do(ctx, func(conn *pgx.Conn) error { return conn.Close(ctx) })
}

func newRun(target *pg.Server, use pg.Use, redact func(string) string) *Run {
	r := &Run{target: target, use: use, redact: redact}
	r.alive, r.lose = context.WithCancelCause(context.Background())
	return r
}

// Context derives a context that ends when the run's lock is lost, on either side; its cause is
// then an engine.Error. Call the CancelFunc when done.
func (r *Run) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.alive, func() { cancel(context.Cause(r.alive)) })
	return ctx, func() { stop(); cancel(nil) }
}

// Close writes the events that wait, lets the locks go and closes the sessions. It may be called
// twice. A lock that is lost is not an error here.
func (r *Run) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	r.stopEvents()
	if r.lock != nil && !r.dropped.Load() && r.alive.Err() == nil {
		// Only for status: without it the holder's row looks as after a crash.
		_ = r.write(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE pgrunbook.holder SET released = pg_catalog.clock_timestamp() WHERE run = $1::text AND epoch = $2::bigint", r.ID, r.Epoch)
			return err
		})
	}
	for _, l := range []*lock{r.source, r.lock} {
		if l != nil {
			l.close(ctx)
		}
	}
	r.lose(context.Canceled)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		_ = r.conn.Close(ctx)
		r.conn = nil
	}
}

// do runs f on the journal's own session, opening it anew if it broke.
func (r *Run) do(ctx context.Context, f func(conn *pgx.Conn) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil || r.conn.IsClosed() {
		conn, err := r.target.Connect(ctx, r.use)
		if err != nil {
			return err
		}
		r.conn = conn
	}
	return f(r.conn)
}

// Now is the time by the clock that the journal's own times are of.
func (r *Run) Now(ctx context.Context) (at time.Time, err error) {
	err = r.do(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, "SELECT pg_catalog.clock_timestamp()").Scan(&at) })
	if err != nil {
		return at, fmt.Errorf("asking the journal's server for its time: %w", err)
	}
	return at.UTC(), nil
}

// Read runs f, which only reads, on the journal's own session with the target.
func (r *Run) Read(ctx context.Context, f func(conn *pgx.Conn) error) error { return r.do(ctx, f) }

// write runs f in a transaction on the journal's own session.
func (r *Run) write(ctx context.Context, f func(tx pgx.Tx) error) error {
	return r.do(ctx, func(conn *pgx.Conn) error {
		if err := pgx.BeginFunc(ctx, conn, f); err != nil {
			return err
		}
		return pg.Durable(ctx, conn)
	})
}

// fenced is write for what only the present runner may change.
func (r *Run) fenced(ctx context.Context, f func(tx pgx.Tx) error) error {
	return r.write(ctx, func(tx pgx.Tx) error {
		if err := Fence(ctx, tx, r.ID, r.Epoch); err != nil {
			return err
		}
		return f(tx)
	})
}

// Fence proves, until tx ends, that the runner of this epoch still holds the run: a take-over
// waits for tx. It belongs into every transaction on the target that writes application rows.
// A runner that was replaced gets an engine.Error of ClassHeld.
func Fence(ctx context.Context, tx pgx.Tx, runID string, epoch int64) error {
	if failpoint.Mutant("journal.no_fence") {
		return nil
	}
	var one int
	err := tx.QueryRow(ctx, "SELECT 1 FROM pgrunbook.run WHERE id = $1::text AND epoch = $2::bigint AND state = 'active' FOR SHARE", runID, epoch).Scan(&one)
	if errors.Is(err, pgx.ErrNoRows) {
		e := engine.Errorf(engine.ClassHeld, "Look who holds the run: pgrunbook status", "this runner was replaced, or the run has ended")
		e.Op, e.Object = "writing for run", runID
		return e
	}
	if err != nil {
		return fmt.Errorf("checking the run's epoch: %w", err)
	}
	return nil
}

// FenceRows is Fence for a transaction that writes rows of one side to the other: a side that takes
// the application's writes, or that a flip is about to open, is never written over. to that does is
// an engine.Error of ClassAmbiguous.
func FenceRows(ctx context.Context, tx pgx.Tx, runID string, epoch int64, to engine.Side) error {
	if err := Fence(ctx, tx, runID, epoch); err != nil {
		return err
	}
	return notOwner(ctx, tx, runID, epoch, to)
}

const ownerSQL = `
SELECT o.side = $2::text OR EXISTS (SELECT FROM pgrunbook.flip f WHERE f.run = o.run AND f.settled IS NULL AND f.to_side = $2::text AND f.epoch <> $3::bigint)
  FROM pgrunbook.owner o WHERE o.run = $1::text`

// notOwner leaves a flip of the own epoch aside: one that was decided and did not come about stays open
// until the next attempt decides it again.
func notOwner(ctx context.Context, tx pgx.Tx, runID string, epoch int64, to engine.Side) error {
	var owner bool
	if err := tx.QueryRow(ctx, ownerSQL, runID, string(to), epoch).Scan(&owner); err != nil {
		return fmt.Errorf("asking whether the %s takes writes: %w", to, err)
	}
	if owner {
		return engine.Errorf(engine.ClassAmbiguous, "pgrunbook status says who may write and what to type.", "the %s takes writes: rows of the other side are not written over its own", to)
	}
	return nil
}

// Fenced checks, on the journal's own session, that this runner still holds the run: for work on
// the source, whose transactions cannot lock the epoch.
func (r *Run) Fenced(ctx context.Context) error {
	return r.fenced(ctx, func(pgx.Tx) error { return nil })
}

// FencedRows is Fenced for rows that go to a side without the journal, as FenceRows.
func (r *Run) FencedRows(ctx context.Context, to engine.Side) error {
	return r.fenced(ctx, func(tx pgx.Tx) error { return notOwner(ctx, tx, r.ID, r.Epoch, to) })
}

// end ends the run in a state. Nothing can be written for it afterwards but Drop's removal.
func (r *Run) end(ctx context.Context, state RunState) error {
	err := r.write(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE pgrunbook.run SET state = $3::text, ended = pg_catalog.clock_timestamp()
			WHERE id = $1::text AND epoch = $2::bigint AND state IN ('active', $3::text)`, r.ID, r.Epoch, string(state))
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return Fence(ctx, tx, r.ID, r.Epoch)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("recording that the run is %s: %w", state, err)
	}
	return nil
}

// Abort ends the run before its flip; its record is kept. The target can then take a new run.
func (r *Run) Abort(ctx context.Context) error { return r.end(ctx, Aborted) }

// GiveBack leaves a run that Open found aborted as it was found; any other it leaves alone. err is returned as it is.
func (r *Run) GiveBack(ctx context.Context, err error) error {
	if err == nil || !r.Reopened {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	_ = r.write(ctx, func(tx pgx.Tx) error { // a later runner's epoch is higher
		_, err := tx.Exec(ctx, `UPDATE pgrunbook.run SET state = 'aborted', ended = pg_catalog.clock_timestamp()
			WHERE id = $1::text AND state = 'active' AND epoch <= $2::bigint`, r.ID, r.Epoch)
		return err
	})
	return err
}

// Finish ends the run after its clean-up and keeps its record; Drop removes the record.
func (r *Run) Finish(ctx context.Context) error { return r.end(ctx, Finished) }

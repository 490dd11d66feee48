package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
)

const readStepSQL = `SELECT state, fingerprint, started, ended, COALESCE(error, ''), cursor IS NOT NULL
  FROM pgrunbook.step WHERE run = $1::text AND id = $2::text FOR UPDATE`

const beginStepSQL = `
INSERT INTO pgrunbook.step (run, id, state, fingerprint) VALUES ($1::text, $2::text, 'running', $3::text)
ON CONFLICT (run, id) DO UPDATE SET state = 'running', fingerprint = excluded.fingerprint, attempts = step.attempts + 1,
  started = pg_catalog.clock_timestamp(), ended = NULL, error = NULL
RETURNING started`

// Begin records that a step starts, or returns the record of one that is done. A step that is
// done, or that has a cursor, and whose fingerprint differs now is an error of ClassStale; a step
// that failed before its first cursor takes the new inputs.
func (r *Run) Begin(ctx context.Context, s engine.Step) (engine.StepRecord, error) {
	rec := engine.StepRecord{ID: s.ID()}
	err := r.fenced(ctx, func(tx pgx.Tx) error {
		var ended *time.Time
		var hasCursor bool
		err := tx.QueryRow(ctx, readStepSQL, r.ID, string(s.ID())).Scan(&rec.State, &rec.Fingerprint, &rec.Started, &ended, &rec.Error, &hasCursor)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if ended != nil {
			rec.Ended = *ended
		}
		if err := checkFingerprint(rec, s, hasCursor); err != nil {
			return err
		}
		if rec.State == engine.StepDone {
			return nil
		}
		rec = engine.StepRecord{ID: s.ID(), State: engine.StepRunning, Fingerprint: s.Fingerprint()}
		return tx.QueryRow(ctx, beginStepSQL, r.ID, string(s.ID()), s.Fingerprint()).Scan(&rec.Started)
	})
	if err != nil {
		return rec, fmt.Errorf("recording that step %s begins: %w", s.ID(), err)
	}
	failpoint.Hit("journal.begun")
	return rec, nil
}

// checkFingerprint refuses a step whose inputs changed after they had effects. Memory and Run share it.
func checkFingerprint(rec engine.StepRecord, s engine.Step, hasCursor bool) error {
	began := rec.State == engine.StepDone || hasCursor
	if !began || rec.Fingerprint == s.Fingerprint() {
		return nil
	}
	what := "it is done"
	if rec.State != engine.StepDone {
		what = "it is half done"
	}
	e := engine.Errorf(engine.ClassStale, "Put the runbook's settings for this step back, or abort and begin a new run.",
		"%s, and its inputs are not those it was begun with", what)
	e.Op, e.Object = "continuing step", string(s.ID())
	return e
}

const endStepSQL = `
UPDATE pgrunbook.step SET state = $3::text, error = $4::text, ended = pg_catalog.clock_timestamp()
 WHERE run = $1::text AND id = $2::text AND state IN ('running', $3::text)`

// End records how a step ended; cause is nil for done. Ending a step that did not begin is an
// error; ending it again the same way is not.
func (r *Run) End(ctx context.Context, id engine.StepID, cause error) error {
	state, text := engine.StepDone, (*string)(nil)
	if cause != nil {
		state = engine.StepFailed
		t := r.clean(cause.Error())
		text = &t
	}
	err := r.fenced(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, endStepSQL, r.ID, string(id), string(state), text)
		if err == nil && tag.RowsAffected() != 1 {
			err = ErrNotRunning
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("recording the end of step %s: %w", id, err)
	}
	failpoint.Hit("journal.ended")
	return nil
}

// ErrNotRunning is what a step gets that ends, or saves a cursor, without having begun.
var ErrNotRunning = errors.New("the journal does not have it as running")

// Steps gives the record of every step that has begun, in the order of their first begin.
func (r *Run) Steps(ctx context.Context) ([]engine.StepRecord, error) {
	var out []engine.StepRecord
	err := r.do(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT id, state, fingerprint, started, ended, COALESCE(error, '')
			FROM pgrunbook.step WHERE run = $1::text ORDER BY started, id`, r.ID)
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (engine.StepRecord, error) {
			var rec engine.StepRecord
			var ended *time.Time
			err := row.Scan(&rec.ID, &rec.State, &rec.Fingerprint, &rec.Started, &ended, &rec.Error)
			if ended != nil {
				rec.Ended = *ended
			}
			return rec, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the steps: %w", err)
	}
	return out, nil
}

// setBack begins the error of a step that was done and is to be made again.
const setBack = "reopened"

// SetBack gives why a step that was done is to be made again; false where it is not, also when it failed.
func SetBack(rec engine.StepRecord) (why string, is bool) {
	why, is = strings.CutPrefix(rec.Error, setBack)
	return strings.TrimPrefix(why, ": "), is && rec.State == engine.StepFailed
}

// Reopen sets a done step back, so that the next walk applies it again from its cursor: for
// verify after new writes, and for the way back. Without a cursor it starts over. why ends "to be made again, since".
func (r *Run) Reopen(ctx context.Context, id engine.StepID, keepCursor bool, why string) error {
	err := r.fenced(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE pgrunbook.step SET state = 'failed', error = $4::text, cursor = CASE WHEN $3::bool THEN cursor END
			WHERE run = $1::text AND id = $2::text`, r.ID, string(id), keepCursor, setBack+": "+why)
		return err
	})
	if err != nil {
		return fmt.Errorf("reopening step %s: %w", id, err)
	}
	return nil
}

// Checkpoint gives the step's durable progress.
func (r *Run) Checkpoint(id engine.StepID, sink engine.Sink) engine.Checkpoint {
	return &checkpoint{run: r, id: id, sink: sink}
}

type checkpoint struct {
	run  *Run
	id   engine.StepID
	sink engine.Sink
}

// Load reads the last committed cursor; it waits, for some seconds, for a Save whose COMMIT is in
// flight. It is not for a transaction that has saved already: it would wait for that one.
func (c *checkpoint) Load(ctx context.Context, into any) (bool, error) {
	var text *string
	err := c.run.write(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '30s'"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT cursor::text FROM pgrunbook.step WHERE run = $1::text AND id = $2::text FOR UPDATE", c.run.ID, string(c.id)).Scan(&text)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the cursor of step %s: %w", c.id, err)
	}
	if text == nil {
		return false, nil
	}
	if err := json.Unmarshal([]byte(*text), into); err != nil {
		return false, fmt.Errorf("reading the cursor of step %s: %w", c.id, err)
	}
	return true, nil
}

// saveSQL fences and saves in one round trip.
const saveSQL = `
UPDATE pgrunbook.step SET cursor = $3::jsonb
  FROM (SELECT r.id FROM pgrunbook.run r WHERE r.id = $1::text AND r.epoch = $4::bigint AND r.state = 'active' FOR SHARE) f
 WHERE step.run = f.id AND step.id = $2::text AND step.state IN ('running', 'failed')`

// Save stores the cursor, also of a step that has failed: who takes back what it did says so there. In a transaction on the target it commits with the rows it covers, and
// fences them; with nil it commits on its own.
func (c *checkpoint) Save(ctx context.Context, tx pgx.Tx, cursor any) error {
	b, err := json.Marshal(cursor)
	if err == nil && tx != nil {
		err = c.save(ctx, tx, string(b))
	} else if err == nil {
		err = c.run.write(ctx, func(tx pgx.Tx) error { return c.save(ctx, tx, string(b)) })
	}
	if err != nil {
		return fmt.Errorf("saving the cursor of step %s: %w", c.id, err)
	}
	return nil
}

func (c *checkpoint) save(ctx context.Context, tx pgx.Tx, cursor string) error {
	tag, err := tx.Exec(ctx, saveSQL, c.run.ID, string(c.id), cursor, c.run.Epoch)
	if err != nil || tag.RowsAffected() == 1 {
		return err
	}
	if err := Fence(ctx, tx, c.run.ID, c.run.Epoch); err != nil {
		return err
	}
	return ErrNotRunning
}

// Emit passes an event on with the run's and the step's name, and the time where it has none.
func (c *checkpoint) Emit(e engine.Event) {
	e.Run, e.Step = c.run.ID, c.id
	if e.At.IsZero() {
		e.At = time.Now()
	}
	c.sink.Emit(e)
}

// CursorIs tells after a lost connection whether the Save of this cursor was committed. It waits
// for a COMMIT in flight: one that waits for a standby is invisible to a plain look.
func (r *Run) CursorIs(ctx context.Context, id engine.StepID, cursor any) (bool, error) {
	b, err := json.Marshal(cursor)
	if err != nil {
		return false, fmt.Errorf("comparing the cursor of step %s: %w", id, err)
	}
	var same bool
	err = r.write(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(cursor = $3::jsonb, false) FROM pgrunbook.step WHERE run = $1::text AND id = $2::text FOR UPDATE`,
			r.ID, string(id), string(b)).Scan(&same)
	})
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, fmt.Errorf("comparing the cursor of step %s: %w", id, err)
	}
	return same, nil
}

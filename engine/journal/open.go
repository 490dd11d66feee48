package journal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// OpenOptions say what run to open.
type OpenOptions struct {
	Plan        *engine.Plan         // to begin or continue with; nil continues what is there
	Digest      string               // of Plan. Defaults to Plan.Digest()
	ToolVersion string               // of this build
	Amend       bool                 // accept Plan in place of the run's; the databases must be the same
	NewRun      func() (Keys, error) // makes a run's names. Defaults to RandomKeys
	Steal       bool                 // end the session of the runner that holds the run and take over
	StealFrom   string               // the same, if the runner is this one, as Self names it: a child's that outlived it
	StealEpoch  int64                // at which that process took the run
	Aborted     bool                 // where no run is active, open the one that was aborted last: to drop what it left
	Redact      func(string) string  // applied to every text that is stored as an event. Defaults to none
}

// Keys are a new run's random names.
type Keys struct {
	ID      string // 8 letters and digits
	Mark    string // 32 hex digits
	GateKey int64  // positive, 63 bit
}

// RandomKeys draws a run's names from the system's randomness.
func RandomKeys() (Keys, error) {
	const letters = "bcdfghjkmnpqrstvwxz23456789" // no vowels, no look-alikes
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return Keys{}, fmt.Errorf("drawing a run's names: %w", err)
	}
	k := Keys{Mark: hex.EncodeToString(b[8:24]), GateKey: int64(binary.BigEndian.Uint64(b[24:])>>1) | 1}
	for _, c := range b[:8] {
		k.ID += string(letters[int(c)%len(letters)])
	}
	return k, nil
}

// Open takes the runner's lock of the target and opens its run, making journal and run where
// there is none. Open sessions that carry the run's ID only afterwards: those of an older runner
// are ended here, before the epoch moves.
//
// Errors: ClassHeld names who holds the run; ClassStale names what the plan has that differs;
// ClassPreflight where schema pgrunbook is not ours, is of a newer build, or may not be made.
// ErrNoRun where there is no run and no Plan.
func Open(ctx context.Context, target *pg.Server, o OpenOptions) (*Run, error) {
	if o.Plan != nil && o.Digest == "" {
		o.Digest = o.Plan.Digest()
	}
	if o.NewRun == nil {
		o.NewRun = RandomKeys
	}
	r := newRun(target, pg.Use{Name: "journal"}, o.Redact)
	r.stealFrom = o.StealFrom
	err := r.open(ctx, o)
	if err != nil {
		r.Close(ctx)
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	r.lock.watch(r.lose)
	return r, nil
}

func (r *Run) open(ctx context.Context, o OpenOptions) error {
	var err error
	if r.lock, err = takeLock(ctx, r.target, targetKey, thief{anybody: o.Steal, from: o.StealFrom, epoch: o.StealEpoch}); err != nil {
		return err
	}
	failpoint.Hit("journal.locked")
	// Without a plan nothing is made: "pgrunbook pause" on a wrong target must leave it as it was.
	if o.Plan == nil {
		_, ours, _, err := look(ctx, r.lock.conn)
		if err != nil {
			return err // a session that somebody ended says nothing of runs
		}
		if !ours {
			return ErrNoRun
		}
	}
	if err := r.freeOlder(ctx); err != nil {
		return err
	}
	if err := pgx.BeginFunc(ctx, r.lock.conn, func(tx pgx.Tx) error { return r.find(ctx, tx, o) }); err != nil {
		return err
	}
	failpoint.Hit("journal.found")
	err = r.lock.name(ctx, r.ID)
	r.target = r.target.ForRun(r.ID, r.Mark)
	if err == nil {
		_, err = r.target.TerminateLeftovers(ctx, r.lock.conn)
	}
	if err == nil {
		failpoint.Hit("journal.ended_leftovers")
		err = pgx.BeginFunc(ctx, r.lock.conn, func(tx pgx.Tx) error { return r.takeOver(ctx, tx) })
	}
	return r.GiveBack(ctx, err)
}

// freeOlder ends the sessions that a runner of an earlier build left behind: they hold tables of its journal that a
// migration changes, one in the midst of a COPY for as long as that takes.
func (r *Run) freeOlder(ctx context.Context) error {
	_, ours, _, err := look(ctx, r.lock.conn)
	if err != nil || !ours {
		return err
	}
	if version, err := versionOf(ctx, r.lock.conn, SchemaVersion); err != nil || version == SchemaVersion {
		return err
	}
	var older Run
	err = scanRun(r.lock.conn.QueryRow(ctx, activeSQL), &older)
	if errors.Is(err, ErrNoRun) {
		return nil
	}
	if err == nil {
		_, err = r.target.ForRun(older.ID, older.Mark).TerminateLeftovers(ctx, r.lock.conn)
	}
	return err
}

const activeSQL = `SELECT ` + runColumns + ` FROM pgrunbook.run WHERE state = 'active'`

// find reads the active run and compares it with the plan, or makes a run.
func (r *Run) find(ctx context.Context, tx pgx.Tx, o OpenOptions) error {
	if err := ensureSchema(ctx, tx, o.ToolVersion); err != nil {
		return err
	}
	if o.Plan != nil {
		if err := checkTarget(ctx, tx, o.Plan.Target); err != nil {
			return err
		}
	}
	err := scanRun(tx.QueryRow(ctx, activeSQL), r)
	if errors.Is(err, ErrNoRun) && o.Plan != nil {
		return r.insert(ctx, tx, o)
	}
	if errors.Is(err, ErrNoRun) && o.Aborted {
		err = r.reopen(ctx, tx)
	}
	if err == nil {
		err = r.whole(ctx, tx)
	}
	if err != nil {
		return err
	}
	if o.Plan == nil {
		return checkTarget(ctx, tx, r.TargetIdentity)
	}
	return r.accept(ctx, tx, o)
}

// reopen makes the run that was aborted last the active one again.
func (r *Run) reopen(ctx context.Context, tx pgx.Tx) error {
	if err := scanRun(tx.QueryRow(ctx, latestSQL), r); err != nil {
		return err
	}
	if r.State != Aborted {
		return ErrNoRun
	}
	if _, err := tx.Exec(ctx, "UPDATE pgrunbook.run SET state = 'active', ended = NULL WHERE id = $1::text", r.ID); err != nil {
		return fmt.Errorf("opening the aborted run %s again: %w", r.ID, err)
	}
	r.Reopened = true
	return scanRun(tx.QueryRow(ctx, activeSQL), r)
}

const insertRunSQL = `
INSERT INTO pgrunbook.run (id, name, epoch, state, plan, plan_digest, source_identity, target_identity, tool_version, mark, gate_key)
VALUES ($1::text, $2::text, 0, 'active', $3::jsonb, $4::text, $5::jsonb, $6::jsonb, $7::text, $8::text, $9::bigint)`

func (r *Run) insert(ctx context.Context, tx pgx.Tx, o OpenOptions) error {
	keys, err := o.NewRun()
	if err != nil {
		return err
	}
	plan, source, target, err := planJSON(o.Plan)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, insertRunSQL, keys.ID, o.Plan.Name, plan, o.Digest, source, target, o.ToolVersion, keys.Mark, keys.GateKey); err != nil {
		return fmt.Errorf("making the run: %w", err)
	}
	for _, sql := range []string{
		"INSERT INTO pgrunbook.owner (run, side) VALUES ($1::text, 'source')",
		"INSERT INTO pgrunbook.control (run) VALUES ($1::text)",
	} {
		if _, err := tx.Exec(ctx, sql, keys.ID); err != nil {
			return fmt.Errorf("making the run: %w", err)
		}
	}
	// The capture package tells by this comment whose objects a schema holds. A schema that a DBA
	// made may not be ours to comment on.
	if _, err := tx.Exec(ctx, `DO $do$ BEGIN COMMENT ON SCHEMA pgrunbook IS `+pg.Literal("pgrunbook run "+keys.ID)+`; EXCEPTION WHEN insufficient_privilege THEN NULL; END $do$`); err != nil {
		return fmt.Errorf("naming the run in the schema's comment: %w", err)
	}
	r.New = true
	return scanRun(tx.QueryRow(ctx, activeSQL), r)
}

func planJSON(p *engine.Plan) (plan, source, target string, err error) {
	for _, f := range []struct {
		from any
		to   *string
	}{{p, &plan}, {p.Source, &source}, {p.Target, &target}} {
		b, err := json.Marshal(f.from)
		if err != nil {
			return "", "", "", fmt.Errorf("writing the plan as JSON: %w", err)
		}
		*f.to = string(b)
	}
	return plan, source, target, nil
}

const holderSQL = `
INSERT INTO pgrunbook.holder (run, epoch, host, pid, os_user, application, backend, since, released)
VALUES ($1::text, $2::bigint, $3::text, $4::int, $5::text, pg_catalog.current_setting('application_name'), pg_catalog.pg_backend_pid(), pg_catalog.clock_timestamp(), NULL)
ON CONFLICT (run) DO UPDATE SET epoch = excluded.epoch, host = excluded.host, pid = excluded.pid, os_user = excluded.os_user,
  application = excluded.application, backend = excluded.backend, since = excluded.since, released = NULL`

// takeOver moves the epoch, which waits for every transaction that was fenced with the old one (a
// worker's chunk in flight may end), and records who holds the run now.
func (r *Run) takeOver(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '60s'"); err != nil {
		return err
	}
	err := tx.QueryRow(ctx, "UPDATE pgrunbook.run SET epoch = epoch + 1 WHERE id = $1::text RETURNING epoch", r.ID).Scan(&r.Epoch)
	if err != nil {
		return &engine.Error{
			Class: engine.ClassHeld, Op: "taking over run", Object: r.ID, Err: err,
			Hint: "A transaction of an older runner or a worker is still open on the target; look in pg_stat_activity for application_name like 'pgrunbook%'.",
		}
	}
	who := self()
	if _, err := tx.Exec(ctx, holderSQL, r.ID, r.Epoch, who.Host, who.PID, who.User); err != nil {
		return fmt.Errorf("recording who holds the run: %w", err)
	}
	return nil
}

// self describes this process.
func self() Holder {
	h := Holder{PID: os.Getpid()}
	h.Host, _ = os.Hostname()
	if u, err := user.Current(); err == nil {
		h.User = u.Username
	}
	return h
}

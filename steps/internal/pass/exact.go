package pass

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// chases are how often an exact pass locks what else has changed meanwhile. Where many tables are
// written to, there is always one more; then it locks all.
const chases = 3

// firstRest is the shortest before a pass is made again.
const firstRest = 50 * time.Millisecond

// markEvery bounds how old To's watermark gets while there is nothing to apply.
const markEvery = 5 * time.Second

// Exact makes one pass over all following tables: afterwards To equals From as of
// Result.SnapshotAt.
func (p *Passer) Exact(ctx context.Context, opts Options) (Result, error) {
	var result Result
	err := p.patiently(ctx, opts.Patience, func() error {
		var err error
		result, err = p.exact(ctx, opts)
		return err
	})
	return result, err
}

func (p *Passer) exact(ctx context.Context, opts Options) (Result, error) {
	opts.outwaits = true
	p.trips() // those before are none of it
	from, err := p.prepare(ctx, opts.LockTimeout, maxStages)
	if err != nil {
		return Result{}, err
	}
	tables, started := p.following(), time.Now()
	found, err := from.look(ctx, tables)
	if err != nil {
		return Result{}, err
	}
	if rows := found.rows(); opts.most > 0 && rows > opts.most {
		return Result{}, &large{rows}
	}
	if len(found.tables) == 0 && opts.InTarget == nil && !opts.Snapshot && time.Since(p.marked) < markEvery {
		if err := p.check(ctx); err != nil {
			return Result{}, err
		}
		return Result{PassID: p.lastPass, SnapshotAt: found.at, Snapshot: found.snapshot, Took: time.Since(started), Empty: true}, nil
	}
	lock := found.ids()
	for chase := 0; ; chase++ {
		if err := p.to.makeStages(ctx, tablesOf(tables, lock), from.version); err != nil {
			return Result{}, err
		}
		if chase == chases {
			lock = slices.Sorted(maps.Keys(tables))
		}
		open, err := p.begin(ctx, from, tables, lock)
		if err != nil {
			return Result{}, err
		}
		result, err := open.Run(ctx, opts)
		var more *moreTables
		if !errors.As(err, &more) {
			return result, err
		}
		lock = append(lock, more.ids...)
	}
}

// prepare connects, tidies up after the last pass, which leaves so many stages at most, and compares the
// fingerprint.
func (p *Passer) prepare(ctx context.Context, lockTimeout time.Duration, stages int) (*fromSession, error) {
	from, err := p.connectFrom(ctx, lockTimeout)
	if err != nil {
		return nil, err
	}
	to, err := p.connectTo(ctx)
	if err != nil {
		return nil, err
	}
	if err := to.tidy(ctx, stages); err != nil {
		return nil, err
	}
	if _, err := p.connectBeat(ctx); err != nil {
		return nil, err
	}
	return from, p.check(ctx)
}

func (p *Passer) check(ctx context.Context) error {
	if p.cfg.Check == nil || failpoint.Mutant("pass.no_fingerprint") {
		return nil
	}
	return p.cfg.Check(ctx, p.beat)
}

// Open is a pass whose transaction on From has begun and holds its table locks, but has no
// snapshot yet.
type Open struct {
	p      *Passer
	from   *fromSession
	tables map[int32]scope.Table
	locked map[int32]bool
}

// moreTables says that the snapshot holds changes of tables that are not locked.
type moreTables struct{ ids []int32 }

func (m *moreTables) Error() string {
	return fmt.Sprintf("%d more tables have changes", len(m.ids))
}

// Stage makes what a pass over all following tables for the freeze needs on To, as Begin does, and locks
// nothing: hundreds of stages take seconds, which is no matter before anybody waits. They live as long as the
// session, and Begin finds them there.
func (p *Passer) Stage(ctx context.Context, opts Options) error {
	return p.patiently(ctx, opts.Patience, func() error {
		from, err := p.prepare(ctx, opts.LockTimeout, maxStages)
		if err != nil {
			return err
		}
		return p.stageAhead(ctx, from, p.following())
	})
}

// stageAhead makes the stages of all tables or, where these are too many, of those with changes.
func (p *Passer) stageAhead(ctx context.Context, from *fromSession, tables map[int32]scope.Table) error {
	staged := slices.Sorted(maps.Keys(tables))
	if len(tables) > maxStages {
		found, err := from.look(ctx, tables)
		if err != nil {
			return err
		}
		staged = found.ids()
	}
	return p.to.makeStages(ctx, tablesOf(tables, staged), from.version)
}

// Begin opens a pass over all following tables for the freeze: sessions, transaction, locks and
// stages, those of tables with changes where there are many, are there when it returns; the snapshot
// is taken by Run. Clients of a paused pooler wait for it: Stage comes before, and none of its stages is dropped.
func (p *Passer) Begin(ctx context.Context, opts Options) (*Open, error) {
	tables := p.following()
	from, err := p.prepare(ctx, opts.LockTimeout, max(maxStages, len(tables)))
	if err != nil {
		return nil, err
	}
	if err := p.stageAhead(ctx, from, tables); err != nil {
		return nil, err
	}
	return p.begin(ctx, from, tables, slices.Sorted(maps.Keys(tables)))
}

// Low gives for each following table the transaction id below which no captured key of it is left on From, as
// the passes before this one found; 0 where that is not known.
func (o *Open) Low() map[int32]uint64 {
	low := make(map[int32]uint64, len(o.tables))
	for id := range o.tables {
		low[id] = o.from.low[id]
	}
	return low
}

// begin starts the transaction and locks before there is a snapshot: what rewrites, swaps or
// detaches a table can then only come before the snapshot or after the reads. The savepoint is
// where the locks are let go again.
func (p *Passer) begin(ctx context.Context, from *fromSession, tables map[int32]scope.Table, lock []int32) (*Open, error) {
	o := &Open{p: p, from: from, tables: tables, locked: map[int32]bool{}}
	names := make([]string, 0, len(lock))
	for _, id := range lock {
		if o.locked[id] {
			continue
		}
		o.locked[id] = true
		names = append(names, relation(tables[id]))
		if !keyed(tables[id]) {
			names = append(names, "ONLY "+imageTable(tables[id]))
		}
	}
	sql := "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE NOT DEFERRABLE; SET LOCAL synchronous_commit = off; SAVEPOINT r"
	if len(names) > 0 && !failpoint.Mutant("pass.no_locks") {
		sql += "; LOCK TABLE " + strings.Join(names, ", ") + " IN ACCESS SHARE MODE"
	}
	if err := run(ctx, from.conn, sql); err != nil {
		abandon(ctx, from.conn)
		return nil, fmt.Errorf("beginning a pass on the %s: %w", p.cfg.From.Side(), err)
	}
	if failpoint.Mutant("pass.snapshot_first") {
		if _, err := from.look(ctx, tables); err != nil {
			return nil, err
		}
	}
	failpoint.Hit("pass.begun")
	return o, nil
}

// Close gives up a pass that was not run. After Run it does nothing.
func (o *Open) Close(ctx context.Context) { abandon(ctx, o.from.conn) }

// Run takes the snapshot and makes the pass.
func (o *Open) Run(ctx context.Context, opts Options) (Result, error) {
	result, err := o.run(ctx, opts)
	if err != nil {
		abandon(ctx, o.p.toConn())
		abandon(ctx, o.from.conn)
		result.Release()
	}
	return result, err
}

func (o *Open) run(ctx context.Context, opts Options) (Result, error) {
	started := time.Now()
	found, err := o.from.look(ctx, o.tables)
	if err != nil {
		return Result{}, err
	}
	more := &moreTables{}
	for _, id := range found.ids() {
		if !o.locked[id] {
			more.ids = append(more.ids, id)
		}
	}
	if len(more.ids) > 0 {
		return Result{}, more
	}
	job := &job{p: o.p, from: o.from, found: found, whole: true, opts: opts}
	for _, id := range found.ids() {
		job.work = append(job.work, work{table: o.tables[id], span: span{low: o.from.low[id]}, backlog: *found.tables[id]})
	}
	result, err := job.do(ctx)
	if err != nil {
		return result, err
	}
	for id := range o.tables {
		o.from.low[id] = found.xmin
	}
	result.Took, result.Taken = time.Since(started), found.rows()
	result.Empty = len(job.work) == 0
	o.p.lastPass, o.p.marked = result.PassID, time.Now()
	return result, nil
}

// heldBy adds the sessions that hold a lock to a lock timeout's event.
const holders = `
SELECT format('%s (pid %s, %s)', coalesce(nullif(a.application_name, ''), a.usename), a.pid, a.state), a.pid
  FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.mode = 'AccessExclusiveLock' AND l.granted AND l.locktype = 'relation'
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND a.pid <> pg_backend_pid()
 ORDER BY 1 LIMIT 5`

// namesHolders says in an event who holds a table that is waited for, and what to type.
func (p *Passer) namesHolders(ctx context.Context, e *engine.Event) {
	rows, err := p.beat.Query(ctx, holders)
	if err != nil {
		return
	}
	var who string
	var pid int32
	_, _ = pgx.ForEachRow(rows, []any{&who, &pid}, func() error {
		if e.Hint == "" {
			e.Hint = fmt.Sprintf("wait for pid %d to end, or on the %s: SELECT pg_terminate_backend(%d)", pid, p.cfg.From.Side(), pid)
		}
		e.Blockers = append(e.Blockers, who)
		return nil
	})
}

// patiently repeats what failed for a reason that passes. A lock on To, as of an index that is built there for hours, is
// outwaited.
func (p *Passer) patiently(ctx context.Context, patience time.Duration, f func() error) error {
	var deadline time.Time // counted from the first failure: a large pass takes longer than that by itself
	for wait := firstRest; ; wait = min(wait*2, time.Second) {
		err := f()
		var held *pg.HeldError
		if errors.As(err, &held) {
			if err = p.outwait(ctx, held); err == nil {
				deadline, wait = time.Time{}, firstRest
				continue
			}
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(patience)
		}
		if err == nil || ctx.Err() != nil || !pg.Retryable(err) && !pg.Canceled(err) || time.Now().Add(wait).After(deadline) {
			return err
		}
		e := engine.Event{Kind: engine.EventRetry, At: time.Now(), Message: "the pass is made again: " + err.Error(), SQLState: pg.SQLState(err)}
		if pg.SQLState(err) == "55P03" {
			wait = min(wait, 200*time.Millisecond) // whoever holds the lock is not disturbed by our waiting
		}
		if pg.SQLState(err) == "55P03" && p.beat != nil && !p.beat.IsClosed() {
			e.Kind, e.Reason = engine.EventWaiting, "a table is locked"
			p.namesHolders(ctx, &e)
		}
		p.cfg.Emit(e)
		if pg.IsConnLost(err) {
			// The others may be gone as well, and would be found one by one.
			p.drop(ctx)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// drop closes the sessions; the next pass opens new ones.
func (p *Passer) drop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		p.cfg.Log.Debug("closing sessions", "err", err)
	}
}

// tableName is for messages.
func tableName(t scope.Table) string { return pg.Name(t.Schema, t.Name.Name) }

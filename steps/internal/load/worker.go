package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const (
	// lockTimeout is below deadlock_timeout, and cut where that is short: a chunk never makes the application a deadlock's
	// victim.
	lockTimeout = 500 * time.Millisecond
	idlePoll    = 200 * time.Millisecond
)

// plainScans keeps a chunk to one process on the source; that nothing is compiled, package pg sees to.
const plainScans = "SET max_parallel_workers_per_gather = 0"

// errRewritten says that a relation is not the one whose ranges were cut.
var errRewritten = errors.New("the table was rewritten while it was read")

// worker has one session on each side.
type worker struct {
	l      *Loader
	n      int
	from   *pgx.Conn
	to     *pgx.Conn
	binary map[int32]bool
	// careful tables have keys or unique constraints on the target while they are loaded.
	careful map[int32]bool
}

func (w *worker) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, c := range []*pgx.Conn{w.from, w.to} {
		if c != nil && !c.IsClosed() {
			_ = c.Close(ctx)
		}
	}
	w.from, w.to = nil, nil
}

func (w *worker) connect(ctx context.Context) error {
	if w.from != nil && w.to != nil && !w.from.IsClosed() && !w.to.IsClosed() {
		return nil
	}
	w.close()
	var err error
	if w.from, err = w.l.cfg.From.Connect(ctx, pg.Use{Name: fmt.Sprintf("load %d", w.n+1), Marked: true, LockTimeout: lockTimeout}); err != nil {
		return err
	}
	// A chunk's mark is lost or kept together with its rows, so its commit need not wait for the disk.
	if w.to, err = w.l.cfg.To.Connect(ctx, pg.Use{Name: fmt.Sprintf("load %d", w.n+1), Marked: true, Replica: true, AsyncCommit: true}); err != nil {
		return err
	}
	w.binary = map[int32]bool{}
	if err := pg.LockTimeout(ctx, w.from, lockTimeout); err != nil {
		return fmt.Errorf("preparing a session on the %s: %w", w.l.cfg.From.Side(), err)
	}
	if _, err := w.from.Exec(ctx, plainScans); err != nil {
		return fmt.Errorf("preparing a session on the %s: %w", w.l.cfg.From.Side(), err)
	}
	return nil
}

// run takes chunks until copied says that there are none to come.
func (w *worker) run(ctx context.Context, copied <-chan struct{}) error {
	defer w.close()
	var failed setbacks
	for {
		if err := w.l.gate.admit(ctx, w.n); err != nil {
			return err
		}
		took, err := w.once(ctx)
		var held *pg.HeldError
		if errors.As(err, &held) { // which no number of tries and no time makes a failure
			failed = setbacks{}
			if err = w.outwait(ctx, held); err == nil {
				continue
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && (pg.Retryable(err) || pg.Canceled(err)):
			wait, again := failed.again(time.Now())
			if !again {
				return err
			}
			w.l.cfg.Emit(engine.Event{Kind: engine.EventRetry, At: time.Now(), Message: "a chunk is read again: " + err.Error(), SQLState: pg.SQLState(err)})
			if err := sleep(ctx, wait); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		failed = setbacks{}
		if took {
			continue
		}
		select {
		case <-copied:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(idlePoll):
		}
	}
}

// once claims one chunk, copies it and marks it, in one transaction on the target.
func (w *worker) once(ctx context.Context) (took bool, err error) {
	if err := w.connect(ctx); err != nil {
		return false, err
	}
	tx, err := w.to.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return false, fmt.Errorf("beginning a chunk: %w", err)
	}
	defer w.rollback(tx)
	it, ok, err := w.l.cfg.Journal.Claim(ctx, tx, w.l.cfg.Step, w.n)
	if err != nil || !ok {
		return false, err
	}
	failpoint.Hit("load.claimed")
	t, ok := w.l.tables[it.Table]
	if !ok {
		return false, fmt.Errorf("the journal has a chunk of table %d, which is not in the plan", it.Table)
	}
	state, ok, err := w.l.cfg.Journal.TableState(ctx, tx, it.Table)
	if err != nil {
		return false, err
	}
	if !ok || state.State != journal.Loading {
		return false, fmt.Errorf("%s has chunks left but is %s", tableName(t), state.State)
	}
	// While this waits, nothing is locked on the source: its application would queue behind who asks for more there.
	if err := pg.LockForWrites(ctx, w.to, []string{relation(t)}); err != nil {
		return false, err
	}
	err = w.chunk(ctx, tx, t, it, state)
	refused := scope.Refused(err, "loading", t, w.l.cfg.To.Side(), w.l.cfg.From.Side())
	switch {
	case errors.Is(err, errRewritten):
		w.rollback(tx)
		return true, w.again(ctx, t, state)
	case refused != nil && keyed(t) && !w.careful[t.ID]:
		w.careful[t.ID] = true // the chunk is free again
		return true, nil
	case refused != nil:
		return false, refused
	case err != nil && w.l.cfg.Explain != nil && slices.Contains([]string{"22", "23", "42"}, class(err)):
		w.rollback(tx)
		return false, w.explain(ctx, t, err)
	}
	return err == nil, err
}

// outwait holds nothing on either side meanwhile, not even the chunk.
func (w *worker) outwait(ctx context.Context, held *pg.HeldError) error {
	if err := w.connect(ctx); err != nil {
		return err
	}
	return held.Outwait(ctx, w.to, func(wait pg.LockWait) {
		w.l.cfg.Emit(scope.Waiting(engine.Side(w.l.cfg.To.Side()), "load rows", wait))
	})
}

// class is the class of an SQLSTATE.
func class(err error) string {
	state := pg.SQLState(err)
	return state[:min(2, len(state))]
}

// again starts a table over whose relations were rewritten, if that is all that happened to it.
func (w *worker) again(ctx context.Context, t scope.Table, state journal.TableState) error {
	if w.l.cfg.Check != nil {
		if err := w.l.cfg.Check(ctx, w.from, t); err != nil {
			return err
		}
	}
	return w.l.rewritten(ctx, t, state.Generation)
}

// explain asks why values or names do not fit: most often, somebody changed a column.
func (w *worker) explain(ctx context.Context, t scope.Table, err error) error {
	if w.from.IsClosed() { // the pipe closes the reading session when the writing one fails
		if connectErr := w.connect(ctx); connectErr != nil {
			return errors.Join(err, connectErr)
		}
	}
	if why := w.l.cfg.Explain(ctx, w.from, t); why != nil {
		return why
	}
	return err
}

// rollback ends a transaction that did not commit; after a COMMIT it does nothing.
func (w *worker) rollback(tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := tx.Rollback(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) && !w.to.IsClosed() {
		_ = w.to.Close(ctx)
	}
	if w.from != nil && !w.from.IsClosed() && w.from.PgConn().TxStatus() != 'I' {
		if _, err := w.from.Exec(ctx, "ROLLBACK"); err != nil {
			_ = w.from.Close(ctx)
		}
	}
}

func (w *worker) chunk(ctx context.Context, tx pgx.Tx, t scope.Table, it journal.Item, state journal.TableState) error {
	bin, err := w.isBinary(ctx, t)
	if err != nil {
		return err
	}
	read, lo, err := readChunk(t, it, bin)
	if err != nil {
		return err
	}
	snapshot, err := w.begin(ctx, t)
	if err != nil {
		return err
	}
	var flown int64
	defer func() { w.l.report.flying(t, -flown) }()
	write := writeChunk(t, tableName(t), bin)
	if w.careful[t.ID] {
		if write, err = w.stage(ctx, t, bin); err != nil {
			return err
		}
	}
	got, err := pg.Pipe(ctx, w.from, w.to, read, write, func(ctx context.Context, n int) error {
		flown += int64(n)
		w.l.report.flying(t, int64(n))
		return w.l.cfg.Rate.Take(ctx, n)
	})
	if err != nil {
		return fmt.Errorf("copying %s: %w", lo.Relation, err)
	}
	failpoint.Hit("load.copied")
	if err := w.unchanged(ctx, t, lo, state); err != nil {
		return err
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	if w.careful[t.ID] {
		if err := w.insertStaged(ctx, t, got.Rows); err != nil {
			return err
		}
	}
	if snapshot != "" {
		if err := w.remember(ctx, tx, t, snapshot); err != nil {
			return err
		}
	}
	if failpoint.Mutant("load.mark_apart") {
		if err := tx.Commit(ctx); err != nil {
			return err
		}
		if tx, err = w.to.Begin(ctx); err != nil {
			return err
		}
	}
	if err := w.l.cfg.Journal.Done(ctx, tx, w.l.cfg.Step, it, got.Rows, got.Bytes); err != nil {
		return err
	}
	failpoint.Hit("load.marked")
	// Whether a COMMIT whose answer is lost took place is found by the next Claim: the item's row
	// is locked until it is decided, and done or pending afterwards.
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("committing a chunk of %s: %w", tableName(t), err)
	}
	failpoint.Hit("load.committed")
	select {
	case w.l.kick <- struct{}{}:
	default:
	}
	return nil
}

// begin opens the reading transaction. A table whose whole rows are followed is read in one
// snapshot that the passes go on from; there, the lock comes before the snapshot.
func (w *worker) begin(ctx context.Context, t scope.Table) (snapshot string, err error) {
	if t.Identity != scope.FullRow {
		_, err := w.from.Exec(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
		return "", err
	}
	sql := "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
	if !failpoint.Mutant("load.no_lock") {
		sql += fmt.Sprintf("; LOCK TABLE %s, pgrunbook.image_%d IN ACCESS SHARE MODE", relation(t), t.ID)
	}
	if _, err := w.from.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return "", fmt.Errorf("beginning to read %s: %w", tableName(t), err)
	}
	version, err := pg.Version(ctx, w.from)
	if err != nil {
		return "", err
	}
	current := "pg_current_snapshot()"
	if version < 130000 {
		current = "txid_current_snapshot()"
	}
	if err := w.from.QueryRow(ctx, "SELECT "+current+"::text").Scan(&snapshot); err != nil {
		return "", fmt.Errorf("taking the snapshot of %s: %w", tableName(t), err)
	}
	return snapshot, nil
}

// unchanged compares the file node after the COPY, while its lock is still held. A COPY that
// queued behind DDL that rewrites takes its snapshot before its lock: it reads nothing, without an
// error.
func (w *worker) unchanged(ctx context.Context, t scope.Table, lo lower, state journal.TableState) error {
	if t.Identity == scope.FullRow || failpoint.Mutant("load.no_filenode") {
		return nil // locked before the snapshot was taken
	}
	var node int64
	err := w.from.QueryRow(ctx, "SELECT coalesce(pg_relation_filenode(to_regclass($1))::oid::int8, 0)", lo.Relation).Scan(&node)
	if err != nil {
		return fmt.Errorf("reading the file node of %s: %w", lo.Relation, err)
	}
	if want, ok := state.Filenodes[lo.Relation]; ok && want != node {
		return errRewritten
	}
	return nil
}

// settle ends the reading transaction and makes everything it saw durable.
func (w *worker) settle(ctx context.Context) error {
	if _, err := w.from.Exec(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("ending the read of a chunk: %w", err)
	}
	if failpoint.Mutant("load.no_heartbeat") {
		return nil
	}
	return capture.Heartbeat(ctx, w.from)
}

// remember stores the snapshot up to which a table's rows are in, where its passes look for it.
func (w *worker) remember(ctx context.Context, tx pgx.Tx, t scope.Table, snapshot string) error {
	_, err := tx.Exec(ctx, `INSERT INTO pgrunbook.watermark (from_side, pass, epoch, snapshot, at, timeline)
		VALUES ($1, md5($1 || clock_timestamp()::text)::uuid, $2, $3, clock_timestamp(), nullif($4::bigint, 0))
		ON CONFLICT (from_side) DO UPDATE SET pass = EXCLUDED.pass, epoch = EXCLUDED.epoch, snapshot = EXCLUDED.snapshot, at = EXCLUDED.at, timeline = EXCLUDED.timeline`,
		w.l.slot(t), w.l.cfg.Run.Epoch, snapshot, w.l.cfg.From.Config().Timeline)
	if err != nil {
		return fmt.Errorf("storing the snapshot of %s: %w", tableName(t), err)
	}
	return nil
}

// slot is the watermark row of one table's images; package pass reads it under the same name.
func (l *Loader) slot(t scope.Table) string { return fmt.Sprintf("%s/%d", l.cfg.From.Side(), t.ID) }

// isBinary says whether every column has the same built-in type with a portable binary form on
// both sides.
func (w *worker) isBinary(ctx context.Context, t scope.Table) (bool, error) {
	if bin, ok := w.binary[t.ID]; ok {
		return bin, nil
	}
	bin, names, types := true, []string{}, []int64{}
	for _, c := range t.Columns {
		if !c.Generated {
			names, types = append(names, c.Name), append(types, int64(c.TypeOID))
			bin = bin && c.Binary && c.TypeOID < 16384
		}
	}
	var same int
	err := w.to.QueryRow(ctx, `SELECT count(*) FROM unnest($2::text[], $3::int8[]) AS c (name, typ) JOIN pg_attribute a
		ON a.attrelid = to_regclass($1) AND a.attname = c.name AND a.atttypid::int8 = c.typ AND NOT a.attisdropped`, tableName(t), names, types).Scan(&same)
	if err != nil {
		return false, fmt.Errorf("comparing the columns of %s: %w", tableName(t), err)
	}
	w.binary[t.ID] = bin && same == len(names)
	return w.binary[t.ID], nil
}

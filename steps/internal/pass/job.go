package pass

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// work is one table's part of a pass.
type work struct {
	table   scope.Table
	span    span
	backlog backlog
	places  map[string]position // of the marked partitions on From

	stage  *stage
	staged int64
	images imagePlan
}

// job is what passes and pieces have in common: From's snapshot is taken and its tables are
// locked, the rest follows in one order that every failure was thought through for.
type job struct {
	p     *Passer
	from  *fromSession
	found pending
	work  []work
	whole bool // all tables, not a piece of one
	opts  Options

	id     string
	tx     pgx.Tx
	res    Result
	astray error // of a mark
}

// do reads, applies and forgets. To commits before From: in between, the pass is repeated.
func (j *job) do(ctx context.Context) (Result, error) {
	j.id = newPassID()
	j.res = Result{PassID: j.id, Snapshot: j.found.snapshot, SnapshotAt: j.found.at, Tables: len(j.work)}
	beat, beatCtx := errgroup.WithContext(ctx)
	beat.Go(func() error { return j.p.heartbeat(beatCtx) })
	err := j.stageAll(ctx)
	if beatErr := beat.Wait(); err == nil {
		err = beatErr
	}
	if err != nil {
		return j.res, err
	}
	failpoint.Hit("pass.staged")
	if err := j.lockTarget(ctx); err != nil {
		return j.res, err
	}
	if err := j.outlast(ctx); err != nil {
		return j.res, err
	}
	if err := j.apply(ctx); err != nil {
		return j.res, err
	}
	failpoint.Hit("pass.applied")
	if err := j.commit(ctx); err != nil {
		return j.res, err
	}
	return j.res, nil
}

// stageAll brings every row of the pass to To's temporary tables and lets From's locks go.
func (j *job) stageAll(ctx context.Context) error {
	if err := j.takeStages(ctx); err != nil {
		return err
	}
	tx, err := j.p.to.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return fmt.Errorf("beginning a pass on the %s: %w", j.p.cfg.To.Side(), err)
	}
	j.tx = tx
	if j.p.cfg.Fence != nil {
		if err := j.p.cfg.Fence(ctx, tx); err != nil {
			return err
		}
	}
	for i := range j.work {
		w := &j.work[i]
		if !keyed(w.table) {
			if err := j.stageImages(ctx, w); err != nil {
				return err
			}
			continue
		}
		if w.places, err = places(ctx, j.from.conn, w); err != nil {
			return err
		}
		if w.backlog.keys == 0 {
			continue
		}
		if err := j.stageRows(ctx, w); err != nil {
			return fmt.Errorf("reading the changed rows of %s: %w", tableName(w.table), err)
		}
	}
	failpoint.Hit("pass.read")
	return run(ctx, j.from.conn, "ROLLBACK TO SAVEPOINT r; RELEASE SAVEPOINT r")
}

// apply writes on To while From forgets and the fingerprint is compared once more.
func (j *job) apply(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return j.forget(gctx) })
	g.Go(func() error { return j.p.check(gctx) })
	g.Go(func() error {
		if failpoint.Mutant("pass.marks_last") {
			defer func() { _ = j.applyMarks(gctx) }()
		} else if err := j.applyMarks(gctx); err != nil || j.astray != nil {
			return err
		}
		for i := range j.work {
			w := &j.work[i]
			apply := j.applyKeyed
			if !keyed(w.table) {
				apply = j.applyImages
			}
			if err := apply(gctx, w); err != nil {
				return err
			}
			if failpoint.Mutant("pass.commit_each") {
				if err := run(gctx, j.p.to.conn, "COMMIT; BEGIN"); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err := j.orAstray(g.Wait()); err != nil {
		return err
	}
	if j.opts.InTarget != nil {
		if err := j.opts.InTarget(ctx, j.tx, j.from.conn); err != nil {
			return err
		}
	}
	if j.opts.Snapshot {
		return j.p.export(ctx, j.from.conn, &j.res)
	}
	return nil
}

// applyKeyed deletes keys whose row is gone, then writes the rows that are there. Deletes come
// first: a value handed from a deleted row to a new one would clash otherwise.
func (j *job) applyKeyed(ctx context.Context, w *work) error {
	if w.staged == 0 {
		return nil
	}
	h := finding(w.table, w.staged)
	return h.on(ctx, j.p.to.conn, func() error { return j.writeKeyed(ctx, w, h) })
}

func (j *job) writeKeyed(ctx context.Context, w *work, h how) error {
	conn, t := j.p.to.conn, w.table
	// The rows that are there are counted by themselves: a trigger or rule that swallows some raises nothing.
	apply := func(remove, insert string) error {
		if failpoint.Mutant("pass.upsert_first") {
			remove, insert = insert, remove
		}
		results, err := conn.PgConn().Exec(ctx, "SAVEPOINT a; "+remove+"; "+insert+"; SELECT count(*) FROM "+w.stage.name+" WHERE present; RELEASE SAVEPOINT a").ReadAll()
		if err != nil {
			return err
		}
		j.res.Deleted += results[1].CommandTag.RowsAffected()
		j.res.Rows += results[2].CommandTag.RowsAffected()
		if want, got := string(results[3].Rows[0][0]), fmt.Sprint(results[2].CommandTag.RowsAffected()); want != got {
			return fmt.Errorf("%s rows were read but %s were written: a trigger or a rule keeps rows back", want, got)
		}
		return nil
	}
	if !j.p.permanent[t.ID] && !alwaysIdentity(t) {
		err := apply(deleteKeys(t, w.stage, true, h, j.p.to.version), upsertRows(t, w.stage))
		if err == nil {
			return j.prove(ctx, w, h)
		}
		if !clashes(err) {
			return fmt.Errorf("applying the changed rows of %s: %w", tableName(t), err)
		}
		j.p.permanent[t.ID] = forGood(err)
		if err := run(ctx, conn, "ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a"); err != nil {
			return err
		}
	}
	if err := apply(deleteKeys(t, w.stage, false, h, j.p.to.version), insertRows(t, w.stage)); err != nil {
		if refused := j.refused(err, t); refused != nil {
			return refused
		}
		return fmt.Errorf("applying the changed rows of %s after deleting their keys: %w", tableName(t), err)
	}
	return j.prove(ctx, w, h)
}

func alwaysIdentity(t scope.Table) bool {
	for _, c := range t.Columns {
		if c.Identity == "a" {
			return true
		}
	}
	return false
}

// forget deletes exactly what the pass read: the same words under the same snapshot.
func (j *job) forget(ctx context.Context) error {
	d := dialectOf(j.from.version)
	var sql []string
	for _, w := range j.work {
		if len(w.backlog.marks) > 0 {
			ns := list(len(w.backlog.marks), func(i int) string { return fmt.Sprint(w.backlog.marks[i].n) })
			sql = append(sql, fmt.Sprintf("DELETE FROM pgrunbook.truncated WHERE rel = %d AND n IN (%s)", w.table.ID, ns))
		}
		switch {
		case !keyed(w.table):
			sql = append(sql, "DELETE FROM "+imageTable(w.table))
		case w.backlog.keys > 0:
			if failpoint.Mutant("pass.forget_unread") {
				w.span.cut = ""
			}
			if failpoint.Mutant("pass.forget_by_xid") {
				continue // commit does it
			}
			sql = append(sql, "DELETE FROM "+deltaTable(w.table)+" d WHERE "+w.span.where(d, w.table.ID))
		}
	}
	if len(sql) == 0 {
		return nil
	}
	if err := run(ctx, j.from.conn, strings.Join(sql, "; ")); err != nil {
		return fmt.Errorf("forgetting applied keys on the %s: %w", j.p.cfg.From.Side(), err)
	}
	return nil
}

// heartbeat is one small durable commit: everything the snapshot saw lies before it in the log, so
// a crash of From cannot take back what To is about to keep.
func (p *Passer) heartbeat(ctx context.Context) error {
	if failpoint.Mutant("pass.no_heartbeat") {
		return nil
	}
	if err := capture.Heartbeat(ctx, p.beat); err != nil {
		return fmt.Errorf("on the %s: %w", p.cfg.From.Side(), err)
	}
	return nil
}

// newPassID is a random uuid. A counter would let a stalled runner take another's pass for its own.
func newPassID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

const writeWatermark = `
INSERT INTO pgrunbook.watermark (from_side, pass, epoch, snapshot, at, timeline) VALUES ($1, $2::uuid, $3, $4, $5, nullif($6::bigint, 0))
ON CONFLICT (from_side) DO UPDATE SET pass = EXCLUDED.pass, epoch = EXCLUDED.epoch, snapshot = EXCLUDED.snapshot, at = EXCLUDED.at, timeline = EXCLUDED.timeline`

// slot names the watermark row of a piece, or of a table whose images were applied.
func (p *Passer) slot(t scope.Table) string {
	return fmt.Sprintf("%s/%d", p.cfg.From.Side(), t.ID)
}

// commit settles the pass: watermark and rows on To durably, then the forgetting on From.
func (j *job) commit(ctx context.Context) error {
	mark := func(slot string) error {
		_, err := j.tx.Exec(ctx, writeWatermark, slot, j.id, j.p.cfg.Run.Epoch, j.found.snapshot, j.found.at, j.p.cfg.From.Config().Timeline)
		if err != nil {
			return fmt.Errorf("writing the watermark on the %s: %w", j.p.cfg.To.Side(), err)
		}
		return nil
	}
	lookup := j.p.cfg.From.Side()
	for _, w := range j.work {
		if !keyed(w.table) || !j.whole {
			lookup = j.p.slot(w.table)
			if err := mark(lookup); err != nil {
				return err
			}
		}
	}
	if j.whole {
		lookup = j.p.cfg.From.Side()
		if err := mark(lookup); err != nil {
			return err
		}
	}
	if failpoint.Mutant("pass.forget_first") {
		if err := run(ctx, j.from.conn, "COMMIT"); err != nil {
			return err
		}
	}
	failpoint.Hit("pass.marked")
	err := j.tx.Commit(ctx)
	if err == nil {
		err = pg.Durable(ctx, j.p.to.conn)
	}
	if err != nil {
		if pg.SQLState(err) != "" && !pg.Retryable(err) {
			return fmt.Errorf("committing on the %s: %w", j.p.cfg.To.Side(), err)
		}
		known, lookErr := j.p.committed(ctx, lookup, j.id)
		if lookErr != nil || !known {
			return errors.Join(fmt.Errorf("committing on the %s: %w", j.p.cfg.To.Side(), err), lookErr)
		}
	}
	failpoint.Hit("pass.committed")
	if err := run(ctx, j.from.conn, "COMMIT"); err != nil {
		return fmt.Errorf("committing the forgetting on the %s: %w", j.p.cfg.From.Side(), err)
	}
	if failpoint.Mutant("pass.forget_by_xid") {
		_, xmax, _ := strings.Cut(j.found.snapshot, ":")
		xmax, _, _ = strings.Cut(xmax, ":")
		for _, w := range j.work {
			if !keyed(w.table) {
				continue
			}
			if err := run(ctx, j.from.conn, fmt.Sprintf("DELETE FROM %s WHERE rel = %d AND x < '%s'", deltaTable(w.table), w.table.ID, xmax)); err != nil {
				return err
			}
		}
	}
	failpoint.Hit("pass.forgotten")
	return nil
}

// export opens the pass's snapshot in a session of its own, which keeps it after the pass has
// committed.
func (p *Passer) export(ctx context.Context, from *pgx.Conn, res *Result) error {
	if p.snap == nil || p.snap.IsClosed() {
		conn, err := p.cfg.From.Connect(ctx, pg.Use{Name: "pass snapshot", Marked: true, ReadOnly: true})
		if err != nil {
			return err
		}
		p.snap = conn
	}
	abandon(ctx, p.snap)
	var id string
	if err := from.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&id); err != nil {
		return fmt.Errorf("exporting the pass's snapshot: %w", err)
	}
	if err := run(ctx, p.snap, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT "+pg.Literal(id)); err != nil {
		return fmt.Errorf("holding the pass's snapshot: %w", err)
	}
	if err := p.snap.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&res.ExportedSnapshot); err != nil {
		return fmt.Errorf("exporting the pass's snapshot: %w", err)
	}
	snap := p.snap
	res.release = func() { abandon(context.Background(), snap) }
	return nil
}

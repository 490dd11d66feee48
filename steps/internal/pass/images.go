package pass

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// imagePlan is what a look at a table's row images found.
type imagePlan struct {
	truncated bool // To is emptied before the images are applied
}

// takeSlot waits for a transaction that writes a watermark's row and was not committed yet: its COMMIT may still be on
// its way when its session is lost to us. FOR UPDATE does not wait for the first one, which inserts the row. No
// transaction id is visible in the snapshot that a new row gets.
const takeSlot = `INSERT INTO pgrunbook.watermark (from_side, pass, epoch, snapshot) VALUES ($1, $2::uuid, $3, '1:1:') ON CONFLICT DO NOTHING`

// unapplied leaves out images that an earlier pass applied whose forgetting was lost: To's
// watermark of the table has the snapshot up to which they are in.
func (j *job) unapplied(ctx context.Context, t scope.Table) (string, error) {
	if !failpoint.Mutant("pass.no_slot") {
		made, err := j.tx.Exec(ctx, takeSlot, j.p.slot(t), j.id, j.p.cfg.Run.Epoch)
		if err != nil {
			return "", fmt.Errorf("taking the watermark of %s: %w", tableName(t), err)
		}
		// The load of a full_row table leaves the row with its one chunk.
		if made.RowsAffected() > 0 && t.Identity == scope.FullRow && j.p.cfg.From.Side() == string(engine.Source) {
			return "", journal.Lost("pgrunbook.watermark", "the row that says what the load of %s has read is gone", tableName(t))
		}
	}
	var snapshot string
	var timeline int64
	err := j.tx.QueryRow(ctx, "SELECT snapshot, coalesce(timeline, 0) FROM pgrunbook.watermark WHERE from_side = $1 FOR UPDATE", j.p.slot(t)).Scan(&snapshot, &timeline)
	if errors.Is(err, pgx.ErrNoRows) {
		return "true", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the watermark of %s: %w", tableName(t), err)
	}
	d := dialectOf(j.from.version)
	seen := fmt.Sprintf("%s(e.x, %s::%s)", d.visible, pg.Literal(snapshot), d.snapshotType)
	return "NOT " + seen, j.ofAnother(ctx, t, timeline, seen)
}

// ofAnother refuses to leave out images by the snapshot of a server that From was promoted in place of: a standby that
// lagged has given its transaction ids out again. Where it has no image that the snapshot shows, nothing is in doubt.
func (j *job) ofAnother(ctx context.Context, t scope.Table, was int64, seen string) error {
	from, is := j.p.cfg.From.Side(), j.p.cfg.From.Config().Timeline
	if was == 0 || is == 0 || was == is { // 0: our role may not know
		return nil
	}
	var doubtful bool
	if err := j.from.conn.QueryRow(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM %s e WHERE %s)", imageTable(t), seen)).Scan(&doubtful); err != nil {
		return fmt.Errorf("looking for row images of %s from before the promotion: %w", tableName(t), err)
	}
	if !doubtful {
		return nil
	}
	hint := "Run pgrunbook apply: catch_up loads the table again."
	if engine.Side(from) == engine.Target {
		hint = "There is no way back for it: stay on the target (pgrunbook finish)."
	}
	return &engine.Error{
		Op: "following", Object: tableName(t), Hint: hint,
		Err: &UnfitError{Table: t, Err: fmt.Errorf("the %s was promoted from a standby (timeline %d, was %d) and may have given transaction ids out again, so nothing tells which of them are on the %s", from, is, was, j.p.cfg.To.Side())},
	}
}

// stageImages reads the row images of a table without a key. An image is the text of a record of
// the carried columns; To takes it apart.
func (j *job) stageImages(ctx context.Context, w *work) error {
	t := w.table
	where, err := j.unapplied(ctx, t)
	if err != nil {
		return err
	}
	from := engine.Side(j.p.cfg.From.Side())
	last, err := fitImages(ctx, j.from.conn, t, where, from)
	if err != nil {
		return err
	}
	w.images.truncated = last > 0
	query := fmt.Sprintf("SELECT e.n, e.op, e.img FROM %s e WHERE %s AND e.n > %d AND e.op <> 't'", imageTable(t), where, last)
	got, err := pg.Pipe(ctx, j.from.conn, j.p.to.conn, copyOut(query, w.stage.binary),
		"COPY "+w.stage.name+" ("+w.stage.columns+") FROM STDIN"+format(w.stage.binary), nil)
	w.stage.deadBytes += got.Bytes
	if err != nil {
		return fmt.Errorf("reading the row images of %s: %w", tableName(t), err)
	}
	w.staged = got.Rows
	j.res.Keys += got.Rows
	j.res.Bytes += got.Bytes
	return nil
}

// PastTheGate writes rows on a closed side by hand, unseen by triggers of ours.
const PastTheGate = "BEGIN READ WRITE; SELECT set_config('pgrunbook.mark', mark, true) FROM pgrunbook.side; INSERT or DELETE ...; COMMIT"

// images are the staged images, taken apart into a record r.
func images(st *stage) string {
	return fmt.Sprintf("(SELECT n, op, img, img::%s AS r FROM %s OFFSET 0) s", st.row, st.name)
}

func imageColumns(t scope.Table) string {
	return list(len(written(t)), func(i int) string { return fmt.Sprintf("(s.r).c%d", i+1) })
}

// netImages counts each row image: inserts minus deletes. Rows are compared by their text under
// pinned settings, which json, xml and point have too. The text is made here from both sides'
// values, since majors print floats differently.
func netImages(t scope.Table, st *stage) string {
	return fmt.Sprintf(`WITH net AS (SELECT i.img COLLATE "C" AS img, min(i.n) AS n, sum(CASE i.op WHEN 'i' THEN 1 ELSE -1 END)::int8 AS d
 FROM (SELECT s.n, s.op, ROW(%s)::text AS img FROM %s) i GROUP BY i.img COLLATE "C" HAVING sum(CASE i.op WHEN 'i' THEN 1 ELSE -1 END) <> 0) `,
		imageColumns(t), images(st))
}

// deleteImages deletes as many copies of each image as were deleted on From. It reads the table twice. Before 12 places cannot be
// hashed, and must not be joined by a hash of the partition alone, which all of them have in common.
func deleteImages(t scope.Table, st *stage) string {
	cols := written(t)
	return netImages(t, st) + fmt.Sprintf(`DELETE FROM %s AS t USING (
 SELECT r.tid, r.rel FROM (SELECT t.ctid AS tid, t.tableoid AS rel, net.d, row_number() OVER (PARTITION BY net.n) AS nth
   FROM %s AS t JOIN net ON net.d < 0 AND (ROW(%s)::text) COLLATE "C" = net.img) r WHERE r.nth <= -r.d) gone
 WHERE t.ctid = gone.tid AND t.tableoid = ANY (ARRAY[gone.rel])`,
		relation(t), relation(t), list(len(cols), func(i int) string { return "t." + ident(cols[i].Name) }))
}

func missingImages(t scope.Table, st *stage) string {
	return netImages(t, st) + "SELECT coalesce(-sum(d), 0)::int8 FROM net WHERE d < 0"
}

func insertImages(t scope.Table, st *stage) string {
	return netImages(t, st) + fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s JOIN net ON net.n = s.n AND net.d > 0 CROSS JOIN LATERAL generate_series(1, net.d) ORDER BY s.n",
		pg.Name(t.Schema, t.Name.Name), columnList(written(t)), imageColumns(t), images(st))
}

// applyImages writes the images of one table.
func (j *job) applyImages(ctx context.Context, w *work) error {
	if w.staged == 0 {
		return nil
	}
	err := join.on(ctx, j.p.to.conn, func() error { return j.writeImages(ctx, w) })
	if refused := j.refused(err, w.table); refused != nil {
		return refused
	}
	if unfit(err) {
		hint := "Make its types alike on both sides, then run the same command again"
		if j.p.cfg.From.Side() == string(engine.Source) {
			hint += ": catch_up loads the table again"
		}
		return &engine.Error{Op: "following", Object: tableName(w.table), Err: &UnfitError{Table: w.table, Err: err}, Hint: hint + "."}
	}
	return err
}

// writeImages writes all of them for append_only, the net of inserts and deletes for full_row.
func (j *job) writeImages(ctx context.Context, w *work) error {
	t, conn := w.table, j.p.to.conn
	if t.Identity == scope.AppendOnly {
		n, err := affected(ctx, conn, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s ORDER BY s.n",
			pg.Name(t.Schema, t.Name.Name), columnList(written(t)), imageColumns(t), images(w.stage)))
		if err != nil {
			return fmt.Errorf("inserting the new rows of %s: %w", tableName(t), err)
		}
		j.res.Rows += n[0]
		return nil
	}
	var want int64
	if err := j.tx.QueryRow(ctx, missingImages(t, w.stage)).Scan(&want); err != nil {
		return fmt.Errorf("counting the row images of %s: %w", tableName(t), err)
	}
	if want > 0 {
		n, err := affected(ctx, conn, deleteImages(t, w.stage))
		if err != nil {
			return fmt.Errorf("deleting rows of %s: %w", tableName(t), err)
		}
		if n[0] != want {
			from, to := engine.Side(j.p.cfg.From.Side()), j.p.cfg.To.Side()
			hint := "or begin again with pgrunbook abort."
			if from == engine.Target {
				hint = "or stay on the target: pgrunbook finish"
			}
			return &engine.Error{
				Class: engine.ClassDifferences, Op: "following", Object: tableName(t), Err: fmt.Errorf("%d rows were deleted on the %s but only %d of them are on the %s", want, from, n[0], to),
				Hint: fmt.Sprintf("Find out who wrote to the %[1]s, or what it lost. Write what it lacks there, past its gate (%[2]s), then the same command; %[3]s", to, PastTheGate, hint),
			}
		}
		j.res.Deleted += n[0]
	}
	n, err := affected(ctx, conn, insertImages(t, w.stage))
	if err != nil {
		return fmt.Errorf("inserting rows of %s: %w", tableName(t), err)
	}
	j.res.Rows += n[0]
	return nil
}

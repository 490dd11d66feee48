package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// reloader carries the tables that are reloaded whole inside the freeze. Its source transaction
// locks them before the hold and takes its snapshot after it, like the final pass.
type reloader struct {
	side     string // that is written
	fence    func(ctx context.Context, tx pgx.Tx) error
	tables   []scope.Table
	from, to *pgx.Conn
	open     func(ctx context.Context) error
	bytes    int64 // of the tables, when a side was asked last
}

// assumedRate is what a reload is expected to carry before one was measured.
const assumedRate = 20 << 20

// bytesForRate is the least that tells how many bytes a second a reload carries.
const bytesForRate = 1 << 20

// errRefusedReload is the end of a reload that meets the same constraint again: on the way back, a check of the source that
// is NOT VALID there, since rows of its own break it.
var errRefusedReload = errors.New("a constraint refuses rows that the other side has")

func newReloader(ctx context.Context, env *Env, from, to *pg.Server) (*reloader, error) {
	r := &reloader{side: to.Side(), fence: env.fence(to)}
	for _, t := range env.Scope.Tables {
		if t.Data == scope.AtFreeze {
			r.tables = append(r.tables, t)
		}
	}
	if len(r.tables) == 0 {
		return r, nil
	}
	r.open = func(ctx context.Context) (err error) {
		if r.from, err = from.Connect(ctx, pg.Use{Name: "reload read", Marked: true, LockTimeout: 300 * time.Millisecond}); err != nil {
			return err
		}
		if r.to, err = to.Connect(ctx, pg.Use{Name: "reload write", Marked: true, Replica: true}); err != nil {
			_ = r.from.Close(ctx)
			r.from = nil
		}
		return err
	}
	return r, r.open(ctx)
}

// again replaces sessions that a cancelled statement has closed.
func (r *reloader) again(ctx context.Context) error {
	if len(r.tables) == 0 || r.from != nil && !r.from.IsClosed() && !r.to.IsClosed() {
		return nil
	}
	r.close(ctx)
	return r.open(ctx)
}

// prepare locks the tables on the source; no snapshot is taken.
func (r *reloader) prepare(ctx context.Context) error {
	if len(r.tables) == 0 {
		return nil
	}
	names := make([]string, len(r.tables))
	for i, t := range r.tables {
		names[i] = only(t)
	}
	sql := "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE " + strings.Join(names, ", ") + " IN ACCESS SHARE MODE"
	if _, err := r.from.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		r.abandon(ctx)
		return fmt.Errorf("locking the tables that are reloaded at the freeze: %w", err)
	}
	return nil
}

// rate is how many bytes of the tables a second a reload carried; 0: it was too small to tell.
func (r *reloader) rate(took time.Duration) float64 {
	if r.bytes < bytesForRate || took <= 0 {
		return 0
	}
	return float64(r.bytes) / took.Seconds()
}

// run replaces the tables' rows on the target in one transaction.
func (r *reloader) run(ctx context.Context) (rows int64, err error) {
	if len(r.tables) == 0 {
		return 0, nil
	}
	tx, err := r.to.Begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("reloading: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // closes the session where it cannot
	}()
	if err := r.fence(ctx, tx); err != nil {
		return 0, err
	}
	for _, t := range r.tables {
		name := pg.Name(t.Schema, t.Name.Name)
		if _, err := tx.Exec(ctx, "DELETE FROM "+only(t)); err != nil {
			return 0, fmt.Errorf("reloading %s: %w", name, err)
		}
		cols := copyColumns(t)
		read := fmt.Sprintf("COPY (SELECT %s FROM %s) TO STDOUT", cols, only(t))
		write := fmt.Sprintf("COPY %s (%s) FROM STDIN", name, cols)
		if cols == "" { // a table may have no column, but a list may not be empty
			write = fmt.Sprintf("COPY %s FROM STDIN", name)
		}
		piped, err := pg.Pipe(ctx, r.from, r.to, read, write, nil)
		if strings.HasPrefix(pg.SQLState(err), "23") {
			return 0, &engine.Error{
				Op: "reloading", Object: name, Err: fmt.Errorf("%w: %w", errRefusedReload, err),
				Hint: fmt.Sprintf("Drop on the %s what the message names, and run the same command again. Afterwards add it there again: a check as NOT VALID, as no row is looked at then.", r.side),
			}
		}
		if err != nil {
			return 0, fmt.Errorf("reloading %s: %w", name, err)
		}
		rows += piped.Rows
	}
	failpoint.Hit("reload.copied")
	if err := tx.Commit(ctx); err != nil {
		return 0, fmt.Errorf("reloading: %w", err)
	}
	failpoint.Hit("reload.committed")
	r.abandon(ctx) // what comes next may last longer than the source's writers are held, and is none of its tables'
	return rows, nil
}

// only names a table so that children of legacy inheritance are left out; a partition root is
// read and emptied whole.
func only(t scope.Table) string {
	name := pg.Name(t.Schema, t.Name.Name)
	if t.Kind == scope.Partitioned {
		return name
	}
	return "ONLY " + name
}

// copyColumns lists a table's columns without generated ones, always by name: a dump may order
// them differently on the target.
func copyColumns(t scope.Table) string {
	names := make([]string, 0, len(t.Columns))
	for _, c := range t.Columns {
		if !c.Generated {
			names = append(names, pgx.Identifier{c.Name}.Sanitize())
		}
	}
	return strings.Join(names, ", ")
}

// abandon ends the source's transaction.
func (r *reloader) abandon(ctx context.Context) {
	if r == nil || r.from == nil || r.from.IsClosed() || r.from.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := r.from.Exec(ctx, "ROLLBACK"); err != nil {
		_ = r.from.Close(ctx)
	}
}

func (r *reloader) close(ctx context.Context) {
	if r == nil || r.from == nil {
		return
	}
	_ = r.from.Close(ctx)
	_ = r.to.Close(ctx)
}

package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

var errMoved = errors.New("started over by another worker")

// StartOver empties a table on the target and gives it new chunks, in the next generation. A load
// must run afterwards.
func (l *Loader) StartOver(ctx context.Context, t scope.Table) error {
	state, _, err := l.cfg.Journal.TableState(ctx, nil, t.ID)
	if err != nil {
		return err
	}
	_, err = l.startOver(ctx, t, state.Generation)
	return err
}

// rewritten starts a table over that was rewritten under the load, and tells.
func (l *Loader) rewritten(ctx context.Context, t scope.Table, generation int) error {
	did, err := l.startOver(ctx, t, generation)
	if did {
		l.cfg.Emit(engine.Event{Kind: engine.EventNote, At: time.Now(), Level: "warn", Object: tableName(t), Message: tableName(t) + " was rewritten while it was read: it is loaded again from the start"})
	}
	return err
}

// startOver does nothing if somebody else has started the table over since generation. That the table is
// empty and without chunks is committed before anything is forgotten on From: a death in between leads to
// refill, whether or not what asked for it is still to be seen.
func (l *Loader) startOver(ctx context.Context, t scope.Table, generation int) (did bool, err error) {
	s, err := l.connect(ctx, "load again")
	if err != nil {
		return false, err
	}
	defer s.close()
	if failpoint.Mutant("load.forget_first") {
		if err := forget(ctx, s.from, t); err != nil {
			return false, err
		}
	}
	var next int
	err = pgx.BeginFunc(ctx, s.to, func(tx pgx.Tx) (err error) {
		next, err = l.reset(ctx, tx, t, generation)
		return err
	})
	if errors.Is(err, errMoved) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("starting %s over: %w", tableName(t), err)
	}
	failpoint.Hit("load.emptied")
	return true, l.refill(ctx, s, t, next)
}

// reset takes a table's rows and chunks away. Chunks are locked before the state, in the order in which a
// chunk's transaction takes them.
func (l *Loader) reset(ctx context.Context, tx pgx.Tx, t scope.Table, generation int) (next int, err error) {
	if _, err := tx.Exec(ctx, "SELECT FROM pgrunbook.item WHERE run = $1 AND step = $2 AND tbl = $3 ORDER BY no FOR UPDATE", l.cfg.Journal.ID, string(l.stepOf(t)), t.ID); err != nil {
		return 0, err
	}
	var now int
	if err := tx.QueryRow(ctx, "SELECT generation FROM pgrunbook.table_state WHERE run = $1 AND tbl = $2 FOR UPDATE", l.cfg.Journal.ID, t.ID).Scan(&now); err != nil {
		return 0, err
	}
	if now != generation {
		return 0, errMoved
	}
	if next, err = l.cfg.Journal.Reset(ctx, tx, t.ID); err != nil {
		return 0, err
	}
	if err := empty(ctx, tx, t); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, "DELETE FROM pgrunbook.watermark WHERE from_side = $1", l.slot(t)); err != nil {
		return 0, err
	}
	if l.cfg.Emptied == nil {
		return next, nil
	}
	return next, l.cfg.Emptied(ctx, tx, t)
}

// refill gives a table that was emptied its new chunks. That it is empty was seen, perhaps after a COMMIT whose answer was
// lost, and what was captured of it goes.
func (l *Loader) refill(ctx context.Context, s sides, t scope.Table, generation int) error {
	if err := pg.MakeDurable(ctx, s.to); err != nil {
		return fmt.Errorf("starting %s over: %w", tableName(t), err)
	}
	if err := l.fill(ctx, s, t, generation); err != nil {
		return fmt.Errorf("starting %s over: %w", tableName(t), err)
	}
	failpoint.Hit("load.again")
	return nil
}

// cutAgain is refill on sessions of its own.
func (l *Loader) cutAgain(ctx context.Context, t scope.Table) error {
	return pg.Retry(ctx, "cutting "+tableName(t)+" into chunks", func(ctx context.Context) error {
		state, ok, err := l.cfg.Journal.TableState(ctx, nil, t.ID)
		if err == nil && !ok {
			err = journal.Lost("pgrunbook.table_state", "the row of %s is gone", tableName(t))
		}
		if err != nil || state.State != journal.Loading {
			return err
		}
		s, err := l.connect(ctx, "load again")
		if err != nil {
			return err
		}
		defer s.close()
		return l.refill(ctx, s, t, state.Generation)
	})
}

// emptied reports whether a table waits for its new chunks.
func emptied(state journal.TableState, cut bool) bool {
	return state.State == journal.Loading && !cut
}

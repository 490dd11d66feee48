package load

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// sides is a pair of sessions for everything but chunks.
type sides struct{ from, to *pgx.Conn }

func (l *Loader) connect(ctx context.Context, name string) (s sides, err error) {
	if s.from, err = l.cfg.From.Connect(ctx, pg.Use{Name: name, Marked: true, LockTimeout: lockTimeout}); err != nil {
		return s, err
	}
	if s.to, err = l.cfg.To.Connect(ctx, pg.Use{Name: name, Marked: true, Replica: true}); err != nil {
		s.close()
		return s, err
	}
	return s, nil
}

func (s sides) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, c := range []*pgx.Conn{s.from, s.to} {
		if c != nil {
			_ = c.Close(ctx)
		}
	}
}

// Prepare gives every table that has none a state and its chunks. It is done again on each start
// and changes nothing that is there.
func (l *Loader) Prepare(ctx context.Context) error {
	states, err := l.cfg.Journal.TableStates(ctx, nil)
	if err != nil {
		return err
	}
	s, err := l.connect(ctx, "load")
	if err != nil {
		return err
	}
	defer s.close()
	for _, id := range slices.Sorted(maps.Keys(l.tables)) {
		if _, ok := states[id]; ok {
			continue
		}
		if err := l.prepare(ctx, s, l.tables[id]); err != nil {
			return err
		}
	}
	return nil
}

func (l *Loader) prepare(ctx context.Context, s sides, t scope.Table) error {
	if t.Method != scope.External {
		var filled bool
		if err := s.to.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+relation(t)+")").Scan(&filled); err != nil {
			return fmt.Errorf("looking at %s on the %s: %w", tableName(t), l.cfg.To.Side(), err)
		}
		if filled {
			return &engine.Error{
				Op: "loading", Object: tableName(t), Err: fmt.Errorf("it has rows on the %s already", l.cfg.To.Side()),
				Hint: `Empty it there, or set copy { method = "external" } if somebody else loads it.`,
			}
		}
	}
	nodes, items, err := l.cut(ctx, s.from, t)
	if err != nil {
		return err
	}
	failpoint.Hit("load.cut")
	return pgx.BeginFunc(ctx, s.to, func(tx pgx.Tx) error {
		if err := l.cfg.Journal.SetTableState(ctx, tx, t.ID, journal.Loading, 1, nodes); err != nil {
			return err
		}
		return l.cfg.Journal.AddItems(ctx, tx, l.stepOf(t), items)
	})
}

// cut reads the file nodes first: a rewrite between the two makes the chunks fail, not lie.
func (l *Loader) cut(ctx context.Context, from *pgx.Conn, t scope.Table) (map[string]int64, []journal.Item, error) {
	nodes, err := capture.FileNodes(ctx, from, t)
	if err != nil {
		return nil, nil, err
	}
	items, err := Chunks(ctx, from, t)
	return nodes, items, err
}

// StartOver empties a table on the target and gives it new chunks, in the next generation. A load
// must run afterwards.
func (l *Loader) StartOver(ctx context.Context, t scope.Table) error {
	state, _, err := l.cfg.Journal.TableState(ctx, nil, t.ID)
	if err != nil {
		return err
	}
	return l.startOver(ctx, t, state.Generation)
}

// startOver does nothing if somebody else has started the table over since generation. Chunks are
// locked before the state, in the order in which a chunk's transaction takes them.
func (l *Loader) startOver(ctx context.Context, t scope.Table, generation int) error {
	s, err := l.connect(ctx, "load again")
	if err != nil {
		return err
	}
	defer s.close()
	nodes, items, err := l.cut(ctx, s.from, t)
	if err != nil {
		return err
	}
	var forget func() error
	err = pgx.BeginFunc(ctx, s.to, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT FROM pgrunbook.item WHERE run = $1 AND step = $2 AND tbl = $3 ORDER BY no FOR UPDATE", l.cfg.Journal.ID, string(l.stepOf(t)), t.ID); err != nil {
			return err
		}
		var now int
		if err := tx.QueryRow(ctx, "SELECT generation FROM pgrunbook.table_state WHERE run = $1 AND tbl = $2 FOR UPDATE", l.cfg.Journal.ID, t.ID).Scan(&now); err != nil {
			return err
		}
		if now != generation {
			return errMoved
		}
		next, err := l.cfg.Journal.Reset(ctx, tx, t.ID)
		if err != nil {
			return err
		}
		if err := empty(ctx, tx, t); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM pgrunbook.watermark WHERE from_side = $1", l.slot(t)); err != nil {
			return err
		}
		if err := l.cfg.Journal.SetTableState(ctx, tx, t.ID, journal.Loading, next, nodes); err != nil {
			return err
		}
		if err := forgetMarks(ctx, s.from, t); err != nil {
			return err
		}
		if forget, err = forgetImages(ctx, s.from, t); err != nil {
			return err
		}
		return l.cfg.Journal.AddItems(ctx, tx, l.stepOf(t), items)
	})
	if errors.Is(err, errMoved) {
		return nil
	}
	if err == nil {
		failpoint.Hit("load.again")
		err = forget()
	}
	if err != nil {
		return fmt.Errorf("starting %s over: %w", tableName(t), err)
	}
	l.cfg.Emit(engine.Event{Kind: engine.EventNote, At: time.Now(), Level: "warn", Object: tableName(t), Message: tableName(t) + " was rewritten while it was read: it is loaded again from the start"})
	return nil
}

var errMoved = errors.New("started over by another worker")

// empty removes every row of t on the target. TRUNCATE is refused where a foreign key points to
// the table, even from an empty one; where somebody reads the table it is not waited for, since other
// readers would queue behind us.
func empty(ctx context.Context, tx pgx.Tx, t scope.Table) error {
	nested, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = nested.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", lockTimeout.Milliseconds()))
	if err == nil {
		_, err = nested.Exec(ctx, "TRUNCATE "+relation(t))
	}
	if err == nil {
		_, err = nested.Exec(ctx, "SET LOCAL lock_timeout = 0")
	}
	if err == nil {
		return nested.Commit(ctx)
	}
	if state := pg.SQLState(err); state != "0A000" && state != "55P03" {
		return fmt.Errorf("emptying %s: %w", tableName(t), err)
	}
	if err := nested.Rollback(ctx); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "DELETE FROM "+relation(t)); err != nil {
		return fmt.Errorf("emptying %s: %w", tableName(t), err)
	}
	return nil
}

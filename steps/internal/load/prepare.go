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
	cut, err := l.cutTables(ctx)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(l.tables)) {
		switch state, ok := states[id]; {
		case !ok && cut[id]:
			err = l.stateless(ctx, l.tables[id])
		case !ok:
			err = l.prepare(ctx, s, l.tables[id])
		case emptied(state, cut[id]): // a process died when it had emptied it
			err = l.refill(ctx, s, l.tables[id], state.Generation)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// stateless looks once more at a table that has chunks and had no state: they come together, and go one by one
// only with a person's hand. Without its state nothing says whether its rows are all there.
func (l *Loader) stateless(ctx context.Context, t scope.Table) error {
	_, ok, err := l.cfg.Journal.TableState(ctx, nil, t.ID)
	if err == nil && !ok {
		err = journal.Lost("pgrunbook.table_state", "the row of %s is gone, whose chunks are in pgrunbook.item", tableName(t))
	}
	return err
}

// cutTables are those that have chunks.
func (l *Loader) cutTables(ctx context.Context) (map[int32]bool, error) {
	cut := map[int32]bool{}
	for _, step := range l.steps() {
		progress, err := l.cfg.Journal.Progress(ctx, step)
		if err != nil {
			return nil, err
		}
		for _, p := range progress {
			cut[p.Table] = true
		}
	}
	return cut, nil
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
	return l.fill(ctx, s, t, 1)
}

const bareSQL = `
SELECT NOT EXISTS (SELECT FROM pgrunbook.item WHERE run = $1 AND step = $2 AND tbl = $3)
   AND NOT EXISTS (SELECT FROM pgrunbook.table_state WHERE run = $1 AND tbl = $3 AND generation > $4)`

// fill gives an empty table its chunks, unless somebody else has. What was captured before they are read
// goes.
func (l *Loader) fill(ctx context.Context, s sides, t scope.Table, generation int) error {
	nodes, items, err := l.cut(ctx, s.from, t)
	if err != nil {
		return err
	}
	failpoint.Hit("load.cut")
	return pgx.BeginFunc(ctx, s.to, func(tx pgx.Tx) error {
		var had int
		err := tx.QueryRow(ctx, "SELECT chunks FROM pgrunbook.table_state WHERE run = $1 AND tbl = $2 FOR UPDATE", l.cfg.Journal.ID, t.ID).Scan(&had)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		var bare bool
		if err := tx.QueryRow(ctx, bareSQL, l.cfg.Journal.ID, string(l.stepOf(t)), t.ID, generation).Scan(&bare); err != nil || !bare {
			return err
		}
		if had > 0 { // whoever empties a table sets that back: its rows may be there
			return lostChunks(t, 0, had)
		}
		if err := l.cfg.Journal.SetTableState(ctx, tx, t.ID, journal.Loading, generation, nodes); err != nil {
			return err
		}
		if err := l.cfg.Journal.AddItems(ctx, tx, l.stepOf(t), items); err != nil {
			return err
		}
		return forget(ctx, s.from, t)
	})
}

// lostChunks is the error of a table of whose chunks the journal has fewer than it was cut into: to load it from
// those would leave rows out, and to cut it anew would load rows twice.
func lostChunks(t scope.Table, have, had int) error {
	return journal.Lost("pgrunbook.item", "%d of the %d chunks of %s are gone, and what they say of its rows", had-have, had, tableName(t))
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

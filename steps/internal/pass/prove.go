package pass

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
)

// prove looks whether To has what was read on From for every key of one table's part of the pass:
// the row as it was read, or no row. Triggers, rules and policies on To can change rows without an
// error and without changing how many were written.
func (j *job) prove(ctx context.Context, w *work) error {
	if w.staged > j.opts.Prove {
		return nil
	}
	sql := fmt.Sprintf("SELECT count(*) FROM %s s LEFT JOIN %s AS t ON %s WHERE NOT CASE WHEN s.present THEN t.tableoid IS NOT NULL AND %s ELSE t.tableoid IS NULL END",
		w.stage.name, relation(w.table), sameKey(w.table, "s"), w.stage.same)
	var differ int64
	if err := j.p.to.conn.QueryRow(ctx, sql).Scan(&differ); err != nil {
		return fmt.Errorf("comparing the changed rows of %s: %w", tableName(w.table), err)
	}
	if differ > 0 {
		return &engine.Error{
			Class: engine.ClassDifferences, Op: "comparing the changed rows of", Object: tableName(w.table),
			Err:  fmt.Errorf("%d of %d differ from the %s's right after they were written: %w", differ, w.staged, j.p.cfg.From.Side(), errChanged),
			Hint: fmt.Sprintf("Find what changes rows on the %s: a trigger that is ENABLE ALWAYS or REPLICA, a rule, or a policy.", j.p.cfg.To.Side()),
		}
	}
	j.res.Proved += w.staged
	return nil
}

var errChanged = errors.New("something there changes rows")

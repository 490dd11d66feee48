package pass

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
)

// prove looks whether To has what was read on From for every key of one table's part of the pass:
// the row as it was read, or no row. Triggers, rules and policies on To can change rows without an
// error and without changing how many were written.
func (j *job) prove(ctx context.Context, w *work, h how) error {
	if w.staged > j.opts.Prove {
		return nil
	}
	key := list(len(w.table.Key.Columns), func(i int) string { return fmt.Sprintf("s.k%d", i+1) })
	sql := fmt.Sprintf("SELECT count(*), coalesce((array_agg(ROW(%[3]s)::text ORDER BY ROW(%[3]s)::text))[1:%[4]d], '{}') FROM %[1]s s %[2]s WHERE NOT CASE WHEN s.present THEN t.tableoid IS NOT NULL AND %[5]s ELSE t.tableoid IS NULL END",
		w.stage.name, left(w.table, "s", h), key, mostKeys, w.stage.same)
	var differ int64
	var keys []string
	if err := j.p.to.conn.QueryRow(ctx, sql).Scan(&differ, &keys); err != nil {
		return fmt.Errorf("comparing the changed rows of %s: %w", tableName(w.table), err)
	}
	if differ > 0 {
		which := strings.Join(keys, ", ")
		if differ > int64(len(keys)) {
			which += ", ..."
		}
		return &engine.Error{
			Class: engine.ClassDifferences, Op: "comparing the changed rows of", Object: tableName(w.table),
			Err:  fmt.Errorf("%d of %d differ from the %s's right after they were written, %s: %w", differ, w.staged, j.p.cfg.From.Side(), which, errChanged),
			Hint: fmt.Sprintf("Find what changes rows on the %s: a trigger that is ENABLE ALWAYS or REPLICA, a rule, or a policy.", j.p.cfg.To.Side()),
		}
	}
	j.res.Proved += w.staged
	return nil
}

// mostKeys are named of rows that differ.
const mostKeys = 10

var errChanged = errors.New("something there changes rows")

package load

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// stage makes a temporary table for chunks of a table that has its keys already.
func (w *worker) stage(ctx context.Context, t scope.Table, bin bool) (write string, err error) {
	name := stageName(t)
	_, err = w.to.Exec(ctx, fmt.Sprintf("CREATE TEMPORARY TABLE IF NOT EXISTS load_%d ON COMMIT DELETE ROWS AS SELECT %s FROM ONLY %s WITH NO DATA",
		t.ID, strings.Join(columns(t), ", "), tableName(t)))
	if err != nil {
		return "", fmt.Errorf("making a stage for %s: %w", tableName(t), err)
	}
	return writeChunk(t, name, bin), nil
}

func stageName(t scope.Table) string { return fmt.Sprintf("pg_temp.load_%d", t.ID) }

// insertStaged leaves out rows that clash with what is there. Two rows clash over a key of the source only
// if the later one changed after the earlier one was read; then its key is in the delta and passes put
// it right. Rows that a key of the target alone refuses are in no delta: nobody would bring them.
func (w *worker) insertStaged(ctx context.Context, t scope.Table, staged int64) error {
	cols := strings.Join(columns(t), ", ")
	tag, err := w.to.Exec(ctx, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s ON CONFLICT DO NOTHING", tableName(t), cols, cols, stageName(t)))
	if err != nil {
		return fmt.Errorf("inserting a chunk of %s: %w", tableName(t), err)
	}
	if tag.RowsAffected() == staged || failpoint.Mutant("load.left_out") {
		return nil
	}
	keys, err := w.leftOut(ctx, t)
	if err != nil || len(keys) == 0 {
		return err
	}
	key, err := w.uncaptured(ctx, t, keys)
	if err != nil || key == nil {
		return err
	}
	if w.l.cfg.Check != nil { // what fired no trigger explains it too: then the table is loaded once more
		if why := w.l.cfg.Check(ctx, w.from, t); why != nil {
			return why
		}
	}
	return w.keptOut(ctx, t, key)
}

// leftOut gives the keys, as text, of staged rows that are not in the table as they were read.
func (w *worker) leftOut(ctx context.Context, t scope.Table) ([][]string, error) {
	there, staged := make([]string, 0, len(t.Columns)), make([]string, 0, len(t.Columns))
	for _, c := range columns(t) {
		there, staged = append(there, "t."+c), append(staged, "s."+c)
	}
	match, keys := make([]string, len(t.Key.Columns)), make([]string, len(t.Key.Columns))
	for i, k := range t.Key.Columns {
		column := pgx.Identifier{k.Name}.Sanitize()
		match[i] = fmt.Sprintf("t.%s %s %s", column, k.Operator, collated("s."+column, k))
		keys[i] = "s." + column + "::text"
	}
	rows, err := w.to.Query(ctx, fmt.Sprintf("SELECT ARRAY[%s] FROM %s AS s WHERE NOT EXISTS (SELECT FROM %s AS t WHERE %s AND ROW(%s)::record OPERATOR(pg_catalog.*=) ROW(%s)::record)",
		strings.Join(keys, ", "), stageName(t), relation(t), strings.Join(match, " AND "), strings.Join(there, ", "), strings.Join(staged, ", ")))
	if err != nil {
		return nil, fmt.Errorf("looking for rows of %s that were left out: %w", tableName(t), err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
	if err != nil {
		return nil, fmt.Errorf("looking for rows of %s that were left out: %w", tableName(t), err)
	}
	return out, nil
}

// uncaptured gives the first of some keys that is not in the delta. The read of the chunk has ended, so
// whatever it saw of other transactions is there.
func (w *worker) uncaptured(ctx context.Context, t scope.Table, keys [][]string) ([]string, error) {
	n := len(t.Key.Columns)
	args, lists, names, match := make([]any, n), make([]string, n), make([]string, n), make([]string, n)
	for i, k := range t.Key.Columns {
		values := make([]string, len(keys))
		for j := range keys {
			values[j] = keys[j][i]
		}
		args[i], lists[i], names[i] = values, fmt.Sprintf("$%d::text[]", i+1), fmt.Sprintf("k%d", i+1)
		match[i] = fmt.Sprintf("d.%s %s %s", names[i], k.Operator, collated("u."+names[i]+"::"+k.DeltaType, k))
	}
	var first int
	err := w.from.QueryRow(ctx, fmt.Sprintf("SELECT u.n FROM unnest(%s) WITH ORDINALITY AS u (%s, n) WHERE NOT EXISTS (SELECT FROM %s d WHERE d.rel = %d AND %s) ORDER BY u.n LIMIT 1",
		strings.Join(lists, ", "), strings.Join(names, ", "), pg.Name("pgrunbook", "delta_"+t.Key.Shape), t.ID, strings.Join(match, " AND ")), args...).Scan(&first)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for rows of %s that were left out: %w", tableName(t), err)
	}
	return keys[first-1], nil
}

func collated(expr string, k scope.KeyColumn) string {
	if k.Collation == "" {
		return expr
	}
	return "(" + expr + " COLLATE " + k.Collation + ")"
}

// keptOut inserts a row that was left out once more, so that the server says why. The transaction is not
// committed after that.
func (w *worker) keptOut(ctx context.Context, t scope.Table, key []string) error {
	match, args := make([]string, len(key)), make([]any, len(key))
	for i, k := range t.Key.Columns {
		match[i], args[i] = fmt.Sprintf("s.%s::text = $%d", pgx.Identifier{k.Name}.Sanitize(), i+1), key[i]
	}
	cols := strings.Join(columns(t), ", ")
	_, err := w.to.Exec(ctx, fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s s WHERE %s", tableName(t), cols, cols, stageName(t), strings.Join(match, " AND ")), args...)
	if err == nil {
		err = errors.New("rows were read but not written: a trigger or a rule keeps them back")
	}
	if refused := scope.Refused(err, "loading", t, w.l.cfg.To.Side(), w.l.cfg.From.Side()); refused != nil {
		return refused
	}
	return &engine.Error{
		Op: "loading", Object: tableName(t), Err: err,
		Hint: fmt.Sprintf("Find out what keeps rows out of it on the %s: a trigger, a rule, or somebody else who writes there.", w.l.cfg.To.Side()),
	}
}

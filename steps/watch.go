package steps

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// watchSQL sums what decides which rows there are and which are allowed: tables, sequences and
// indexes by their oids, labels of enums, constraints, extensions and the columns of tables that no
// capture follows ($1, quoted names) by oid and xmin. Temporary tables and ours are left out, as they
// come and go. Each catalog is read once.
const watchSQL = `
WITH ns AS (SELECT oid FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'pgrunbook')),
  part (i, v) AS (
    SELECT 1, ARRAY[count(*), sum(oid::int8)] FROM ns
    UNION ALL SELECT 2, ARRAY[count(*), sum(c.oid::int8)] FROM pg_class c WHERE c.relkind IN ('r', 'p', 'S', 'i', 'I') AND c.relnamespace IN (SELECT oid FROM ns)
    UNION ALL SELECT 3, ARRAY[count(*), sum(oid::int8 + xmin::text::int8)] FROM pg_enum
    UNION ALL SELECT 4, ARRAY[count(*), sum(oid::int8 + xmin::text::int8)] FROM pg_constraint WHERE connamespace IN (SELECT oid FROM ns)
    UNION ALL SELECT 5, ARRAY[count(*), sum(xmin::text::int8)] FROM pg_attribute WHERE attrelid IN (SELECT to_regclass(name) FROM unnest($1::text[]) name)
    UNION ALL SELECT 6, ARRAY[count(*), sum(oid::int8 + xmin::text::int8)] FROM pg_extension)
SELECT array_agg(coalesce(u.v, 0)::int8 ORDER BY part.i, u.n) FROM part CROSS JOIN LATERAL unnest(part.v) WITH ORDINALITY AS u (v, n)`

// watch remembers the source's definitions from the last time at which they were compared with the
// target's.
type watch struct {
	mu    sync.Mutex
	sums  []int64
	list  []watched // what the sums are of
	items map[string]string
	held  bool // writers are: nothing that takes long
	told  map[string]bool
}

func readSums(ctx context.Context, env *Env, conn *pgx.Conn) ([]int64, error) {
	var sums []int64
	if err := conn.QueryRow(ctx, watchSQL, unfollowed(env)).Scan(&sums); err != nil {
		return nil, fmt.Errorf("looking for new definitions: %w", err)
	}
	return sums, nil
}

// unfollowed are the tables in scope that no capture follows.
func unfollowed(env *Env) []string {
	names := []string{}
	for _, t := range env.Scope.Tables {
		if t.Data != scope.Live {
			names = append(names, pg.Name(t.Schema, t.Name.Name))
		}
	}
	return names
}

// compared records what was compared, with sums and a list from before.
func (w *watch) compared(sums []int64, list []watched, items map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sums, w.list, w.items = sums, list, items
}

// hold says whether writers are held. The definitions were compared just before, when the final pass began.
func (w *watch) hold(held bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = held
}

// last gives what was compared; nil is nothing yet.
func (w *watch) last() (sums []int64, items map[string]string, held bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sums, w.items, w.held
}

// tellTemporary names, once a process, what is left out of the source's definitions because it goes with a session.
func tellTemporary(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	list, err := dump.Temporary(ctx, sides.source, env.Scope)
	if err != nil {
		return err
	}
	for _, text := range list {
		if env.watch.once(text) {
			cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: text})
		}
	}
	return nil
}

// once is true for a text that was not told before.
func (w *watch) once(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told[text] {
		return false
	}
	if w.told == nil {
		w.told = map[string]bool{}
	}
	w.told[text] = true
	return true
}

// errRedefined says that definitions of the source changed which no captured table shows.
type errRedefined struct{ what string }

func (e *errRedefined) Error() string {
	return e.what + " on the source since its definitions were compared"
}

// checkDefinitions looks whether something that concerns rows changed on the source since its
// definitions were compared. What an application makes and drops outside of the scope does not
// count, nor what captured tables show themselves.
func checkDefinitions(ctx context.Context, env *Env, conn *pgx.Conn) error {
	was, items, held := env.watch.last()
	if was == nil {
		return nil
	}
	sums, err := readSums(ctx, env, conn)
	if err != nil || slices.Equal(was, sums) {
		return err
	}
	if held {
		return checkHeld(ctx, env, conn, sums)
	}
	list, err := readWatched(ctx, env, conn)
	if err != nil {
		return err
	}
	fresh, _, err := scope.Resolve(ctx, scope.Input{Source: conn, Runbook: env.Runbook})
	if err != nil {
		return err
	}
	now, err := dump.Inventory(ctx, conn, fresh)
	if err != nil {
		return sided(engine.Source, err)
	}
	if what := redefined(env, fresh.Tables, items, now); what != "" {
		return &errRedefined{what}
	}
	env.watch.compared(sums, list, dump.Fingerprint(now))
	return nil
}

// redefined names the first definition that is new, gone or another one.
func redefined(env *Env, fresh []scope.Table, was map[string]string, now map[string]dump.Item) string {
	for _, id := range slices.Sorted(maps.Keys(now)) {
		i := now[id]
		if dump.Unchanged(was, i) || ownWords(i.Kind) || i.Kind == dump.ItemComment {
			continue
		}
		if t := owningTable(env, fresh, i.Name); t != nil && t.Data == scope.Live && (i.Kind == dump.ItemTable || i.Kind == dump.ItemPartition) {
			continue
		}
		if was[id] == "" {
			return id + " was made"
		}
		return id + " changed"
	}
	for _, id := range slices.Sorted(maps.Keys(was)) {
		if _, there := now[id]; !there && !ownWords(dump.ItemKind(strings.Fields(id)[0])) && !strings.HasPrefix(id, string(dump.ItemComment)) {
			return id + " was dropped"
		}
	}
	return ""
}

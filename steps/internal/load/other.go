package load

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// unloaded lists the tables of a method that are not loaded yet, in the order of their ids, and all states.
func (l *Loader) unloaded(ctx context.Context, m scope.Method) ([]scope.Table, map[int32]journal.TableState, error) {
	states, err := l.cfg.Journal.TableStates(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	var list []scope.Table
	for _, id := range slices.Sorted(maps.Keys(l.tables)) {
		if t := l.tables[id]; t.Method == m && states[id].State == journal.Loading {
			list = append(list, t)
		}
	}
	progress, err := l.cfg.Journal.Progress(ctx, l.stepOf(scope.Table{Method: m}))
	if err != nil {
		return nil, nil, err
	}
	for _, p := range progress {
		if p.DoneItems == p.Items {
			list = slices.DeleteFunc(list, func(t scope.Table) bool { return t.ID == p.Table })
		}
	}
	return list, states, nil
}

// bulk loads tables by pg_dump and pg_restore. They know no chunks: what was not marked when a
// runner died is emptied and done again.
func (l *Loader) bulk(ctx context.Context) error {
	tables, states, err := l.unloaded(ctx, scope.PgDump)
	if err != nil {
		return err
	}
	if len(tables) == 0 {
		return nil
	}
	if l.cfg.Bulk == nil {
		return errors.New("tables of method pg_dump cannot be loaded here")
	}
	s, err := l.connect(ctx, "load")
	if err != nil {
		return err
	}
	defer s.close()
	before := map[int32]map[string]int64{}
	for _, t := range tables {
		if err := l.explained(ctx, s, t); err != nil { // what a dump would have that the target has not
			return err
		}
		if before[t.ID], err = capture.FileNodes(ctx, s.from, t); err != nil {
			return err
		}
		if err := pgx.BeginFunc(ctx, s.to, func(tx pgx.Tx) error {
			if err := journal.FenceRows(ctx, tx, l.cfg.Journal.ID, l.cfg.Journal.Epoch, engine.Target); err != nil {
				return err
			}
			return empty(ctx, tx, t)
		}); err != nil {
			return fmt.Errorf("emptying %s: %w", tableName(t), err)
		}
		l.report.stage(t, Copying)
	}
	failpoint.Hit("load.cleared")
	if err := l.cfg.Bulk(ctx, tables); err != nil {
		for _, t := range tables {
			if why := l.explained(ctx, s, t); why != nil {
				return why
			}
		}
		return err
	}
	failpoint.Hit("load.dumped")
	again := false
	for _, t := range tables {
		now, err := capture.FileNodes(ctx, s.from, t)
		if err != nil {
			return err
		}
		if changed(before[t.ID], now) && !failpoint.Mutant("load.no_filenode") {
			again = true
			if err := l.rewritten(ctx, t, states[t.ID].Generation); err != nil {
				return err
			}
			continue
		}
		if err := l.markWhole(ctx, s, t); err != nil {
			return err
		}
		failpoint.Hit("load.whole")
	}
	if again {
		return l.bulk(ctx)
	}
	return nil
}

// changed compares file nodes from before a dump with those after it: pg_dump takes its snapshot before
// its locks, and reads nothing of a table that was rewritten in between. Partitions that are not in both are
// the fingerprint's affair.
func changed(before, now map[string]int64) bool {
	for name, node := range before {
		if is, ok := now[name]; ok && is != node {
			return true
		}
	}
	return false
}

func (l *Loader) explained(ctx context.Context, s sides, t scope.Table) error {
	if l.cfg.Explain == nil {
		return nil
	}
	return l.cfg.Explain(ctx, s.from, t)
}

// markWhole marks the one item of a table that was loaded by other means.
func (l *Loader) markWhole(ctx context.Context, s sides, t scope.Table) error {
	if err := capture.Heartbeat(ctx, s.from); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, s.to, func(tx pgx.Tx) error {
		it, ok, err := l.cfg.Journal.ClaimOf(ctx, tx, l.stepOf(t), t.ID)
		if err != nil || !ok {
			return err
		}
		return l.cfg.Journal.Done(ctx, tx, l.stepOf(t), it, t.Rows, it.Size)
	})
}

// external goes on with tables that somebody else loaded, once they are said to be there. They
// must have been read after capture was installed; verification by hash proves the result.
func (l *Loader) external(ctx context.Context) error {
	tables, states, err := l.unloaded(ctx, scope.External)
	if err != nil {
		return err
	}
	all := slices.DeleteFunc(slices.Collect(maps.Values(l.tables)), func(t scope.Table) bool {
		return t.Method != scope.External || states[t.ID].State == journal.Following
	})
	if len(all) == 0 {
		return nil
	}
	if l.cfg.Loaded != nil && len(tables) > 0 {
		if err := l.cfg.Loaded(ctx, tables); err != nil {
			return err
		}
	}
	s, err := l.connect(ctx, "load")
	if err != nil {
		return err
	}
	defer s.close()
	for _, t := range tables {
		if err := l.markWhole(ctx, s, t); err != nil {
			return err
		}
		failpoint.Hit("load.taken")
	}
	for _, t := range all {
		if err := l.finish(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

package pass

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const (
	// emptiedStages are made ON COMMIT DELETE ROWS. Every commit that saw any temporary table empties
	// all of them, used or not, and locks each with its TOAST table: they are few, for the tables that
	// change all the time. Others are emptied after they were used.
	emptiedStages = 8
	// deletedRows and deletedBytes of a stage are emptied by DELETE, which leaves them dead in it; more by
	// TRUNCATE, which costs new files and dead rows of the catalog, some milliseconds for each stage.
	deletedRows, deletedBytes = 1000, 1 << 20
	// maxStages are kept from one pass to the next. Where a session dies, the server drops all that are
	// left in one transaction, which takes about six locks for each.
	maxStages = 500
	// stageBatch of them are made, truncated or dropped in one transaction, for the same locks.
	stageBatch = 100
)

// makeStages sees to it that each of the tables has an empty stage. It is called outside a transaction,
// and while no table on From is locked, but for a few stages: a thousand take seconds.
func (s *toSession) makeStages(ctx context.Context, tables []scope.Table, fromVersion int) error {
	s.round++
	var missing []scope.Table
	var full []int32
	for _, t := range tables {
		st := s.stages[t.ID]
		if st == nil {
			missing = append(missing, t)
			continue
		}
		st.used = s.round
		if st.rows {
			full = append(full, t.ID)
		}
	}
	if err := s.empty(ctx, full); err != nil {
		return err
	}
	for batch := range slices.Chunk(missing, stageBatch) {
		if err := s.makeBatch(ctx, batch, fromVersion); err != nil {
			abandon(ctx, s.conn)
			return err
		}
	}
	return nil
}

func (s *toSession) makeBatch(ctx context.Context, tables []scope.Table, fromVersion int) error {
	emptied := 0
	for _, st := range s.stages {
		if st.emptied {
			emptied++
		}
	}
	made := map[int32]*stage{}
	if err := run(ctx, s.conn, "BEGIN"); err != nil {
		return fmt.Errorf("making stages: %w", err)
	}
	for _, t := range tables {
		st, create, err := s.define(ctx, t, fromVersion, emptied < emptiedStages && !failpoint.Mutant("pass.commit_each"))
		if err != nil {
			return err
		}
		if err := run(ctx, s.conn, create); err != nil {
			return fmt.Errorf("making the stage of %s: %w", tableName(t), err)
		}
		if st.emptied {
			emptied++
		}
		st.used = s.round
		made[t.ID] = st
	}
	if err := run(ctx, s.conn, "COMMIT"); err != nil {
		return fmt.Errorf("making stages: %w", err)
	}
	maps.Copy(s.stages, made)
	return nil
}

// takeStages gives each table of the job its stage. They are there already, but for tables that changed
// in the last moment where all are locked: few, or in a freeze, where nobody waits for the locks.
func (j *job) takeStages(ctx context.Context) error {
	to := j.p.to
	tables := make([]scope.Table, len(j.work))
	for i := range j.work {
		tables[i] = j.work[i].table
	}
	if err := to.makeStages(ctx, tables, j.from.version); err != nil {
		return err
	}
	for i := range j.work {
		st := to.stages[j.work[i].table.ID]
		if !st.emptied { // before there can be any: they must not be applied a second time
			st.rows = true
			st.dead += j.work[i].backlog.keys
		}
		j.work[i].stage = st
	}
	return nil
}

// tidy empties what the last pass left, which a failed one may have left as well, and keeps so many stages
// at most.
func (s *toSession) tidy(ctx context.Context, most int) error {
	if err := s.shed(ctx, most); err != nil {
		return err
	}
	var full []int32
	for id, st := range s.stages {
		if st.rows {
			full = append(full, id)
		}
	}
	return s.empty(ctx, full)
}

func (s *toSession) empty(ctx context.Context, ids []int32) error {
	for batch := range slices.Chunk(ids, stageBatch) {
		var truncated, sql []string
		for _, id := range batch {
			if st := s.stages[id]; st.heavy() {
				truncated = append(truncated, st.name)
			} else {
				sql = append(sql, "DELETE FROM "+st.name)
			}
		}
		if len(truncated) > 0 {
			sql = append(sql, "TRUNCATE "+strings.Join(truncated, ", "))
		}
		if err := run(ctx, s.conn, strings.Join(sql, "; ")); err != nil {
			return fmt.Errorf("emptying stages: %w", err)
		}
		for _, id := range batch {
			st := s.stages[id]
			if st.rows = false; st.heavy() {
				st.dead, st.deadBytes = 0, 0
			}
		}
	}
	return nil
}

// heavy reports whether the dead rows of a stage are worth a new file.
func (st *stage) heavy() bool { return st.dead > deletedRows || st.deadBytes > deletedBytes }

// shed drops the stages that were used longest ago, until so many are left.
func (s *toSession) shed(ctx context.Context, most int) error {
	if len(s.stages) <= most {
		return nil
	}
	ids := slices.SortedFunc(maps.Keys(s.stages), func(a, b int32) int {
		return cmp.Or(cmp.Compare(s.stages[a].used, s.stages[b].used), cmp.Compare(b, a))
	})
	for batch := range slices.Chunk(ids[:len(ids)-most], stageBatch) {
		var names []string
		for _, id := range batch {
			st := s.stages[id]
			names = append(names, st.name)
			if st.row != "" {
				names = append(names, st.row)
			}
		}
		if err := run(ctx, s.conn, "DROP TABLE "+strings.Join(names, ", ")); err != nil {
			return fmt.Errorf("dropping stages: %w", err)
		}
		for _, id := range batch {
			delete(s.stages, id)
		}
	}
	return nil
}

// tablesOf are those of the ids.
func tablesOf(tables map[int32]scope.Table, ids []int32) []scope.Table {
	some := make([]scope.Table, 0, len(ids))
	for _, id := range ids {
		some = append(some, tables[id])
	}
	return some
}

package pass

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// backlog is what one table's capture holds.
type backlog struct {
	keys  int64 // rows in the delta, or row images
	marks []mark
}

// mark is one captured TRUNCATE.
type mark struct {
	member string // quoted and qualified; empty is the table itself
	n      int64
}

const marksSQL = "SELECT rel, coalesce(member, ''), n FROM pgrunbook.truncated ORDER BY n"

// pending is one look at all captures.
type pending struct {
	snapshot string // text of the snapshot
	xmin     uint64
	at       time.Time // source clock, not after the snapshot
	tables   map[int32]*backlog
}

func (p pending) ids() []int32 { return slices.Sorted(maps.Keys(p.tables)) }

func (p pending) rows() (n int64) {
	for _, b := range p.tables {
		n += b.keys
	}
	return n
}

func (p pending) at0(id int32) *backlog {
	b := p.tables[id]
	if b == nil {
		b = &backlog{}
		p.tables[id] = b
	}
	return b
}

// look counts what is captured for the tables. In a REPEATABLE READ transaction its first
// statement takes the snapshot.
func (s *fromSession) look(ctx context.Context, tables map[int32]scope.Table) (pending, error) {
	d := dialectOf(s.version)
	found := pending{tables: map[int32]*backlog{}}
	var batch pgx.Batch
	batch.Queue("SELECT " + d.current + "::text, statement_timestamp()").QueryRow(func(row pgx.Row) error {
		return row.Scan(&found.snapshot, &found.at)
	})
	if sql, args := s.countSQL(d, tables); sql != "" {
		batch.Queue(sql, args...).Query(func(rows pgx.Rows) error {
			var id int32
			var n int64
			_, err := pgx.ForEachRow(rows, []any{&id, &n}, func() error {
				found.at0(id).keys = n
				return nil
			})
			return err
		})
	}
	batch.Queue(marksSQL).Query(func(rows pgx.Rows) error {
		var id int32
		var m mark
		_, err := pgx.ForEachRow(rows, []any{&id, &m.member, &m.n}, func() error {
			if _, ok := tables[id]; ok {
				found.at0(id).marks = append(found.at0(id).marks, m)
			}
			return nil
		})
		return err
	})
	if err := s.conn.SendBatch(ctx, &batch).Close(); err != nil {
		return pending{}, fmt.Errorf("looking for captured changes: %w", err)
	}
	xmin, _, _ := strings.Cut(found.snapshot, ":")
	var err error
	if found.xmin, err = strconv.ParseUint(xmin, 10, 64); err != nil {
		return pending{}, fmt.Errorf("reading the snapshot %q: %w", found.snapshot, err)
	}
	return found, nil
}

// countSQL counts by one index probe a table: a plan of its own choice could read a whole delta
// once for every table.
func (s *fromSession) countSQL(d dialect, tables map[int32]scope.Table) (string, []any) {
	shapes := map[string][]scope.Table{}
	var parts []string
	var args []any
	for _, id := range slices.Sorted(maps.Keys(tables)) {
		t := tables[id]
		if keyed(t) {
			shapes[deltaTable(t)] = append(shapes[deltaTable(t)], t)
			continue
		}
		parts = append(parts, fmt.Sprintf("SELECT %d, n FROM (SELECT count(*) AS n FROM %s) c WHERE n > 0", id, imageTable(t)))
	}
	for _, delta := range slices.Sorted(maps.Keys(shapes)) {
		ids, lows := make([]int32, 0, len(shapes[delta])), make([]string, 0, len(shapes[delta]))
		for _, t := range shapes[delta] {
			ids, lows = append(ids, t.ID), append(lows, strconv.FormatUint(s.low[t.ID], 10))
		}
		args = append(args, ids, lows)
		parts = append(parts, fmt.Sprintf("SELECT u.id, c.n FROM unnest($%d::int4[], $%d::text[]) AS u (id, low) CROSS JOIN LATERAL"+
			" (SELECT count(*) AS n FROM %s d WHERE d.rel = u.id AND d.x >= u.low::%s) c WHERE c.n > 0", len(args)-1, len(args), delta, d.xid))
	}
	return strings.Join(parts, " UNION ALL "), args
}

// cutoff gives the xid of the n-th oldest row of a table's delta; false when there are fewer.
func (s *fromSession) cutoff(ctx context.Context, t scope.Table, n int64) (string, bool, error) {
	d := dialectOf(s.version)
	q := fmt.Sprintf("SELECT d.x::text FROM %s d WHERE %s ORDER BY d.x OFFSET %d LIMIT 1",
		deltaTable(t), span{low: s.low[t.ID]}.where(d, t.ID), n-1)
	rows, err := s.conn.Query(ctx, q)
	if err != nil {
		return "", false, fmt.Errorf("cutting the delta of %s: %w", t.Display(), err)
	}
	cuts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", false, fmt.Errorf("cutting the delta of %s: %w", t.Display(), err)
	}
	if len(cuts) == 0 {
		return "", false, nil
	}
	return cuts[0], true, nil
}

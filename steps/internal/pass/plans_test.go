package pass

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// rowsRead is how many rows a transaction has read of all tables, temporary ones included.
const rowsRead = `SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::int8 FROM pg_stat_xact_user_tables WHERE schemaname <> 'pgrunbook'`

// Statistics that are from when a table was empty, and no autovacuum: its rows are taken for one. A pass still looks its keys up
// one by one, or reads the whole table once where most of it changed, on both sides.
func TestPassReadsNoMoreThanItHasTo(t *testing.T) {
	const rows = 12000
	for _, majors := range [][2]int{{10, 10}, {15, 18}, {18, 15}} {
		for _, tt := range []struct {
			name   string
			kind   string // of table
			shape  func(*scope.Table)
			change string
			most   int64 // rows that may be read on each side
		}{
			{
				"a few keys", "(id int8, v text, PRIMARY KEY (id)) WITH (autovacuum_enabled = off)", nil,
				"DELETE FROM t WHERE id <= 20; UPDATE t SET v = 'c' WHERE id BETWEEN 21 AND 40", 1000,
			},
			{
				"keys of two columns", "(a int8, id int8, v text, PRIMARY KEY (a, id)) WITH (autovacuum_enabled = off); CREATE INDEX ON t (id)", nil,
				"DELETE FROM t WHERE id <= 20; UPDATE t SET v = 'c' WHERE id BETWEEN 21 AND 40", 1000,
			},
			{
				"partitions", "(id int8, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (1) TO (6000) WITH (autovacuum_enabled = off); CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (6000) TO (20000) WITH (autovacuum_enabled = off)", nil,
				"DELETE FROM t WHERE id <= 20; UPDATE t SET v = 'c' WHERE id BETWEEN 21 AND 40", 1000,
			},
			{
				"most of the table", "(id int8, v text, PRIMARY KEY (id)) WITH (autovacuum_enabled = off)", nil,
				"DELETE FROM t WHERE id <= 5000; UPDATE t SET v = 'c'", 20 * rows,
			},
			{
				"a table without a key", "(id int8, v text) WITH (autovacuum_enabled = off)", func(t *scope.Table) { t.Identity = scope.FullRow },
				"DELETE FROM t WHERE id <= 5000; UPDATE t SET v = 'c' WHERE id > 10000", 20 * rows,
			},
		} {
			if majors[0] < 11 && tt.name == "partitions" {
				continue // they have no key before 11
			}
			t.Run(fmt.Sprintf("%d to %d, %s", majors[0], majors[1], tt.name), func(t *testing.T) {
				var shapes []shape
				if tt.shape != nil {
					shapes = append(shapes, tt.shape)
				}
				p := pairOf(t, testpg.NewDB(t, testpg.Shared(t, majors[0])), testpg.NewDB(t, testpg.Shared(t, majors[1])), "CREATE TABLE t "+tt.kind, shapes...)
				fill := fmt.Sprintf("INSERT INTO t (id, v) SELECT g, 'a' FROM generate_series(1, %d) g", rows)
				if tt.name == "keys of two columns" {
					fill = fmt.Sprintf("INSERT INTO t SELECT g %% 3, g, 'a' FROM generate_series(1, %d) g", rows)
				}
				for _, url := range []string{p.source, p.target} {
					p.exec(url, "SET pgrunbook.mark = 'm1'; "+fill+"; DELETE FROM t; ANALYZE t")
					if n := p.one(url, "SELECT bool_and(reltuples = 0 AND relpages > 0)::text FROM pg_class WHERE relname LIKE 't%' AND relkind = 'r' AND relnamespace = 'public'::regnamespace"); n != "true" {
						t.Fatal("the table is not taken for an empty one")
					}
					p.exec(url, "SET pgrunbook.mark = 'm1'; "+fill)
				}
				p.app(tt.change)
				var source, target int64
				_, err := p.passer.Exact(p.ctx, Options{Prove: 2 * rows, InTarget: func(ctx context.Context, tx pgx.Tx, from *pgx.Conn) error {
					if err := tx.QueryRow(ctx, rowsRead).Scan(&target); err != nil {
						return err
					}
					if tt.most > 1000 {
						p.plansOfWholes(tx)
					}
					return from.QueryRow(ctx, rowsRead).Scan(&source)
				}})
				if err != nil {
					t.Fatal(err)
				}
				if source > tt.most || target > tt.most || target == 0 {
					t.Errorf("the pass read %d rows on the source and %d on the target, want %d at most", source, target, tt.most)
				}
				p.equal()
			})
		}
	}
}

// plansOfWholes looks at the plans of statements for most of a table, in the pass's transaction: joins of what they make on their way
// are in no statistics.
func (p *pair) plansOfWholes(tx pgx.Tx) {
	p.t.Helper()
	table, to := p.tables[0], p.passer.to
	st := to.stages[table.ID]
	statements := []string{deleteImages(table, st), missingImages(table, st)}
	if keyed(table) {
		statements = []string{deleteKeys(table, st, true, join, to.version), "SELECT FROM " + st.name + " s " + left(table, "s", join)}
	}
	err := join.on(p.ctx, tx.Conn(), func() error {
		for _, sql := range statements {
			rows, err := tx.Query(p.ctx, "EXPLAIN "+sql, pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				return err
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				return err
			}
			plan := strings.Join(lines, "\n")
			if strings.Contains(plan, "Nested Loop") || strings.Contains(plan, "Hash Cond: (t.tableoid = ") {
				p.t.Errorf("%s\n%s", sql, plan)
			}
		}
		return nil
	})
	if err != nil {
		p.t.Error(err)
	}
}

package pass

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// truncateAbove is the size from which emptying a table by DELETE costs more than the lock that
// TRUNCATE takes.
const truncateAbove = 64 << 20

// applyMarks empties what the application truncated. Rows that came after the TRUNCATE have their
// keys in the same backlog or in an earlier pass that took the mark with it.
func (j *job) applyMarks(ctx context.Context) error {
	seen := map[string]bool{}
	var empty []string
	for _, w := range j.work {
		if !keyed(w.table) {
			if w.images.truncated {
				empty = append(empty, relation(w.table))
			}
			continue
		}
		gone, err := j.strangers(ctx, &w)
		if err != nil {
			return err
		}
		for _, m := range w.backlog.marks {
			name := marked(w.table, m)
			if !seen[name] && !gone[m.member] {
				seen[name] = true
				empty = append(empty, name)
			}
		}
	}
	return j.empty(ctx, empty)
}

// strangersSQL gives those of $2 that are not below table $1.
const strangersSQL = `
SELECT m FROM unnest($2::text[]) m
 WHERE NOT EXISTS (
   WITH RECURSIVE up (oid) AS (SELECT to_regclass(m)::oid UNION SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid)
   SELECT FROM up WHERE oid = to_regclass($1))`

// strangers gives the marked members of w's tree that are no members of it on To. A partition that was
// detached keeps its triggers for a while, and its marks may wait long: by now it may be a table of its
// own, loaded since, or gone. What left the tree makes its table be loaded again.
func (j *job) strangers(ctx context.Context, w *work) (map[string]bool, error) {
	var members []string
	for _, m := range w.backlog.marks {
		if marked(w.table, m) != relation(w.table) {
			members = append(members, m.member)
		}
	}
	if len(members) == 0 {
		return nil, nil
	}
	rows, err := j.tx.Query(ctx, strangersSQL, tableName(w.table), members)
	if err != nil {
		return nil, fmt.Errorf("looking for the partitions of %s: %w", tableName(w.table), err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("looking for the partitions of %s: %w", tableName(w.table), err)
	}
	gone := map[string]bool{}
	for _, name := range names {
		gone[name] = true
	}
	return gone, nil
}

// marked names what a mark empties. The members of a tree log their own marks; a mark of the root
// empties all of them.
func marked(t scope.Table, m mark) string {
	if m.member == "" || m.member == tableName(t) {
		return relation(t)
	}
	return "ONLY " + m.member
}

// empty deletes every row of the relations. Large ones are truncated, all in one statement and
// never CASCADE; where a foreign key or a reader is in the way, they are deleted from.
func (j *job) empty(ctx context.Context, names []string) error {
	var truncate []string
	for _, name := range names {
		bare := strings.TrimPrefix(name, "ONLY ")
		var size int64
		if err := j.tx.QueryRow(ctx, "SELECT coalesce(pg_relation_size(to_regclass($1)), 0)", bare).Scan(&size); err != nil {
			return fmt.Errorf("looking at %s: %w", bare, err)
		}
		if size > truncateAbove {
			truncate = append(truncate, name)
		}
	}
	if len(truncate) > 0 {
		err := run(ctx, j.p.to.conn, "SAVEPOINT a; SET LOCAL lock_timeout = '500ms'; TRUNCATE "+strings.Join(truncate, ", ")+"; SET LOCAL lock_timeout = 0; RELEASE SAVEPOINT a")
		switch pg.SQLState(err) {
		case "0A000", "55P03":
			if err := run(ctx, j.p.to.conn, "ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a"); err != nil {
				return err
			}
		default:
			if err != nil {
				return fmt.Errorf("truncating on the %s: %w", j.p.cfg.To.Side(), err)
			}
		}
	}
	for _, name := range names {
		n, err := affected(ctx, j.p.to.conn, "DELETE FROM "+name)
		if err != nil {
			return fmt.Errorf("applying a TRUNCATE of %s: %w", name, err)
		}
		j.res.Deleted += n[0]
	}
	return nil
}

package pass

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
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
	if j.astray != nil {
		return nil
	}
	return j.empty(ctx, empty)
}

// position is where a side has a partition, and how it is cut out of its table's rows there.
type position struct {
	at string
	// scattered says that its bounds do not tell its rows: they are hashed by the oids of an enum's labels, which each
	// database has its own of.
	scattered bool
}

// placesSQL gives those of $2 that are below table $1. Which names a server quotes depends on its major. The hash of a
// text is that of its bytes.
const placesSQL = `
WITH RECURSIVE up (member, oid, level) AS (
  SELECT m, to_regclass(m)::oid, 0 FROM unnest($2::text[]) m
  UNION ALL SELECT up.member, i.inhparent, up.level + 1 FROM up JOIN pg_inherits i ON i.inhrelid = up.oid WHERE up.oid <> to_regclass($1)),
cut (oid, scattered, encoding) AS (
  SELECT k.partrelid, EXISTS (SELECT FROM pg_opclass o WHERE o.oid = ANY (k.partclass::oid[]) AND o.opcintype = ANY ('{anyenum,anyarray,record,anyrange}'::regtype[])),
         CASE WHEN EXISTS (SELECT FROM unnest(k.partcollation::oid[]) c WHERE c <> 0) THEN 'IN ' || getdatabaseencoding() END
    FROM pg_partitioned_table k WHERE k.partstrat = 'h')
SELECT up.member, string_agg(concat_ws(' ', n.nspname || '.' || c.relname, CASE WHEN up.oid <> to_regclass($1) THEN pg_get_expr(c.relpartbound, c.oid) END,
         'PARTITION BY ' || replace(pg_get_partkeydef(c.oid), '"', ''), cut.encoding), ', OF ' ORDER BY up.level),
       coalesce(bool_or(cut.scattered), false)
  FROM up JOIN pg_class c ON c.oid = up.oid JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN cut ON cut.oid = up.oid
 GROUP BY up.member HAVING bool_or(up.oid = to_regclass($1))`

// places gives where a side has the marked members of w's tree. Those that are no members there are left out.
func places(ctx context.Context, conn *pgx.Conn, w *work) (map[string]position, error) {
	var members []string
	for _, m := range w.backlog.marks {
		if marked(w.table, m) == relation(w.table) {
			return nil, nil // all of them are emptied with their root
		}
		if !slices.Contains(members, m.member) {
			members = append(members, m.member)
		}
	}
	if len(members) == 0 {
		return nil, nil
	}
	rows, err := conn.Query(ctx, placesSQL, tableName(w.table), members)
	if err != nil {
		return nil, fmt.Errorf("looking for the partitions of %s: %w", tableName(w.table), err)
	}
	list, member, p := map[string]position{}, "", position{}
	_, err = pgx.ForEachRow(rows, []any{&member, &p.at, &p.scattered}, func() error { list[member] = p; return nil })
	if err != nil {
		return nil, fmt.Errorf("looking for the partitions of %s: %w", tableName(w.table), err)
	}
	return list, nil
}

// strangers gives the marked members of w's tree that are no members of it on either side. A partition that was
// detached keeps its triggers for a while, and its marks may wait long: by now it may be a table of its
// own, loaded since, or gone. What left the tree makes its table be loaded again. One that From has where To has none,
// or another one, is not skipped: nothing else tells which rows went. A mark of the root is one of each of them, and
// theirs say no more: rows that came after it have their keys in the delta.
func (j *job) strangers(ctx context.Context, w *work) (map[string]bool, error) {
	there, err := places(ctx, j.p.to.conn, w)
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	root := slices.ContainsFunc(w.backlog.marks, func(m mark) bool { return marked(w.table, m) == relation(w.table) })
	for _, m := range w.backlog.marks {
		from, to := w.places[m.member], there[m.member]
		switch {
		case root:
			gone[m.member] = marked(w.table, m) != relation(w.table)
		case from == to && to.at != "" && !to.scattered:
		case from.at == "":
			gone[m.member] = to.at == ""
		default:
			j.astray = j.strayed(w.table, m.member, from, to)
		}
	}
	return gone, nil
}

// strayed is the error of a mark whose rows To holds elsewhere.
func (j *job) strayed(t scope.Table, member string, from, to position) error {
	here, there := j.p.cfg.From.Side(), j.p.cfg.To.Side()
	if from == to {
		return hashedByLabel(t, member, engine.Side(here))
	}
	why := "which has no such partition"
	if to.at != "" {
		why = fmt.Sprintf("where it is %s; on the %s it is %s", to.at, here, from.at)
	}
	return &engine.Error{
		Op: "following", Object: tableName(t), Hint: fmt.Sprintf("Make the partitions of %s on the %s like the %s's, then run the same command again.", tableName(t), there, here),
		Err: &UnfitError{Table: t, Err: fmt.Errorf("its partition %s was truncated on the %s, and nothing tells these rows on the %s, %s", member, here, there, why)},
	}
}

// orAstray gives a mark's error after those of what was done beside it: a change that the fingerprint shows is its reason.
func (j *job) orAstray(err error) error {
	if err == nil {
		return j.astray
	}
	return err
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

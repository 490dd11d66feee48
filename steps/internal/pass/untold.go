package pass

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// wholeAgain leads on from what no pass back can tell, where no table is loaded again: a mark of the whole table comes
// before its rows' inserts, and says more than what it follows.
const wholeAgain = "Put its rows aside, TRUNCATE the whole table and insert them again, in one transaction: then all of it is carried. Or stay on the target: pgrunbook finish"

// Untold gives the error of the first table of which something waits on from that no pass away from it can apply: a pass fails
// with the same one. It is nil where all can be. It reads all images of tables without a key.
func Untold(ctx context.Context, conn *pgx.Conn, from engine.Side, tables []scope.Table) error {
	keys := map[int32]scope.Table{}
	for _, t := range tables {
		if keyed(t) {
			keys[t.ID] = t
		} else if t.Identity == scope.AppendOnly || t.Kind == scope.Partitioned {
			if _, err := fitImages(ctx, conn, t, "true", from); err != nil {
				return err
			}
		}
	}
	marks, err := readMarks(ctx, conn)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if _, ok := keys[t.ID]; !ok || len(marks[t.ID]) == 0 {
			continue
		}
		w := work{table: t, backlog: backlog{marks: marks[t.ID]}}
		at, err := places(ctx, conn, &w)
		if err != nil {
			return err
		}
		for _, m := range w.backlog.marks {
			if at[m.member].scattered {
				return hashedByLabel(t, m.member, from)
			}
		}
	}
	return nil
}

// readMarks gives the captured TRUNCATEs by table.
func readMarks(ctx context.Context, conn *pgx.Conn) (map[int32][]mark, error) {
	rows, err := conn.Query(ctx, marksSQL)
	if err != nil {
		return nil, fmt.Errorf("looking for captured TRUNCATEs: %w", err)
	}
	marks, id, m := map[int32][]mark{}, int32(0), mark{}
	if _, err = pgx.ForEachRow(rows, []any{&id, &m.member, &m.n}, func() error { marks[id] = append(marks[id], m); return nil }); err != nil {
		return nil, fmt.Errorf("looking for captured TRUNCATEs: %w", err)
	}
	return marks, nil
}

// fitImages looks whether the images of a table without a key, those of them that where gives, can be applied. It gives the
// number of the newest that is a TRUNCATE of the whole table.
func fitImages(ctx context.Context, conn *pgx.Conn, t scope.Table, where string, from engine.Side) (truncated int64, err error) {
	var ops, member string
	var part int64 // newest TRUNCATE of a partition alone
	err = conn.QueryRow(ctx, `SELECT coalesce(string_agg(DISTINCT e.op::text, ''), ''), coalesce(max(e.n) FILTER (WHERE e.op = 't' AND coalesce(e.img, '') = ''), 0),
 coalesce(max(e.n) FILTER (WHERE e.op = 't' AND e.img <> ''), 0), coalesce(max(e.img) FILTER (WHERE e.op = 't'), '') FROM `+
		imageTable(t)+" e WHERE "+where).Scan(&ops, &truncated, &part, &member)
	hint := wholeAgain
	if from == engine.Source {
		hint = "Run the same command again: catch_up loads the table again."
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("reading the row images of %s: %w", tableName(t), err)
	case t.Identity == scope.AppendOnly && ops != "i" && ops != "":
		return 0, appendOnlyBroken(t, ops, from)
	case part > truncated:
		return 0, &engine.Error{
			Op: "following", Object: tableName(t),
			Err:  &UnfitError{Table: t, Err: fmt.Errorf("its partition %s was truncated, and images do not say which partition a row was in", member)},
			Hint: hint,
		}
	}
	return truncated, nil
}

func appendOnlyBroken(t scope.Table, ops string, from engine.Side) error {
	what := "a row was deleted or updated"
	if strings.Contains(ops, "t") {
		what = "it was truncated"
	}
	hint := `Begin again with identity = "full_row" or data = "at_freeze" for this table: pgrunbook abort, then plan and apply.`
	if from == engine.Target { // there is no abort any more
		hint = "Nothing carries that back. Stay on the target: pgrunbook finish"
	}
	return &engine.Error{Op: "following", Object: tableName(t), Err: fmt.Errorf(`its identity is "append_only", but %s`, what), Hint: hint}
}

// hashedByLabel is the error of a mark of a partition whose rows are in several ones on the other side.
func hashedByLabel(t scope.Table, member string, from engine.Side) error {
	hint := wholeAgain
	if from == engine.Source {
		hint = "Where the table can be loaded again, run the same command again. Truncate the whole table, or DELETE from the partition, instead."
	}
	err := fmt.Errorf("its partition %s was truncated on the %s, and nothing tells these rows on the %s, since it is cut by the hash of an enum's label, which each database has its own of", member, from, from.Other())
	return &engine.Error{Op: "following", Object: tableName(t), Hint: hint, Err: &UnfitError{Table: t, Err: err}}
}

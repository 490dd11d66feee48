package dump

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// placesSQL gives tables ($1, quoted names) and all below them, partitions and heirs: how each is cut, and, one row
// for each, what it hangs on. Temporary heirs are their sessions' own.
const placesSQL = `
WITH RECURSIVE tree (oid) AS (
  SELECT to_regclass(name)::oid FROM unnest($1::text[]) name UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid)
SELECT n.nspname::text, c.relname::text, coalesce(pg_get_expr(c.relpartbound, c.oid), ''), coalesce(pg_get_partkeydef(c.oid), ''), coalesce(pn.nspname::text, ''), coalesce(p.relname::text, '')
  FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_inherits h ON h.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = h.inhparent LEFT JOIN pg_namespace pn ON pn.oid = p.relnamespace
 WHERE c.relpersistence <> 't'
 ORDER BY 1, 2, h.inhseqno`

// place is where a table hangs, and how it is cut.
type place struct {
	parents    []scope.Name
	bound, key string // as the server writes them; empty where it is no partition, or not partitioned
}

// trees are the places of tables and of all below them.
type trees map[scope.Name]*place

func readTrees(ctx context.Context, conn *pgx.Conn, s *scope.Scope) (trees, error) {
	var names []string
	for i := range s.Tables {
		names = append(names, pg.Name(s.Tables[i].Schema, s.Tables[i].Name.Name))
	}
	rows, err := conn.Query(ctx, placesSQL, names)
	if err != nil {
		return nil, fmt.Errorf("reading partitions and heirs: %w", err)
	}
	all := trees{}
	var n, parent scope.Name
	var bound, key string
	_, err = pgx.ForEachRow(rows, []any{&n.Schema, &n.Name, &bound, &key, &parent.Schema, &parent.Name}, func() error {
		if all[n] == nil {
			all[n] = &place{bound: bound, key: key}
		}
		if parent.Name != "" {
			all[n].parents = append(all[n].parents, parent)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading partitions and heirs: %w", err)
	}
	return all, nil
}

// under gives what hangs on each table, in order of name.
func (all trees) under() map[scope.Name][]scope.Name {
	list := map[scope.Name][]scope.Name{}
	for n, at := range all {
		for _, p := range at.parents {
			list[p] = append(list[p], n)
		}
	}
	for _, names := range list {
		slices.SortFunc(names, func(a, b scope.Name) int {
			return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name, b.Name))
		})
	}
	return list
}

// below gives all that is below a table, each after what it hangs on.
func below(under map[scope.Name][]scope.Name, root scope.Name) []scope.Name {
	list := slices.Clone(under[root])
	for i := 0; i < len(list); i++ {
		list = append(list, under[list[i]]...)
	}
	return list
}

// TreeDifferences compares how the scope's tables are cut into partitions, and what they inherit from, with the target's.
// A TRUNCATE of a partition names it and not its rows, and takes those of the partition there that has its name: both
// must have the same place and bounds. An UPDATE of a parent passes the gate of its heirs. Each difference is one
// sentence; what Differences names of a table is not said again.
func TreeDifferences(ctx context.Context, source, target *pgx.Conn, s *scope.Scope) ([]string, error) {
	want, err := readTrees(ctx, source, s)
	if err != nil {
		return nil, err
	}
	have, err := readTrees(ctx, target, s)
	if err != nil {
		return nil, err
	}
	wantUnder, haveUnder := want.under(), have.under()
	carried := map[scope.Name]bool{}
	for i := range s.Tables {
		carried[s.Tables[i].Name] = true
	}
	var out []string
	for i := range s.Tables {
		n := s.Tables[i].Name
		w, h := want[n], have[n]
		if w == nil || h == nil || (w.key == "") != (h.key == "") {
			continue
		}
		out = append(out, placeDifferences(n, w, h)...)
		if w.key != "" {
			out = append(out, memberDifferences(want, have, below(wantUnder, n), below(haveUnder, n))...)
			continue
		}
		for _, heir := range haveUnder[n] {
			if at := want[heir]; !carried[heir] && (at == nil || !slices.Contains(at.parents, n)) {
				out = append(out, fmt.Sprintf("%s inherits from %s on the target only", pg.Name(heir.Schema, heir.Name), pg.Name(n.Schema, n.Name)))
			}
		}
	}
	return out, nil
}

// memberDifferences compares the partitions of one tree, at all levels.
func memberDifferences(want, have trees, wanted, there []scope.Name) []string {
	var out []string
	left := map[scope.Name]bool{}
	for _, m := range there {
		left[m] = true
	}
	for _, m := range wanted {
		if left[m] {
			out = append(out, placeDifferences(m, want[m], have[m])...)
		} else {
			out = append(out, fmt.Sprintf("%s, %s, is not on the target", pg.Name(m.Schema, m.Name), want[m].hangs()))
		}
		delete(left, m)
	}
	for _, m := range there {
		if left[m] {
			out = append(out, fmt.Sprintf("%s, %s, is on the target only", pg.Name(m.Schema, m.Name), have[m].hangs()))
		}
	}
	return out
}

// placeDifferences are those of one table or partition that both sides have.
func placeDifferences(n scope.Name, want, have *place) []string {
	var out []string
	name := pg.Name(n.Schema, n.Name)
	if want.bound != have.bound || !slices.Equal(want.parents, have.parents) {
		out = append(out, fmt.Sprintf("%s is %s on the source and %s on the target", name, want.hangs(), have.hangs()))
	}
	if bare(want.key) != bare(have.key) {
		out = append(out, fmt.Sprintf("%s is %s on the source and %s on the target", name, want.cut(), have.cut()))
	}
	return out
}

// bare leaves out quotes: which names a server quotes depends on its major.
func bare(key string) string { return strings.ReplaceAll(key, `"`, "") }

// hangs says where a table hangs.
func (p *place) hangs() string {
	if len(p.parents) == 0 {
		return "on its own"
	}
	names := make([]string, len(p.parents))
	for i, n := range p.parents {
		names[i] = pg.Name(n.Schema, n.Name)
	}
	if p.bound == "" {
		return "an heir of " + strings.Join(names, " and ")
	}
	return "a partition of " + strings.Join(names, " and ") + " " + p.bound
}

func (p *place) cut() string {
	if p.key == "" {
		return "not partitioned"
	}
	return "partitioned by " + p.key
}

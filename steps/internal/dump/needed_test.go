package dump

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A partition is attached with what is restored only where it is restored itself: one that is not there yet, or hangs
// elsewhere on the target, does not stop the restore of what it hangs on.
func TestF43PartitionsAreAttachedThatAreMade(t *testing.T) {
	from, to, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	src, dst := server(t, from, "source"), server(t, to, "target")
	source, target := connect(t, src), connect(t, dst)
	const trees = `CREATE SCHEMA shop; CREATE TABLE shop.tree (a int, b int) PARTITION BY LIST (a); CREATE TABLE shop.elsewhere PARTITION OF shop.tree DEFAULT PARTITION BY RANGE (b);`
	run(t, source, trees+`CREATE TABLE shop.branch PARTITION OF shop.tree FOR VALUES IN (1) PARTITION BY RANGE (b);
		CREATE TABLE shop.one PARTITION OF shop.branch FOR VALUES FROM (0) TO (10); CREATE TABLE shop.two PARTITION OF shop.branch FOR VALUES FROM (10) TO (20); CREATE TABLE shop.three PARTITION OF shop.branch FOR VALUES FROM (20) TO (30)`)
	run(t, target, trees+`CREATE TABLE shop.two PARTITION OF shop.elsewhere FOR VALUES FROM (10) TO (20)`)
	all, err := Inventory(testContext(t), source, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Dump(testContext(t), tools(t, from, to), src, Options{Scope: &scope.Scope{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	for _, step := range []struct{ make, want string }{
		{"branch three", "branch<tree elsewhere<tree three<branch two<elsewhere"},
		{"one", "branch<tree elsewhere<tree one<branch three<branch two<elsewhere"},
	} {
		var items []Item
		for name := range strings.FieldsSeq(step.make) {
			items = append(items, all[Item{Kind: ItemPartition, Name: `"shop"."` + name + `"`}.ID()])
		}
		entries, err := a.Of(testContext(t), source, target, items)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Restore(testContext(t), dst, entries, RestoreOptions{TargetMajor: to}); err != nil {
			t.Fatalf("%s: %v", step.make, err)
		}
		rows, err := target.Query(testContext(t), "SELECT c.relname || '<' || p.relname FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_class p ON p.oid = h.inhparent WHERE c.relkind IN ('r', 'p') ORDER BY 1")
		if err != nil {
			t.Fatal(err)
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || !slices.Equal(got, strings.Fields(step.want)) {
			t.Errorf("after %s the target's partitions are %v, %v, want %s", step.make, got, err, step.want)
		}
	}
}

package capture

import (
	"slices"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// F34: a transaction that began before capture, with a snapshot and plans of its own, and touches the
// table only afterwards.
func TestF34TransactionFromBeforeCapture(t *testing.T) {
	for _, mode := range modes() {
		d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY, v text); CREATE TABLE other (id int); INSERT INTO plain VALUES (1, 'a'), (2, 'b')`)
		table := d.table(1, "plain", mode, scope.ByKey)
		if err := Prepare(d.ctx, d.ours, testRun); err != nil {
			t.Fatal(err)
		}
		d.run(d.app, "PREPARE upd AS UPDATE plain SET v = 'late' WHERE id = 2")
		d.run(d.app, "BEGIN ISOLATION LEVEL REPEATABLE READ")
		d.run(d.app, "SELECT count(*) FROM other")
		if err := InstallOn(d.ctx, d.ours, testRun, table, nil); err != nil {
			t.Fatal(err)
		}
		d.run(d.app, "EXECUTE upd")
		d.run(d.app, "INSERT INTO plain VALUES (3, 'c')")
		d.run(d.app, "COMMIT")
		if keys, _ := d.logged(table); !slices.Equal(keys, []string{"2", "3"}) {
			t.Errorf("%s: keys %v are logged, want 2 and 3", mode, keys)
		}
	}
}

// A8: a tree's row triggers are put up leaf by leaf: a leaf that is in use holds up no other.
func TestA8OneLeafAtATime(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE tree (id int, g int, PRIMARY KEY (g, id)) PARTITION BY LIST (g);
		CREATE TABLE tree_1 PARTITION OF tree FOR VALUES IN (1); CREATE TABLE tree_2 PARTITION OF tree FOR VALUES IN (2)`)
	table := d.table(1, "tree", scope.Row, scope.ByKey)
	if err := Prepare(d.ctx, d.ours, testRun); err != nil {
		t.Fatal(err)
	}
	d.run(d.app, "BEGIN")
	d.run(d.app, "INSERT INTO tree_2 VALUES (1, 2)")
	heard, done := make(chan pg.LockWait, 1000), make(chan error, 1)
	go func() { done <- InstallOn(d.ctx, d.ours, testRun, table, func(w pg.LockWait) { heard <- w }) }()
	if w := <-heard; w.Object != `"public"."tree_2"` {
		t.Errorf("it waits for %s", w.Object)
	}
	other := d.connect(d.url)
	var n int
	if err := other.QueryRow(d.ctx, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'public.tree_1'::regclass AND tgname LIKE 'pgrunbook%'").Scan(&n); err != nil || n == 0 {
		t.Errorf("the free leaf has %d triggers while another one is in use, %v", n, err)
	}
	d.run(other, "SET lock_timeout = '10s'; INSERT INTO public.tree_1 VALUES (1, 1)")
	d.run(d.app, "COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if keys, _ := d.logged(table); len(keys) == 0 {
		t.Error("the write to the leaf that was captured already is not logged")
	}
}

// C7: vacuum gives no space of a delta back, which would take an exclusive lock.
func TestC7DeltasAreNotTruncated(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY); CREATE TABLE log (v text)`)
	table := d.table(1, "plain", scope.Statement, scope.ByKey)
	d.install(table, d.table(2, "log", scope.Statement, scope.FullRow))
	for _, rel := range []string{DeltaName(table.Key.Shape), ImageName(2)} {
		if got := d.one("SELECT coalesce(('vacuum_truncate=off' = ANY (reloptions))::text, 'false') FROM pg_class WHERE oid = $1::text::regclass", rel); got != "true" {
			t.Errorf("%s may be truncated by a vacuum", rel)
		}
	}
}

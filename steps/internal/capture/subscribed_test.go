package capture

import (
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A subscription's apply worker is in the replica role and fires row triggers only.
func TestD4R8ReplicatedChangesAreCapturedByRowTriggers(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: 15, Settings: map[string]string{"wal_level": "logical"}})
	d := newDBOn(t, c, `CREATE TABLE plain (id int PRIMARY KEY, v text)`)
	publisher := testpg.NewDB(t, c)
	pub := d.connect(publisher)
	d.run(pub, `CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain VALUES (1, 'initial'); CREATE PUBLICATION p FOR TABLE plain`)
	d.run(pub, `SELECT pg_create_logical_replication_slot('s', 'pgoutput')`)
	table := d.table(1, "plain", scope.Row, scope.ByKey)
	d.install(table)
	sub := d.connect(d.url)
	d.run(sub, "CREATE SUBSCRIPTION s CONNECTION '"+publisher+"' PUBLICATION p WITH (create_slot = false, slot_name = 's')")
	defer d.run(sub, "DROP SUBSCRIPTION IF EXISTS s")
	await := func(what, sql string) {
		t.Helper()
		for d.one(sql) != "t" {
			select {
			case <-d.ctx.Done():
				t.Fatalf("%s: not seen", what)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	await("initial rows", "SELECT CASE WHEN count(*) = 1 THEN 't' END FROM public.plain")
	await("synchronised", "SELECT CASE WHEN srsubstate = 'r' THEN 't' END FROM pg_subscription_rel")
	d.forget(table)
	d.run(pub, "INSERT INTO plain VALUES (2, 'n'), (3, 'n'); UPDATE plain SET v = 'u' WHERE id = 1; DELETE FROM plain WHERE id = 3")
	await("replicated rows", "SELECT CASE WHEN count(*) = 2 AND min(v) = 'n' AND max(v) = 'u' THEN 't' END FROM public.plain")
	if keys, _ := d.logged(table); strings.Join(keys, " ") != "1 2 3" {
		t.Errorf("keys %v are logged, want 1 2 3", keys)
	}
	d.run(pub, "TRUNCATE plain")
	await("replicated TRUNCATE", "SELECT CASE WHEN count(*) = 0 THEN 't' END FROM public.plain")
	if _, marks := d.logged(table); len(marks) != 1 {
		t.Errorf("marks %v after a replicated TRUNCATE", marks)
	}
	if changes, err := Check(d.ctx, d.ours, testRun, []scope.Table{table}); err != nil || len(changes) > 0 {
		t.Errorf("row triggers: %v, %v", describe(changes), err)
	}
	table.Capture = scope.Statement // as where the subscription came after the plan
	d.install(table)
	if err := Accept(d.ctx, d.ours, table); err != nil {
		t.Fatal(err)
	}
	changes, err := Check(d.ctx, d.ours, testRun, []scope.Table{table})
	if err != nil || Err(changes) == nil || changes[0].What != Subscribed {
		t.Errorf("statement triggers: %v, %v", describe(changes), err)
	}
	d.run(sub, "DROP SUBSCRIPTION s")
	if changes, err = Check(d.ctx, d.ours, testRun, []scope.Table{table}); err != nil || len(changes) != 1 || changes[0].Rule != Recopy {
		t.Errorf("after the subscription has gone: %v, %v", describe(changes), err)
	}
	if err := Accept(d.ctx, d.ours, table, changes...); err != nil {
		t.Error(err)
	}
	if changes, err = Check(d.ctx, d.ours, testRun, []scope.Table{table}); err != nil || len(changes) > 0 {
		t.Errorf("after Accept: %v, %v", describe(changes), err)
	}
}

package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// cutSetup are tables that a target may have, column by column, and cut otherwise.
const cutSetup = shopSetup + `
CREATE TABLE shop.tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE shop.tree_1 PARTITION OF shop.tree FOR VALUES FROM (0) TO (100);
CREATE TABLE shop.tree_2 PARTITION OF shop.tree FOR VALUES FROM (100) TO (200);
CREATE TABLE shop.tree_3 PARTITION OF shop.tree FOR VALUES FROM (200) TO (300) PARTITION BY RANGE (id);
CREATE TABLE shop.tree_3a PARTITION OF shop.tree_3 FOR VALUES FROM (200) TO (250);
CREATE TABLE shop.parent (id int PRIMARY KEY);
CREATE TABLE shop.child (PRIMARY KEY (id)) INHERITS (shop.parent);`

// A TRUNCATE of a partition takes rows that the source has in it: a target whose partitions are others has them elsewhere.
func TestF44ExistingTargetIsCutOtherwise(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, cutSetup, `schema { mode = "existing" }`)
	alike := strings.Split(shopSetup, "INSERT INTO")[0] + strings.TrimPrefix(cutSetup, shopSetup)
	r.exec(target, alike+`
		DROP TABLE shop.tree_1; CREATE TABLE shop.tree_1 PARTITION OF shop.tree FOR VALUES FROM (0) TO (50);
		DROP TABLE shop.tree_2; CREATE TABLE shop.tree_9 PARTITION OF shop.tree DEFAULT;
		DROP TABLE shop.tree_3; CREATE TABLE shop.tree_3 PARTITION OF shop.tree FOR VALUES FROM (200) TO (300) PARTITION BY LIST (id); CREATE TABLE shop.tree_3a PARTITION OF shop.tree FOR VALUES FROM (300) TO (400);
		ALTER TABLE shop.child NO INHERIT shop.parent; CREATE SCHEMA aside; CREATE TABLE aside.heir () INHERITS (shop.customer)`)
	apply := func() error {
		return newSchema(r.env).Apply(t.Context(), engine.StepPlan{}, r.cursor(newSchema(r.env)))
	}
	err := apply()
	if engine.ClassOf(err) != engine.ClassPreflight || engine.HintOf(err) != likeSource {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		`"shop"."tree_1" is a partition of "shop"."tree" FOR VALUES FROM (0) TO (100) on the source and a partition of "shop"."tree" FOR VALUES FROM (0) TO (50) on the target`,
		`"shop"."tree_2", a partition of "shop"."tree" FOR VALUES FROM (100) TO (200), is not on the target`,
		`"shop"."tree_3" is partitioned by RANGE (id) on the source and partitioned by LIST (id) on the target`,
		`"shop"."tree_3a" is a partition of "shop"."tree_3" FOR VALUES FROM (200) TO (250) on the source and a partition of "shop"."tree" FOR VALUES FROM (300) TO (400) on the target`,
		`"shop"."tree_9", a partition of "shop"."tree" DEFAULT, is on the target only`,
		`"shop"."child" is an heir of "shop"."parent" on the source and on its own on the target`,
		`"aside"."heir" inherits from "shop"."customer" on the target only`,
		"7 differences",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not named: %s in %v", want, err)
		}
	}
	if _, err := newSchema(r.env).Plan(t.Context()); engine.HintOf(err) != likeSource {
		t.Errorf("the plan: %v", err)
	}
	r.exec(target, "DROP SCHEMA shop, aside CASCADE; "+alike)
	r.must(apply())
}

// A partition that comes while its new tree is made on the target is no difference that somebody has to mend there.
func TestF43PartitionComesWhileItsTreeJoins(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup, `schema {
  mode = "existing"
  on_ddl = "carry"
}`)
	r.exec(target, strings.Split(shopSetup, "INSERT INTO")[0]+`CREATE FUNCTION public.slow() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); END';
		CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.slow(); ALTER EVENT TRIGGER slow ENABLE ALWAYS`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(source, `CREATE TABLE shop.late (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE shop.late_1 PARTITION OF shop.late FOR VALUES FROM (0) TO (10); INSERT INTO shop.late VALUES (1)`)
	there, err := testpg.Connect(t.Context(), target)
	r.must(err)
	defer func() { _ = there.Close(t.Context()) }()
	here, err := testpg.Connect(t.Context(), source)
	r.must(err)
	defer func() { _ = here.Close(t.Context()) }()
	came := make(chan error, 1)
	go func() {
		for slow, err := false, error(nil); ; {
			if err = there.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database())").Scan(&slow); err == nil && !slow {
				continue
			}
			if err == nil {
				_, err = here.PgConn().Exec(t.Context(), "CREATE TABLE shop.late_2 PARTITION OF shop.late FOR VALUES FROM (10) TO (20); INSERT INTO shop.late VALUES (11)").ReadAll()
			}
			came <- err
			return
		}
	}()
	err = r.catchUp()
	r.must(<-came)
	r.must(err)
	r.same("shop.late", "shop.late_2")
}

// What a person made on the target is theirs: nothing of ours would make it again. Indexes stay as they are, a check that was
// validated there stays so, and a foreign key is not given up for a key that changed on the source.
func TestF45ExistingTargetKeepsItsOwn(t *testing.T) {
	source, target := testpg.Pair(t)
	const own = `; CREATE INDEX by_total ON shop.invoice (total)`
	r := newRigOn(t, source, target, shopSetup+own+`; ALTER TABLE shop.invoice ADD CONSTRAINT low CHECK (total < 1000000) NOT VALID`, `schema {
  mode = "existing"
  on_ddl = "carry"
}`)
	r.exec(target, strings.Split(shopSetup, "INSERT INTO")[0]+own+`; ALTER TABLE shop.invoice ADD CONSTRAINT low CHECK (total < 1000000)`)
	const theirs = `SELECT concat_ws(' ', to_regclass('shop.by_total'), (SELECT convalidated FROM pg_constraint WHERE conname = 'low'), (SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'shop.invoice'::regclass))`
	stays := func() {
		t.Helper()
		r.want(target, theirs, "shop.by_total t 1")
	}
	stays()
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	stays()
	r.exec(source, "ALTER INDEX shop.by_total SET (fillfactor = 70)")
	for _, mode := range []string{"stop", "carry"} {
		r.env.Runbook.Schema.OnDDL = mode
		r.must(r.catchUp())
		stays()
	}
	const exchange = `BEGIN; ALTER TABLE shop.customer DROP CONSTRAINT customer_pkey CASCADE, ADD CONSTRAINT customer_pkey PRIMARY KEY (id) INCLUDE (name);
		ALTER TABLE shop.invoice ADD FOREIGN KEY (customer) REFERENCES shop.customer ON DELETE CASCADE; COMMIT`
	r.exec(source, exchange)
	if err := r.catchUp(); pg.SQLState(err) != "2BP01" || !strings.Contains(engine.HintOf(err), "by hand") {
		t.Fatalf("a key that a foreign key needs: %v, hint %q", err, engine.HintOf(err))
	}
	stays()
	r.exec(target, exchange)
	r.must(r.catchUp())
	stays()
	r.sameTables(t)
}

package steps

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const whileLoadingSetup = shopSetup + `
CREATE TYPE shop.mood AS ENUM ('sad', 'ok');
CREATE TABLE shop.code (id int PRIMARY KEY, v varchar(4) NOT NULL, w text NOT NULL);
INSERT INTO shop.code SELECT g, 'v', 'w' FROM generate_series(1, 20) g;
CREATE TABLE shop.plain (id int PRIMARY KEY, n numeric(6, 2));
INSERT INTO shop.plain SELECT g, g FROM generate_series(1, 20) g;
CREATE TABLE shop.dumped (id int PRIMARY KEY, v text);
INSERT INTO shop.dumped SELECT g, 'v' FROM generate_series(1, 20) g;
CREATE TABLE shop.widened (id int PRIMARY KEY, v text);
INSERT INTO shop.widened SELECT g, 'v' FROM generate_series(1, 20) g;
CREATE TABLE shop.less (id int PRIMARY KEY, gone text, v text);
INSERT INTO shop.less SELECT g, 'g', 'v' FROM generate_series(1, 20) g;
CREATE TABLE shop.day (at int, id int, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE shop.day_1 PARTITION OF shop.day FOR VALUES FROM (0) TO (10);
CREATE TABLE shop.day_2 PARTITION OF shop.day FOR VALUES FROM (10) TO (20);
INSERT INTO shop.day SELECT g, g FROM generate_series(1, 19) g;
CREATE TABLE shop.page (id int, mood shop.mood);
INSERT INTO shop.page SELECT g, 'ok' FROM generate_series(1, 20) g;
CREATE TABLE shop.note (id int, mood shop.mood);
INSERT INTO shop.note SELECT g, 'ok' FROM generate_series(1, 20) g;`

const whileLoading = `schema { on_ddl = "carry" }
table "shop.dumped" { method = "pg_dump" }
table "shop.widened" { method = "pg_dump" }
table "shop.page" { identity = "append_only" }
table "shop.note" { identity = "full_row" }
`

// whileLoadingDDL comes when changes are captured and before rows are read.
var whileLoadingDDL = []struct{ name, sql, table string }{
	{"F40 column whose values were made by a rewrite", `ALTER TABLE shop.customer ADD COLUMN made uuid DEFAULT gen_random_uuid()`, "shop.customer"},
	{"F40 column of a table that is rewritten as well", `ALTER TABLE shop.invoice ADD COLUMN a int DEFAULT 5; ALTER TABLE shop.invoice ALTER a DROP DEFAULT; VACUUM FULL shop.invoice`, "shop.invoice"},
	{"F40 type that rows need, and NOT NULL dropped", `ALTER TABLE shop.code ALTER v TYPE varchar(40); ALTER TABLE shop.code ALTER w DROP NOT NULL; UPDATE shop.code SET v = 'longer than four', w = NULL WHERE id < 5`, "shop.code"},
	{"F40 type with other values", `ALTER TABLE shop.plain ALTER n TYPE numeric(9, 4) USING n + 0.1234; ALTER TABLE shop.plain ADD COLUMN b int NOT NULL DEFAULT 3`, "shop.plain"},
	{"F40 column of a table that pg_dump reads", `ALTER TABLE shop.widened ADD COLUMN c int DEFAULT 7; ALTER TABLE shop.widened ALTER c SET DEFAULT 8; UPDATE shop.widened SET c = 9 WHERE id = 1`, "shop.widened"},
	{"F40 column dropped that chunks would read", `ALTER TABLE shop.less DROP COLUMN gone; UPDATE shop.less SET v = 'w' WHERE id < 3`, "shop.less"},
	{"F42 rewrite of a table that pg_dump reads", `ALTER TABLE shop.dumped ALTER v TYPE varchar USING v || '!'`, "shop.dumped"},
	{"F42 rewrite of a table whose new rows are captured whole", `INSERT INTO shop.page VALUES (30, 'sad'); ALTER TABLE shop.page SET UNLOGGED; ALTER TABLE shop.page SET LOGGED`, "shop.page"},
	{"F43 partition dropped, another made", `DROP TABLE shop.day_1; CREATE TABLE shop.day_3 PARTITION OF shop.day FOR VALUES FROM (20) TO (30); INSERT INTO shop.day VALUES (25, 25);
		DROP TABLE shop.day_2; CREATE TABLE shop.day_2 PARTITION OF shop.day FOR VALUES FROM (10) TO (15); INSERT INTO shop.day VALUES (11, 100)`, "shop.day"},
}

// DDL that commits between capture and the end of the load: carried, or the table is loaded again.
func TestF40WhileLoading(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, whileLoadingSetup, whileLoading)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	for _, c := range whileLoadingDDL {
		r.each(c.sql)
	}
	r.must(r.walk(t.Context(), newCopy(r.env)))
	r.exec(r.source, `INSERT INTO shop.page VALUES (31, 'sad'); INSERT INTO shop.note VALUES (31, 'sad'); ALTER TYPE shop.mood RENAME VALUE 'sad' TO 'blue'; INSERT INTO shop.note VALUES (32, 'blue');
		ALTER TABLE shop.customer ADD COLUMN d int; UPDATE shop.customer SET d = id; ALTER TABLE shop.customer ALTER d SET NOT NULL, ALTER d SET DEFAULT 1;
		UPDATE shop.code SET w = 'w' WHERE w IS NULL; ALTER TABLE shop.code ADD CONSTRAINT filled CHECK (w IS NOT NULL)`)
	r.must(r.walk(t.Context(), newCatchUp(r.env)))
	for _, c := range append(whileLoadingDDL, struct{ name, sql, table string }{name: "F46 label renamed beside row images", table: "shop.note"}) {
		t.Run(c.name, func(t *testing.T) {
			diffs, err := testpg.Diff(t.Context(), r.source, r.target, []string{c.table})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range diffs {
				t.Error(d)
			}
		})
	}
	r.want(r.target, "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 'shop.customer'::regclass AND attname = 'd' AND attnotnull", "1")
	r.want(r.target, "SELECT count(*)::text FROM pg_constraint WHERE conrelid = 'shop.code'::regclass AND conname = 'filled' AND convalidated", "1")
	r.want(r.target, "SELECT count(*)::text FROM shop.day_3", "1")
	r.want(r.target, "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = 'shop.day_2'::regclass", "FOR VALUES FROM (10) TO (15)")
	r.env.Journal.Close(t.Context())
	r.open() // as a new process
	r.exec(r.source, `UPDATE shop.customer SET made = gen_random_uuid(), d = 0 WHERE id < 3; UPDATE shop.plain SET n = 1.2345, b = id; INSERT INTO shop.widened (id) VALUES (99); UPDATE shop.invoice SET a = id WHERE id = 2`)
	r.must(r.catchUp())
	r.sameTables(t)
}

// Tables that are dropped while they are loaded leave the run, before they are cut into chunks and after it, and what
// is made again joins it. Of a table that a load could not read nothing is left to read.
func TestF41DroppedWhileLoading(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, whileLoadingSetup, whileLoading)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(r.source, `DROP TABLE shop.customer CASCADE; DROP TABLE shop.dumped; DROP TABLE shop.event; DROP TABLE shop.page;
		DROP TABLE shop.code; CREATE TABLE shop.code AS SELECT g AS id, 'new' AS v FROM generate_series(1, 5) g; ALTER TABLE shop.code ADD PRIMARY KEY (id)`)
	cp := r.cursor(newCopy(r.env))
	ctx, limits, err := watchLimits(t.Context(), r.env, cp)
	r.must(err)
	loader, err := (&copyStep{env: r.env}).loader(ctx, limits, cp)
	r.must(err)
	r.must(loader.Prepare(ctx))
	limits.close()
	r.exec(r.source, `DROP TABLE shop.note; DROP TABLE shop.day; DROP TABLE shop.less; DROP TABLE shop.widened;
		DROP TABLE shop.plain; CREATE TABLE shop.plain AS SELECT g AS id, 'new' AS n FROM generate_series(1, 5) g; ALTER TABLE shop.plain ADD PRIMARY KEY (id)`)
	r.exec(r.target, `CREATE FUNCTION public.dies() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''it died''; END';
		CREATE TRIGGER dies BEFORE UPDATE OF plan ON pgrunbook.run FOR EACH ROW EXECUTE FUNCTION public.dies()`)
	if err := r.walk(t.Context(), newCopy(r.env)); err == nil || !strings.Contains(err.Error(), "it died") {
		t.Fatalf("a load that dies before it has recorded what left: %v", err)
	}
	r.exec(r.target, "DROP FUNCTION public.dies() CASCADE")
	r.env.Journal.Close(t.Context())
	r.open() // as a new process
	r.must(r.walk(t.Context(), newCopy(r.env)))
	r.env.Journal.Close(t.Context())
	r.open()
	r.want(r.target, "SELECT count(*)::text FROM pgrunbook.item i JOIN pgrunbook.table_state s USING (run, tbl) WHERE s.state = 'loading'", "0") // of those that left
	r.must(r.walk(t.Context(), newCatchUp(r.env)))
	r.sameTables(t)
	r.want(r.target, "SELECT concat(to_regclass('shop.customer'), to_regclass('shop.dumped'), to_regclass('shop.event'), to_regclass('shop.page'), to_regclass('shop.note'), to_regclass('shop.day'), to_regclass('shop.less'))", "")
}

// invoiceStandsStill makes the key of one table take as long as a lock is held, as if it took days.
const invoiceStandsStill = `
CREATE FUNCTION public.stand_still() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
  WHILE current_query() ~ 'INDEX "?invoice_pkey' AND NOT pg_try_advisory_xact_lock_shared(1) LOOP PERFORM pg_sleep(0.01); END LOOP;
END $$;
CREATE EVENT TRIGGER stand_still ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION public.stand_still();
ALTER EVENT TRIGGER stand_still ENABLE ALWAYS`

// While one table loads for days, a change of another one's columns keeps passes from that one alone.
func TestF40OthersAreFollowed(t *testing.T) {
	every, patience := followEvery, followPatience
	followEvery, followPatience = 50*time.Millisecond, 2*time.Second
	defer func() { followEvery, followPatience = every, patience }()
	r := newRig(t, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(r.target, invoiceStandsStill)
	holder, err := testpg.Connect(t.Context(), r.target)
	r.must(err)
	defer func() { _ = holder.Close(t.Context()) }()
	_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock(1)", pgx.QueryExecModeExec)
	r.must(err)
	done := make(chan error, 1)
	go func() { done <- r.walk(t.Context(), newCopy(r.env)) }()
	const still = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%invoice_pkey%'"
	r.until(done, still, "1")
	r.exec(r.source, "INSERT INTO shop.customer VALUES (100, 'early')")
	r.until(done, "SELECT count(*)::text FROM shop.customer WHERE id = 100", "1")
	r.exec(r.source, "ALTER TABLE shop.customer ADD COLUMN more int; UPDATE shop.customer SET more = id; INSERT INTO shop.event VALUES ('2026-09-09', 777)")
	r.until(done, "SELECT count(*)::text FROM shop.event WHERE id = 777", "1")
	r.until(done, still, "1") // it is not over yet
	if !r.heard(`passes leave "shop"."customer" out`) {
		t.Error("nobody was told whose passes wait")
	}
	_, err = holder.Exec(t.Context(), "SELECT pg_advisory_unlock(1)")
	r.must(err)
	r.must(<-done)
	r.must(r.walk(t.Context(), newCatchUp(r.env)))
	r.sameTables(t)
}

// each runs statements one by one: some may not stand in a transaction block.
func (r *rig) each(sql string) {
	r.t.Helper()
	if !strings.Contains(sql, "VACUUM") {
		r.exec(r.source, sql)
		return
	}
	for _, one := range strings.Split(sql, ";") {
		r.exec(r.source, one)
	}
}

// Where the runbook does not let changes be carried, what a load would lose stops it.
func TestF40WhileLoadingStops(t *testing.T) {
	r := newRig(t, "")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(r.source, `ALTER TABLE shop.customer ADD COLUMN made uuid DEFAULT gen_random_uuid()`)
	err := r.walk(t.Context(), newCopy(r.env))
	if err == nil || !strings.Contains(err.Error(), `new column "made"`) || !strings.Contains(engine.HintOf(err), "on_ddl") {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
}

// A table that somebody else loads is asked for again when what was loaded does not count any more.
func TestF42ExternalLoadIsAskedForAgain(t *testing.T) {
	r := newRig(t, "schema { on_ddl = \"carry\" }\ntable \"shop.customer\" { method = \"external\" }\n")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	asked := func(when string) {
		t.Helper()
		if err := r.walk(t.Context(), newCopy(r.env)); engine.ClassOf(err) != engine.ClassApproval || !strings.Contains(err.Error(), "shop.customer") {
			t.Fatalf("%s: %v", when, err)
		}
	}
	load := func(columns string) {
		t.Helper()
		rows := query(t, r.source, fmt.Sprintf("SELECT string_agg(format('(%%L, %%L)', id, name), ',') FROM (SELECT %s FROM shop.customer) s", columns))
		r.exec(r.target, fmt.Sprintf("SET pgrunbook.mark = '%s'; SET session_replication_role = replica; INSERT INTO shop.customer (id, name) VALUES %s", r.env.Run.Mark, rows))
		r.must(r.env.Journal.Approve(t.Context(), engine.Approval{Name: externalApproval, By: "test", At: time.Now(), PlanDigest: r.env.Journal.Digest}))
	}
	asked("at first")
	load("id, name")
	r.exec(r.source, "ALTER TABLE shop.customer ALTER name TYPE varchar USING name || '!'; TRUNCATE shop.invoice")
	asked("after a rewrite")
	r.want(r.target, "SELECT count(*)::text FROM shop.customer", "0")
	load("id, name")
	r.must(r.walk(t.Context(), newCopy(r.env), newCatchUp(r.env)))
	r.sameTables(t)
	r.exec(r.source, "ALTER TABLE shop.customer DISABLE TRIGGER ALL; UPDATE shop.customer SET name = 'hidden' WHERE id = 3; ALTER TABLE shop.customer ENABLE TRIGGER ALL")
	if err := r.catchUp(); engine.ClassOf(err) != engine.ClassApproval {
		t.Fatalf("in catch_up: %v", err)
	}
	load("id, name")
	r.must(r.catchUp())
	r.sameTables(t)
}

// pg_restore knows no fence: a runner that was replaced while pg_dump read does not start it.
func TestBulkLoadIsFenced(t *testing.T) {
	r := newRig(t, `table "shop.customer" { method = "pg_dump" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	customer := slices.DeleteFunc(slices.Clone(r.env.Scope.Tables), func(t scope.Table) bool { return t.Name.Name != "customer" })
	load := (&copyStep{r.env}).bulk(r.env.Journal.Checkpoint("copy", r.env.Sink))
	r.exec(r.target, "UPDATE pgrunbook.run SET epoch = epoch + 1")
	if err := load(t.Context(), customer); engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("the load of a replaced runner says %v", err)
	}
	r.want(r.target, "SELECT count(*)::text FROM shop.customer", "0")
	r.exec(r.target, "UPDATE pgrunbook.run SET epoch = epoch - 1")
	r.must(r.walk(t.Context(), newCopy(r.env)))
	r.sameTables(t)
}

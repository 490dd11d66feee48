package steps

import (
	"context"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// changesBeforeCapture come when a new table is on the target and part of the run, and is not captured yet.
var changesBeforeCapture = []struct{ name, made, meanwhile string }{
	{"a column", `CREATE TABLE shop.? (id int PRIMARY KEY)`, `ALTER TABLE shop.? ADD COLUMN b text DEFAULT 'old'; ALTER TABLE shop.? ALTER b SET DEFAULT 'new'`},
	{"a column dropped", `CREATE TABLE shop.? (id int PRIMARY KEY, v text NOT NULL DEFAULT 'v')`, `ALTER TABLE shop.? DROP COLUMN v`},
	{"a type", `CREATE TABLE shop.? (id int PRIMARY KEY, v varchar(3) DEFAULT 'v')`, `ALTER TABLE shop.? ALTER v TYPE text; UPDATE shop.? SET v = 'longer than three'`},
	{"a default", `CREATE TABLE shop.? (id serial PRIMARY KEY, v int)`, `ALTER TABLE shop.? ALTER v SET DEFAULT 5`},
	{
		"a partition", `CREATE TABLE shop.? (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE shop.?_low PARTITION OF shop.? FOR VALUES FROM (0) TO (100)`,
		`CREATE TABLE shop.?_high PARTITION OF shop.? FOR VALUES FROM (100) TO (200); INSERT INTO shop.? (id) VALUES (150)`,
	},
	{
		"another one in its place", `CREATE TABLE shop.? (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE shop.?_low PARTITION OF shop.? FOR VALUES FROM (0) TO (100)`,
		`DROP TABLE shop.?_low; CREATE TABLE shop.?_low PARTITION OF shop.? FOR VALUES FROM (0) TO (50); INSERT INTO shop.? (id) VALUES (1), (2)`,
	},
	{
		"another key", `CREATE TABLE shop.? (id int PRIMARY KEY, k int NOT NULL DEFAULT 0); CREATE VIEW shop.?_seen AS SELECT id FROM shop.?`,
		`UPDATE shop.? SET k = id; ALTER TABLE shop.? DROP CONSTRAINT ?_pkey; ALTER TABLE shop.? ADD PRIMARY KEY (k)`,
	},
	{"the key's name", `CREATE TABLE shop.? (id int PRIMARY KEY)`, `ALTER TABLE shop.? RENAME id TO number`},
	{"its own name", `CREATE TABLE shop.? (id int PRIMARY KEY)`, `ALTER TABLE shop.? RENAME TO ?_now`},
	{"with a parent", `CREATE TABLE shop.?_up (id int PRIMARY KEY, v int); CREATE TABLE shop.? (PRIMARY KEY (id)) INHERITS (shop.?_up)`, `ALTER TABLE shop.?_up ADD COLUMN w int DEFAULT 4`},
}

// A new table that changes after it was made on the target, and before its capture knows what it is like, comes whole: in
// one process, one at a time, and where a process dies in between, all together.
func TestF41ChangedBeforeItsCapture(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	of := func(sql, table string) string { return strings.ReplaceAll(sql, "?", table) }
	const fill = "; INSERT INTO shop.? (id) SELECT g FROM generate_series(1, 20) g;"
	var made, meanwhile string
	for n, c := range changesBeforeCapture {
		table := "late_" + string(rune('a'+n))
		made, meanwhile = made+of(c.made+fill, "dead_"+table), meanwhile+of(c.meanwhile, "dead_"+table)+";"
		t.Run(c.name, func(t *testing.T) {
			r.exec(r.source, of(c.made+fill, table))
			came := false
			r.onEvent = func(e engine.Event) {
				if !came && strings.Contains(e.Message, `"`+table+`" is new and in scope`) {
					came = true
					r.exec(r.source, of(c.meanwhile, table))
				}
			}
			err := r.catchUp()
			r.onEvent = nil
			if err != nil || !came {
				t.Fatalf("%v, hint %q; changed in between: %t", err, engine.HintOf(err), came)
			}
			tables := strings.Fields(query(t, r.source, "SELECT string_agg('shop.' || relname, ' ') FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind IN ('r', 'p') AND relname LIKE '"+table+"%'"))
			diffs, err := testpg.Diff(t.Context(), r.source, r.target, tables)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range diffs {
				t.Error(d)
			}
			r.sameDefaults(t)
			r.samePlaces(t)
		})
	}
	conn, err := testpg.Connect(t.Context(), r.source)
	r.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	r.exec(r.source, made)
	_, err = conn.PgConn().Exec(t.Context(), "BEGIN; LOCK TABLE shop.dead_late_a IN ROW EXCLUSIVE MODE").ReadAll()
	r.must(err)
	ctx, die := context.WithCancel(t.Context())
	defer die()
	r.onEvent = func(e engine.Event) {
		if e.Kind == engine.EventWaiting && strings.Contains(e.Object, "dead_late_a") {
			die()
		}
	}
	r.must(r.env.Journal.Reopen(t.Context(), catchUpID, true, "it is a test"))
	if err := r.walk(ctx, newCatchUp(r.env)); err == nil || ctx.Err() == nil {
		t.Fatalf("the process did not die: %v", err)
	}
	r.onEvent = nil
	_, err = conn.PgConn().Exec(t.Context(), "COMMIT;"+meanwhile).ReadAll()
	r.must(err)
	r.env.Journal.Close(t.Context())
	r.open() // as a new process
	r.must(r.catchUp())
	for _, kind := range []string{"late_", "dead_late_"} { // triggers and passes fit what there is
		r.exec(r.source, of("DELETE FROM shop.?a WHERE id = 1; UPDATE shop.?a SET b = 'b'; UPDATE shop.?b SET id = 50 WHERE id = 2; UPDATE shop.?e SET v = 'v'; UPDATE shop.?g SET k = 60 WHERE k = 2; UPDATE shop.?h SET number = 70 WHERE number = 2; DELETE FROM shop.?i_now; UPDATE shop.?j_up SET w = 5", kind))
	}
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.sameTables(t)
	r.sameDefaults(t)
	r.sameDefinitions(t)
}

// What a person made on the target is not made anew, and nothing is where DDL is not to be carried: both are said.
func TestF41ChangedBeforeItsCaptureStops(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup, `schema {
  mode = "existing"
  on_ddl = "carry"
}`)
	r.exec(target, strings.Split(shopSetup, "INSERT INTO")[0])
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(source, "CREATE TABLE shop.late (id int PRIMARY KEY); INSERT INTO shop.late VALUES (1), (2)")
	r.exec(target, "CREATE TABLE shop.late (id int PRIMARY KEY)")
	came := false
	r.onEvent = func(e engine.Event) {
		if !came && strings.Contains(e.Message, `"late" is new and in scope`) {
			came = true
			r.exec(source, "ALTER TABLE shop.late ADD COLUMN b text DEFAULT 'b'")
			r.env.Runbook.Schema.OnDDL = "stop"
		}
	}
	oid := func() string { return query(t, target, "SELECT 'shop.late'::regclass::oid") }
	was := oid()
	for _, want := range []struct{ text, hint string }{{"changed on the source before it was captured", "on_ddl"}, {`table "shop"."late" is new`, "on the target"}} {
		err := r.catchUp()
		if err == nil || !came || !strings.Contains(err.Error(), want.text) || !strings.Contains(engine.HintOf(err), want.hint) {
			t.Fatalf("%v, hint %q; changed in between: %t", err, engine.HintOf(err), came)
		}
		r.env.Runbook.Schema.OnDDL = "carry"
	}
	r.exec(target, "ALTER TABLE shop.late ADD COLUMN b text DEFAULT 'b'")
	r.must(r.catchUp())
	r.same("shop.late")
	if is := oid(); is != was {
		t.Errorf("the table that a person made was %s and is %s", was, is)
	}
}

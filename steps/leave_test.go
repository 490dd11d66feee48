package steps

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// leaves are tables and columns that go, one after the other in one run, and come again.
var leaves = []stage{
	{"F41 a table that came is dropped", `CREATE TABLE shop.product (id serial PRIMARY KEY, v text CHECK (v <> 'x')); CREATE INDEX product_v ON shop.product (v); INSERT INTO shop.product (v) VALUES ('a')`, `"shop"."product" is new`},
	{"F41 and dropped", `UPDATE shop.product SET v = 'b'; DROP TABLE shop.product`, `"shop"."product" was dropped`},
	{"F41 and made again", `CREATE TABLE shop.product (id serial PRIMARY KEY, v text CHECK (v <> 'x')); CREATE INDEX product_v ON shop.product (v); INSERT INTO shop.product (v) VALUES ('c'), ('d')`, `"shop"."product" is new`},
	{"F41 dropped and made again between two passes", `UPDATE shop.product SET v = 'lost'; DROP TABLE shop.product; CREATE TABLE shop.product (id serial PRIMARY KEY, v text CHECK (v <> 'x'), w int);
		CREATE INDEX product_v ON shop.product (v); INSERT INTO shop.product (v) VALUES ('e'); INSERT INTO shop.product VALUES (77, 'f', 1)`, `"shop"."product" was dropped`},
	{"F41 a view over it", `CREATE VIEW shop.seen AS SELECT v FROM shop.product; CREATE MATERIALIZED VIEW shop.sum AS SELECT count(*) AS n FROM shop.seen;
		CREATE TABLE shop.part (id int PRIMARY KEY, product int REFERENCES shop.product, customer int REFERENCES shop.customer); INSERT INTO shop.part VALUES (1, 77, 1)`, `"shop"."part" is new`},
	{"F41 dropped with what depends on it", `DROP TABLE shop.product CASCADE; UPDATE shop.part SET product = 78`, `"shop"."product" was dropped`},
	{"F41 a table of the plan", `DROP TABLE shop.customer CASCADE; INSERT INTO shop.invoice (customer) VALUES (999)`, `"shop"."customer" was dropped`},
	{"F41 a table of the plan made anew", `DROP TABLE shop.event; CREATE TABLE shop.event (at timestamptz, id int, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
		CREATE TABLE shop.event_2026 PARTITION OF shop.event FOR VALUES FROM ('2026-01-01') TO ('2027-01-01'); INSERT INTO shop.event VALUES ('2026-05-05', 1)`, `"shop"."event" was dropped`},
	{"F41 a tree that came", `CREATE TABLE shop.tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE shop.tree_1 PARTITION OF shop.tree FOR VALUES FROM (0) TO (9); INSERT INTO shop.tree VALUES (1, 'one')`, `"shop"."tree" is new`},
	{"F41 with a later partition", `CREATE TABLE shop.tree_2 PARTITION OF shop.tree FOR VALUES FROM (10) TO (19); INSERT INTO shop.tree VALUES (11, 'two')`, "new partition"},
	{"F41 and dropped whole", `DROP TABLE shop.tree`, `"shop"."tree" was dropped`},
	{"F41 one that is reloaded in the freeze", `DROP TABLE shop.log`, `"shop"."log" was dropped`},
	{"F40 a column is dropped", `CREATE VIEW shop.totals AS SELECT total FROM shop.invoice; CREATE INDEX invoice_total ON shop.invoice (total, customer)`, ""},
	{"F40 with what depends on it", `ALTER TABLE shop.invoice DROP COLUMN total CASCADE; INSERT INTO shop.invoice (customer) VALUES (1000)`, `column "total" was dropped`},
	{"F40 and made again, of another type", `ALTER TABLE shop.invoice ADD COLUMN total int DEFAULT 5; ALTER TABLE shop.invoice DROP COLUMN customer; ALTER TABLE shop.invoice ADD COLUMN customer text; UPDATE shop.invoice SET customer = 'c' || id WHERE id < 10`, `column "customer" was dropped`},
	{"F40 dropped and made again between two passes", `UPDATE shop.invoice SET total = 6 WHERE id < 5; ALTER TABLE shop.invoice DROP COLUMN total; ALTER TABLE shop.invoice ADD COLUMN total bigint DEFAULT 7; UPDATE shop.invoice SET total = 8 WHERE id < 3`, `column "total" was dropped`},
}

// Tables and columns that are dropped on the source are dropped on the target, with on_ddl = "carry",
// and whatever comes again under the same name is carried again. A cutover ends it.
func TestF41DroppedAndMadeAgain(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }
cutover {
  max_write_block = "60s"
  attempts = 3
}`)
	for _, s := range leaves {
		if !t.Run(s.name, func(t *testing.T) { r.carries(t, s) }) {
			t.FailNow()
		}
	}
	r.want(r.target, "SELECT concat(to_regclass('shop.product'), to_regclass('shop.seen'), to_regclass('shop.sum'), to_regclass('shop.customer'), to_regclass('shop.log'), to_regclass('shop.totals'))", "")
	r.env.Journal.Close(t.Context())
	r.open() // the tables that left are no drift of the steps that are done
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	t.Run("F41 when the gates stand", func(t *testing.T) {
		r.carries(t, stage{"", `DROP TABLE shop.part; CREATE TABLE shop.part (id int PRIMARY KEY, v text); INSERT INTO shop.part VALUES (5, 'five')`, `"shop"."part" was dropped`})
	})
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.sameTables(t)
	r.exec(r.target, "INSERT INTO shop.part VALUES (6, 'six'); INSERT INTO shop.event VALUES ('2026-06-06', 1)")
}

// What somebody else made on the target is not dropped with a table; the run stops and names it.
func TestF41DroppedBesideOthers(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.exec(r.target, "CREATE VIEW shop.mine AS SELECT count(*) AS n FROM shop.customer; COMMENT ON VIEW shop.mine IS 'a person made it'")
	r.exec(r.source, "DROP TABLE shop.customer CASCADE")
	if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), "shop\".\"mine") || engine.HintOf(err) == "" {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
	r.want(r.target, "SELECT n::text FROM shop.mine", "20")
	r.exec(r.target, "DROP VIEW shop.mine; CREATE PUBLICATION mine FOR TABLE shop.customer")
	if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), "publication mine lists shop.customer") || engine.HintOf(err) == "" {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
	r.exec(r.target, "DROP PUBLICATION mine")
	r.must(r.catchUp())
	r.want(r.target, "SELECT coalesce(to_regclass('shop.customer')::text, '')", "")
}

// remade is what an ETL job does to a table with a key.
const remade = `DROP TABLE shop.invoice; CREATE TABLE shop.invoice AS SELECT g::bigint AS id, g AS customer, 1.5 AS total FROM generate_series(50, 60) g; ALTER TABLE shop.invoice ADD PRIMARY KEY (id)`

// A table that is dropped and made again after it was looked at, and before its triggers are made right for another
// change, is another table all the same.
func TestF41DroppedWhileCarried(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	sides, err := openSides(t.Context(), r.env, "test")
	r.must(err)
	defer sides.close(context.Background())
	cp := r.env.Journal.Checkpoint(catchUpID, engine.SinkFunc(r.emit))
	for _, c := range []struct {
		sql  string
		meet func([]capture.Change) error
	}{
		{"ALTER TABLE shop.invoice ADD COLUMN more int", func(changes []capture.Change) error {
			_, err := carryDDL(t.Context(), r.env, cp, &carry{changes})
			return err
		}},
		{"ALTER TABLE shop.invoice DISABLE TRIGGER ALL", func(changes []capture.Change) error {
			return startOver(t.Context(), r.env, cp, sides, nil, tableOf(r, "invoice"), changes)
		}},
	} {
		r.exec(r.source, c.sql)
		changes, err := capture.Check(t.Context(), sides.source, r.env.Run, captured(r.env))
		r.must(err)
		r.exec(r.source, remade)
		var redefined *errRedefined
		if err := c.meet(changes); !errors.As(err, &redefined) {
			t.Fatalf("%s: %v", c.sql, err)
		}
		r.must(r.catchUp())
		r.sameTables(t)
	}
}

func tableOf(r *rig, name string) scope.Table {
	return r.env.Scope.Tables[slices.IndexFunc(r.env.Scope.Tables, func(t scope.Table) bool { return t.Name.Name == name })]
}

// Between two processes of the capture step nothing is loaded: the table that is there now is captured.
func TestF41DroppedWhileCapturing(t *testing.T) {
	r := newRig(t, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(r.source, `DROP TABLE shop.lock; CREATE TABLE shop.lock (id int PRIMARY KEY); INSERT INTO shop.lock VALUES (1)`)
	r.must(newCapture(r.env).Apply(t.Context(), engine.StepPlan{}, r.cursor(newCapture(r.env))))
	r.exec(r.source, `INSERT INTO shop.lock VALUES (2)`)
	r.must(r.walk(t.Context(), newCopy(r.env), newCatchUp(r.env)))
	r.sameTables(t)
}

// With a column goes what the run brought, and nothing that somebody made on the target, on the column's own table too.
func TestF40DroppedColumnBesideOthers(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.exec(r.source, "ALTER TABLE shop.invoice DROP COLUMN total")
	for _, c := range []struct{ make, undo, named string }{
		{"CREATE INDEX mine ON shop.invoice (total)", "DROP INDEX shop.mine", `"mine"`},
		{"ALTER TABLE shop.invoice ADD CONSTRAINT mine CHECK (total < 100000)", "ALTER TABLE shop.invoice DROP CONSTRAINT mine", `"mine"`},
		{"CREATE POLICY mine ON shop.invoice USING (total > 5)", "DROP POLICY mine ON shop.invoice", `"mine"`},
		{"ALTER TABLE shop.invoice ADD COLUMN mine numeric GENERATED ALWAYS AS (total * 2) STORED", "ALTER TABLE shop.invoice DROP COLUMN mine", `"mine"`},
		{"CREATE SEQUENCE shop.mine OWNED BY shop.invoice.total; ALTER TABLE shop.invoice ALTER customer SET DEFAULT nextval('shop.mine')", "DROP SEQUENCE shop.mine CASCADE", `"customer"`},
	} {
		r.exec(r.target, c.make)
		if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), c.named) || engine.HintOf(err) == "" {
			t.Errorf("%s: %v, hint %q", c.make, err, engine.HintOf(err))
		}
		r.want(r.target, "SELECT count(*)::text FROM pg_attribute WHERE attrelid = 'shop.invoice'::regclass AND attname = 'total'", "1")
		r.exec(r.target, c.undo)
	}
	r.must(r.catchUp())
	r.sameTables(t)
}

// Rows on the target that are nobody's to throw away stay: those of a table that only has the name of a dropped
// partition, those that the runbook leaves to the target, and those of a table that inherited from a dropped one and
// does no more.
func TestF41DroppedBesideOthersRows(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup+`CREATE TABLE shop.parent (id int PRIMARY KEY); CREATE TABLE shop.child (PRIMARY KEY (id)) INHERITS (shop.parent); INSERT INTO shop.child VALUES (1), (2)`,
		`schema { on_ddl = "carry" }
table "shop.log" { data = "none" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(target, "SET pgrunbook.mark = '"+r.env.Run.Mark+"'; INSERT INTO shop.log VALUES ('7'); ALTER TABLE shop.event DETACH PARTITION shop.event_2026")
	r.exec(source, "ALTER TABLE shop.log ALTER line TYPE varchar(20); ALTER TABLE shop.log ADD COLUMN at int; DROP TABLE shop.event_2026")
	r.must(r.catchUp())
	r.want(target, "SELECT string_agg(line, '') FROM shop.log", "7")
	r.want(target, "SELECT count(*)::text FROM shop.event_2026", "20")
	r.exec(source, "ALTER TABLE shop.child NO INHERIT shop.parent; DROP TABLE shop.parent")
	r.must(r.catchUp())
	r.want(target, "SELECT count(*)::text FROM ONLY shop.child", "2")
}

// By default a dropped table stops the run, named, with what to do.
func TestF41DroppedStops(t *testing.T) {
	r := following(t, "")
	r.exec(r.source, "DROP TABLE shop.invoice")
	err := r.catchUp()
	if err == nil || !strings.Contains(err.Error(), "was dropped") || !strings.Contains(engine.HintOf(err), "on_ddl") {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
	r.want(r.target, "SELECT (to_regclass('shop.invoice') IS NOT NULL)::text", "true")
}

// A partition that a DETACH CONCURRENTLY has left half way has rows that its root does not show: the
// run stops, named, until the rest of it is done.
func TestF43HalfDetached(t *testing.T) {
	source, target := testpg.NewDB(t, testpg.Shared(t, 15)), testpg.NewDB(t, testpg.Shared(t, 18))
	r := newRigOn(t, source, target, shopSetup, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	var conns [2]*pgx.Conn
	for i := range conns {
		conn, err := pgx.Connect(t.Context(), source)
		r.must(err)
		conns[i] = conn
		defer func() { _ = conn.Close(context.Background()) }()
	}
	for i, sql := range []string{"BEGIN; SELECT FROM shop.event", "SET statement_timeout = '1s'"} {
		_, err := conns[i].Exec(t.Context(), sql)
		r.must(err)
	}
	if _, err := conns[1].Exec(t.Context(), "ALTER TABLE shop.event DETACH PARTITION shop.event_2026 CONCURRENTLY"); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Fatalf("the DETACH did not stop half way: %v", err)
	}
	_, err := conns[0].Exec(t.Context(), "ROLLBACK")
	r.must(err)
	if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), "half detached") || !strings.Contains(engine.HintOf(err), "DETACH PARTITION \"shop\".\"event_2026\" FINALIZE") {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
	r.exec(source, "ALTER TABLE shop.event DETACH PARTITION shop.event_2026 FINALIZE")
	r.exec(source, "UPDATE shop.event_2026 SET id = id + 100 WHERE id < 5")
	r.must(r.catchUp())
	r.sameTables(t)
}

package steps

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// stage is DDL on the source, with rows written before and after it, and what a person hears of it.
type stage struct{ name, sql, heard string }

// carriedDDL is made one after the other in one run: each by a rule that the plan names.
var carriedDDL = []stage{
	{"F40 columns added", `
		ALTER TABLE shop.customer ADD COLUMN a text; ALTER TABLE shop.customer ADD COLUMN b int NOT NULL DEFAULT 7;
		ALTER TABLE shop.customer ADD COLUMN c uuid DEFAULT gen_random_uuid();
		ALTER TABLE shop.log ADD COLUMN at date DEFAULT '2026-01-01'; UPDATE shop.customer SET a = 'x' WHERE id < 4; INSERT INTO shop.log VALUES ('new')`, `new column "c"`},
	{"F40 types changed", `
		ALTER TABLE shop.invoice ALTER total TYPE numeric(12, 2) USING total * 2; ALTER TABLE shop.customer ALTER b TYPE bigint;
		ALTER TABLE shop.customer ALTER name DROP NOT NULL; ALTER TABLE shop.log ALTER line TYPE varchar(40);
		INSERT INTO shop.customer (id, name) VALUES (30, NULL); UPDATE shop.invoice SET total = total + 1 WHERE id < 5`, "loaded again"},
	{"F41 new tables", `
		CREATE TABLE shop.product (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text UNIQUE, price numeric CHECK (price > 0), owner int REFERENCES shop.customer);
		INSERT INTO shop.product (code, price, owner) SELECT 'p' || g, g, 1 + g % 20 FROM generate_series(1, 50) g;
		CREATE INDEX product_price ON shop.product (price);
		CREATE TABLE shop.loose (line text); INSERT INTO shop.loose VALUES ('a'), ('a');
		CREATE TABLE shop.tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE shop.tree_1 PARTITION OF shop.tree FOR VALUES FROM (0) TO (100);
		INSERT INTO shop.tree VALUES (1, 'one');
		UPDATE shop.product SET price = price + 1 WHERE id < 10; DELETE FROM shop.product WHERE id = 20`, `"shop"."product" is new`},
	{"F41 new schema", `
		CREATE SCHEMA shop_more; CREATE TYPE shop_more.kind AS ENUM ('a', 'b'); CREATE TABLE shop_more.item (id serial PRIMARY KEY, kind shop_more.kind DEFAULT 'a');
		INSERT INTO shop_more.item (kind) VALUES ('b'), ('a'); CREATE TABLE shop_out.scratch (id int PRIMARY KEY)`, `"shop_more"."item" is new`},
	{"F41 a new foreign table", `
		CREATE FOREIGN DATA WRAPPER away; CREATE SERVER away FOREIGN DATA WRAPPER away; CREATE FOREIGN TABLE shop.away (id int) SERVER away; CREATE TABLE shop.near (id int PRIMARY KEY)`, `"shop"."away" is new`},
	{"F41 that is dropped", `DROP FOREIGN TABLE shop.away; DROP TABLE shop.near`, `dropped on the target too`},
	{"F41 a new sequence", `CREATE SEQUENCE shop.number INCREMENT 5; SELECT nextval('shop.number'), nextval('shop.number')`, `sequence "shop"."number" is new`},
	{"F41 a dropped one", `DROP SEQUENCE shop.spare`, `sequence "shop"."spare" was dropped on the source: dropped on the target too`},
	{"F42 rewrites that change nothing", `VACUUM FULL shop.customer; CLUSTER shop.invoice USING invoice_pkey; REINDEX TABLE shop.product; ALTER TABLE shop.lock SET UNLOGGED; ALTER TABLE shop.lock SET LOGGED;
		UPDATE shop.customer SET a = 'after' WHERE id = 9`, ""},
	{"F43 partitions made, attached and detached", `
		CREATE TABLE shop.tree_2 PARTITION OF shop.tree FOR VALUES FROM (100) TO (200); INSERT INTO shop.tree VALUES (150, 'mid');
		CREATE TABLE shop.tree_3 (id int PRIMARY KEY, v text); INSERT INTO shop.tree_3 VALUES (250, 'came along');
		ALTER TABLE shop.tree ATTACH PARTITION shop.tree_3 FOR VALUES FROM (200) TO (300); ALTER TABLE shop.event DETACH PARTITION shop.event_2026`, "shop.event_2026"},
	{"F43 a table that joined becomes a partition", `CREATE TABLE shop.tree_4 (id int PRIMARY KEY, v text); INSERT INTO shop.tree_4 VALUES (350, 'early')`, `"shop"."tree_4" is new`},
	{"F43 attached later", `ALTER TABLE shop.tree ATTACH PARTITION shop.tree_4 FOR VALUES FROM (300) TO (400); INSERT INTO shop.tree VALUES (351, 'late')`, "became a partition"},
	{"F43 dropped", `DROP TABLE shop.tree_2; INSERT INTO shop.tree VALUES (3, 'three')`, "was detached or dropped"},
	{"F43 another one in its place", `CREATE TABLE shop.tree_2 PARTITION OF shop.tree FOR VALUES FROM (100) TO (150); INSERT INTO shop.tree VALUES (120, 'again')`, "new partition"},
	{"F43 dropped, and two in its place between two passes", `DROP TABLE shop.tree_2; CREATE TABLE shop.tree_2 PARTITION OF shop.tree FOR VALUES FROM (130) TO (200); CREATE TABLE shop.tree_5 PARTITION OF shop.tree FOR VALUES FROM (100) TO (130);
		INSERT INTO shop.tree VALUES (101, 'low'), (199, 'high')`, "was dropped on the source"},
	{"F43 detached", `ALTER TABLE shop.tree DETACH PARTITION shop.tree_3; UPDATE shop.tree_3 SET v = 'alone'`, "was detached or dropped"},
	{"F44 truncated", `TRUNCATE shop.tree_1; TRUNCATE shop.loose RESTART IDENTITY; INSERT INTO shop.tree VALUES (2, 'two'); BEGIN; TRUNCATE shop.customer CASCADE; ROLLBACK`, ""},
	{"F44 truncated with CASCADE", `
		TRUNCATE shop.customer RESTART IDENTITY CASCADE; INSERT INTO shop.customer (id, name) SELECT g, 'again' || g FROM generate_series(1, 5) g;
		INSERT INTO shop.invoice (customer, total) VALUES (1, 1), (2, 2); INSERT INTO shop.product (code, price, owner) VALUES ('q', 1, 3)`, ""},
	{"F46 enums and domains", `
		ALTER TYPE shop.mood ADD VALUE 'fine' BEFORE 'happy'; ALTER TYPE shop.mood ADD VALUE 'last'; ALTER TYPE shop.mood RENAME VALUE 'sad' TO 'blue';
		ALTER DOMAIN shop.positive ADD CONSTRAINT small CHECK (VALUE < 1000); CREATE DOMAIN shop.name AS text;`, "ADD VALUE"},
	{"F46 rows with new labels", `INSERT INTO shop.diary (mood, n) VALUES ('fine', 5), ('last', 6); UPDATE shop.diary SET mood = 'fine' WHERE mood = 'blue' AND id = 2`, ""},
	{"F46 constraints", `ALTER TABLE shop.invoice ADD CONSTRAINT total_ok CHECK (total < 100000); ALTER TABLE shop.diary DROP CONSTRAINT diary_check;
		INSERT INTO shop.diary (id, n) VALUES (-5, 3)`, "check constraint"},
	{"F46 indexes, keys, triggers", `
		CREATE UNIQUE INDEX invoice_u ON shop.invoice (customer, id); ALTER TABLE shop.product ADD CONSTRAINT no_two EXCLUDE (code WITH =);
		CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER touch BEFORE UPDATE ON shop.product FOR EACH ROW EXECUTE FUNCTION shop.touch();
		ALTER TABLE shop.product DROP CONSTRAINT product_code_key; CREATE POLICY pol ON shop.product USING (true); CREATE RULE ru AS ON DELETE TO shop.loose DO ALSO NOTHING`, ""},
	{"F46 views and functions", `
		CREATE VIEW shop.rich AS SELECT id FROM shop.invoice WHERE total > 10; CREATE OR REPLACE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; /* second */ END';
		CREATE OR REPLACE VIEW shop.v AS SELECT id, mood, n FROM shop.diary; CREATE MATERIALIZED VIEW shop.counted AS SELECT count(*) AS n FROM shop.invoice`, "function"},
}

const carriedSetup = `
CREATE SCHEMA shop_out;
CREATE SEQUENCE shop.spare;
CREATE TYPE shop.mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0);
CREATE TABLE shop.diary (id serial PRIMARY KEY, mood shop.mood, n shop.positive, CONSTRAINT diary_check CHECK (id > 0));
CREATE VIEW shop.v AS SELECT id, mood FROM shop.diary;
INSERT INTO shop.diary (mood, n) VALUES ('ok', 1), ('sad', 2);`

// DDL of every kind that has a rule, in catch_up, and some of it again when all triggers and both
// gates stand; then a cutover. Everything that the source has is on the target.
func TestDDLInTheMiddle(t *testing.T) {
	r := newRigOf(t, `"shop.*", "shop_more.*"`, `schema { on_ddl = "carry" }
cutover {
  max_write_block = "60s"
  attempts = 3
}`)
	r.exec(r.source, carriedSetup)
	r.replan()
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	for _, s := range carriedDDL {
		t.Run(s.name, func(t *testing.T) { r.carries(t, s) })
	}
	r.env.Journal.Close(t.Context())
	r.open() // what joined is in the journal
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	t.Run("F41 new when the gates stand", func(t *testing.T) {
		r.carries(t, stage{"", `CREATE TABLE shop.late (id int PRIMARY KEY, v text UNIQUE); INSERT INTO shop.late VALUES (1, 'x');
			ALTER TABLE shop.late ADD COLUMN w int; CREATE INDEX late_w ON shop.late (w)`, `"shop"."late" is new`})
		if err := try(t, r.target, "INSERT INTO shop.late VALUES (2, 'y')"); err == nil {
			t.Error("the target's new table has no gate")
		}
	})
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.sameTables(t)
	r.sameDefinitions(t)
	r.exec(r.target, "INSERT INTO shop.product (code, price) VALUES ('after', 1); INSERT INTO shop.late VALUES (2, 'y'); SELECT 1 / (nextval('shop.number') > 10)::int")
}

// DDL between the plan and the dump, between the dump and the capture, and on a table that the freeze
// reloads, also when it comes after the freeze's own comparison.
func TestF40BeforeCaptureAndAtFreeze(t *testing.T) {
	r := newRigOf(t, `"shop.*"`, `schema { on_ddl = "carry" }
cutover {
  max_write_block = "60s"
  attempts = 1
}`)
	r.exec(r.source, `ALTER TABLE shop.customer ADD COLUMN early text DEFAULT 'e'; ALTER TABLE shop.invoice ALTER total TYPE numeric(12, 2);
		CREATE TABLE shop.event_2027 PARTITION OF shop.event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01'); INSERT INTO shop.event VALUES ('2027-02-02', 1)`)
	r.must(r.walk(t.Context(), newSchema(r.env)))
	r.exec(r.source, `ALTER TABLE shop.customer ADD COLUMN mid int NOT NULL DEFAULT 5; ALTER TABLE shop.customer ALTER name DROP NOT NULL; ALTER TABLE shop.invoice ALTER total SET DEFAULT 9;
		UPDATE shop.customer SET mid = id, name = NULL WHERE id < 4;
		CREATE TABLE shop.event_2028 PARTITION OF shop.event FOR VALUES FROM ('2028-01-01') TO ('2029-01-01'); INSERT INTO shop.event VALUES ('2028-02-02', 1)`)
	r.must(r.walk(t.Context(), newCapture(r.env)))
	if err := try(t, r.target, "INSERT INTO shop.event_2028 VALUES ('2028-03-03', 2)"); err == nil {
		t.Error("the target's new partition has no gate")
	}
	r.env.Journal.Close(t.Context())
	r.open() // as a new process, from the accepted plan
	r.must(r.walk(t.Context(), newCopy(r.env), newCatchUp(r.env)))
	r.sameTables(t)
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.source, "ALTER TABLE shop.log ADD COLUMN one int DEFAULT 3")
	r.must(r.catchUp())
	var once sync.Once
	r.onEvent = func(e engine.Event) {
		if strings.HasPrefix(e.Message, "freeze attempt 1") {
			once.Do(func() { r.exec(r.source, "ALTER TABLE shop.log ADD COLUMN two int DEFAULT 4") })
		}
	}
	err := r.walk(t.Context(), newFreeze(r.env, nil))
	if err == nil || !strings.Contains(err.Error(), `table "shop"."log" changed`) || engine.HintOf(err) == "" {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newVerify(r.env), newFreeze(r.env, nil)))
	r.sameTables(t)
	r.want(r.target, "SELECT count(*)::text FROM shop.log WHERE one = 3 AND two = 4", "20")
	r.exec(r.target, "INSERT INTO shop.invoice (customer) VALUES (1)")
	r.want(r.target, "SELECT count(*)::text FROM shop.invoice WHERE total = 9", "2") // one of old: the default came over
}

// By default the same is named before a row is loaded, and goes on once the target is alike.
func TestF40BeforeCaptureStops(t *testing.T) {
	r := newRig(t, "")
	r.must(r.walk(t.Context(), newSchema(r.env)))
	r.exec(r.source, "ALTER TABLE shop.customer ADD COLUMN mid int")
	err := r.walk(t.Context(), newCapture(r.env))
	if err == nil || !strings.Contains(err.Error(), `table "shop"."customer" changed`) || !strings.Contains(engine.HintOf(err), "ADD COLUMN") {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
	r.exec(r.target, "ALTER TABLE shop.customer ADD COLUMN mid int")
	r.must(r.walk(t.Context(), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(r.source, "UPDATE shop.customer SET mid = id")
	r.must(r.catchUp())
	r.sameTables(t)
}

// replan makes the plan again, after more was made on the source.
func (r *rig) replan() {
	r.t.Helper()
	r.must(r.env.Journal.Abort(r.t.Context()))
	r.env.Journal.Close(r.t.Context())
	r.env.Journal = nil
	r.open()
}

func (r *rig) carries(t *testing.T, s stage) {
	t.Helper()
	r.mu.Lock()
	r.events = nil
	r.mu.Unlock()
	list := []string{s.sql}
	if strings.Contains(s.sql, "VACUUM") { // not in a transaction block
		list = strings.Split(s.sql, ";")
	}
	for _, sql := range list {
		if err := try(t, r.source, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := r.catchUp(); err != nil {
		t.Fatalf("%v; hint: %s", err, engine.HintOf(err))
	}
	if s.heard != "" && !r.heard(s.heard) && !r.heard(strings.ReplaceAll(s.heard, ".", `"."`)) {
		t.Errorf("nobody was told of %q", s.heard)
	}
	r.sameTables(t)
	r.sameDefaults(t)
}

const defaultsQuery = `SELECT string_agg(concat_ws(E'\t', quote_ident(c.relname), quote_ident(a.attname), pg_get_expr(d.adbin, d.adrelid)), E'\n')
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE c.relnamespace = 'shop'::regnamespace AND c.relkind IN ('r', 'p')`

// sameDefaults compares the defaults of columns that both sides have, of partitions and heirs as well.
func (r *rig) sameDefaults(t *testing.T) {
	t.Helper()
	var sides [2]map[string]string
	for i, url := range []string{r.source, r.target} {
		sides[i] = map[string]string{}
		for line := range strings.Lines(query(t, url, defaultsQuery)) {
			parts := append(strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3), "")
			sides[i][parts[0]+"."+parts[1]] = parts[2]
		}
	}
	for _, column := range slices.Sorted(maps.Keys(sides[0])) {
		if def, there := sides[1][column]; there && def != sides[0][column] {
			t.Errorf("the default of %s is %q on the source and %q on the target", column, sides[0][column], def)
		}
	}
}

// sameTables compares every live table of the source's schemas in scope.
func (r *rig) sameTables(t *testing.T) {
	t.Helper()
	tables, err := testpg.AllTables(t.Context(), r.source)
	r.must(err)
	frozen := map[string]bool{"shop.lock": true}
	for _, one := range r.env.Scope.Tables {
		frozen[one.Schema+"."+one.Name.Name] = one.Data != scope.Live // shown by the freeze
	}
	tables = slices.DeleteFunc(tables, func(n string) bool {
		return frozen[n] || strings.HasPrefix(n, "pgrunbook.") || strings.HasPrefix(n, "shop_out.")
	})
	diffs, err := testpg.Diff(t.Context(), r.source, r.target, tables)
	r.must(err)
	for _, d := range diffs {
		t.Error(d)
	}
}

// leftAlone heads what one side alone may have: what is not in scope.
var leftAlone = regexp.MustCompile(`^(shop_out; |.*; Schema: shop_out;)`)

// sameDefinitions compares what pg_dump says of both sides.
func (r *rig) sameDefinitions(t *testing.T) {
	t.Helper()
	if apart := r.definitionsApart(t); apart != "" {
		t.Errorf("the definitions differ (- source, + target):\n%s", apart)
	}
}

func (r *rig) definitionsApart(t *testing.T) string {
	t.Helper()
	var sides [2]string
	for i, url := range []string{r.source, r.target} {
		text, err := testpg.Definitions(t.Context(), url)
		r.must(err)
		blocks := slices.DeleteFunc(strings.Split("\n"+text, "\n-- Name: "), leftAlone.MatchString)
		sides[i] = strings.TrimSpace(strings.Join(blocks, "\n-- Name: "))
	}
	return testpg.LinesApart(sides[0], sides[1])
}

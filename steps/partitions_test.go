package steps

import (
	"context"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const treesSetup = shopSetup + `
CREATE SCHEMA shop_out;
CREATE TABLE shop.hot (at int, id int, v text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE shop.cold (at int, id int, v text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE shop.p1 PARTITION OF shop.hot FOR VALUES FROM (0) TO (10);
CREATE TABLE shop.p2 PARTITION OF shop.hot FOR VALUES FROM (10) TO (20);
CREATE TABLE shop.p3 PARTITION OF shop.hot FOR VALUES FROM (20) TO (30);
CREATE TABLE shop.rest PARTITION OF shop.hot DEFAULT;
CREATE TABLE shop.c1 PARTITION OF shop.cold FOR VALUES FROM (100) TO (200);
INSERT INTO shop.hot SELECT g, g, 'v' FROM generate_series(1, 45) g;
INSERT INTO shop.cold SELECT 100 + g, g, 'v' FROM generate_series(1, 9) g;
CREATE TABLE shop.bare (at int, v text) PARTITION BY RANGE (at);
CREATE TABLE shop.b1 PARTITION OF shop.bare FOR VALUES FROM (0) TO (10);
INSERT INTO shop.bare VALUES (1, 'v'), (1, 'v'), (2, 'w');`

const treesBlocks = `schema { on_ddl = "carry" }
table "shop.bare" { identity = "full_row" }
cutover {
  max_write_block = "60s"
  attempts = 3
}
`

// placed are partitions that get another place on the source, one after the other in one run.
var placed = []stage{
	{"F43 into another tree", `ALTER TABLE shop.hot DETACH PARTITION shop.p1; UPDATE shop.p1 SET v = 'alone' WHERE id = 2;
		ALTER TABLE shop.cold ATTACH PARTITION shop.p1 FOR VALUES FROM (0) TO (10); INSERT INTO shop.cold VALUES (5, 500, 'new')`, "has another place"},
	{"F43 with other bounds", `ALTER TABLE shop.hot DETACH PARTITION shop.p2; ALTER TABLE shop.hot ATTACH PARTITION shop.p2 FOR VALUES FROM (5) TO (20); INSERT INTO shop.hot VALUES (6, 6, 'wider')`, "to another place"},
	{"F43 detached, renamed, and another one of its name", `ALTER TABLE shop.hot DETACH PARTITION shop.p2; ALTER TABLE shop.p2 RENAME TO p2_old;
		CREATE TABLE shop.p2 PARTITION OF shop.hot FOR VALUES FROM (0) TO (20); INSERT INTO shop.hot VALUES (1, 1, 'again'), (15, 15, 'again')`, "has another place"},
	{"F43 made anew with subpartitions", `DROP TABLE shop.p3; CREATE TABLE shop.p3 PARTITION OF shop.hot FOR VALUES FROM (20) TO (30) PARTITION BY LIST (id);
		CREATE TABLE shop.p3_21 PARTITION OF shop.p3 FOR VALUES IN (21); CREATE TABLE shop.p3_rest PARTITION OF shop.p3 DEFAULT; INSERT INTO shop.hot VALUES (22, 21, 'deep'), (22, 22, 'deep')`, "new partition"},
	{"F43 subpartitions of one that is detached and kept", `ALTER TABLE shop.hot DETACH PARTITION shop.p2; ALTER TABLE shop.p2 SET SCHEMA shop_out;
		CREATE TABLE shop.p2 PARTITION OF shop.hot FOR VALUES FROM (0) TO (20) PARTITION BY LIST (id); CREATE TABLE shop.p2_rest PARTITION OF shop.p2 DEFAULT; INSERT INTO shop.hot VALUES (7, 7, 'deep')`, "has another place"},
	{"F43 a branch with other bounds", `DELETE FROM shop.rest WHERE at = 30; ALTER TABLE shop.hot DETACH PARTITION shop.p3; ALTER TABLE shop.hot ATTACH PARTITION shop.p3 FOR VALUES FROM (20) TO (31); INSERT INTO shop.hot VALUES (30, 21, 'branch')`, "to another place"},
	{"F43 a leaf below another branch", `ALTER TABLE shop.p3 DETACH PARTITION shop.p3_21; DELETE FROM shop.p3_21; ALTER TABLE shop.p2 ATTACH PARTITION shop.p3_21 FOR VALUES IN (21); INSERT INTO shop.hot VALUES (8, 21, 'moved')`, "to another place"},
	{"F43 two that change places", `ALTER TABLE shop.cold DETACH PARTITION shop.c1; DELETE FROM shop.c1; ALTER TABLE shop.cold DETACH PARTITION shop.p1; DELETE FROM shop.p1;
		ALTER TABLE shop.cold ATTACH PARTITION shop.c1 FOR VALUES FROM (0) TO (10); ALTER TABLE shop.cold ATTACH PARTITION shop.p1 FOR VALUES FROM (100) TO (200); INSERT INTO shop.cold VALUES (1, 1, 'c'), (101, 1, 'p')`, "to another place"},
	{"F43 a new branch with its leaves", `CREATE TABLE shop.c2 PARTITION OF shop.cold FOR VALUES FROM (600) TO (700) PARTITION BY LIST (id); CREATE TABLE shop.c2_1 PARTITION OF shop.c2 FOR VALUES IN (1);
		CREATE TABLE shop.c2_rest PARTITION OF shop.c2 DEFAULT; INSERT INTO shop.cold VALUES (601, 1, 'leaf'), (602, 2, 'leaf')`, `"shop"."c2" is new`},
	{"F43 a leaf of another tree below a new branch", `ALTER TABLE shop.p2 DETACH PARTITION shop.p3_21; DELETE FROM shop.p3_21; CREATE TABLE shop.c3 PARTITION OF shop.cold FOR VALUES FROM (700) TO (800) PARTITION BY LIST (id);
		ALTER TABLE shop.c3 ATTACH PARTITION shop.p3_21 FOR VALUES IN (21); INSERT INTO shop.cold VALUES (701, 21, 'moved')`, `"shop"."c3" is new`},
	{"F43 defaults of a tree, and of one partition", `ALTER TABLE shop.hot ALTER v SET DEFAULT 'all'; ALTER TABLE shop.rest ALTER v SET DEFAULT 'own'`, `has another default`},
	{"F43 of a branch, and of one partition alone", `ALTER TABLE shop.p3 ALTER v SET DEFAULT 'branch'; ALTER TABLE ONLY shop.p3_rest ALTER v DROP DEFAULT; ALTER TABLE shop.c1 ALTER v SET DEFAULT 'alone'`, `has another default`},
	{"F43 of roots alone, and a column with one", `ALTER TABLE ONLY shop.hot ALTER v SET DEFAULT 'root'; ALTER TABLE shop.cold ADD COLUMN w int DEFAULT 3; ALTER TABLE ONLY shop.cold ALTER w SET DEFAULT 4; ALTER TABLE shop.p1 ALTER w SET DEFAULT 5;
		CREATE TABLE shop.c8 PARTITION OF shop.cold FOR VALUES FROM (80) TO (90); INSERT INTO shop.cold VALUES (81, 1, 'c')`, `has a default of its own`},
	{"F43 attached with defaults of their own", `ALTER TABLE shop.cold DROP COLUMN w; CREATE TABLE shop.p9 (at int, id int, v text DEFAULT 'nine', PRIMARY KEY (at, id)); ALTER TABLE shop.hot ATTACH PARTITION shop.p9 FOR VALUES FROM (90) TO (100);
		CREATE TABLE shop.c9 (LIKE shop.p9 INCLUDING ALL); ALTER TABLE shop.cold ATTACH PARTITION shop.c9 FOR VALUES FROM (90) TO (100); INSERT INTO shop.p9 (at, id) VALUES (91, 1); INSERT INTO shop.c9 (at, id) VALUES (91, 1)`, `has a default of its own`},
	{"F43 out of the default partition", `WITH moved AS (DELETE FROM shop.rest WHERE at < 40 RETURNING *) INSERT INTO shop.customer SELECT 1000 + id, v FROM moved;
		CREATE TABLE shop.p4 PARTITION OF shop.hot FOR VALUES FROM (31) TO (40); INSERT INTO shop.hot SELECT id - 1000, id - 1000, 'back' FROM shop.customer WHERE id > 1030`, "new partition"},
	{"F43 detached, out of what is carried", `ALTER TABLE shop.hot DETACH PARTITION shop.p4; ALTER TABLE shop.p4 SET SCHEMA shop_out`, "was detached on the target"},
	{"F43 and back under another tree", `ALTER TABLE shop_out.p4 SET SCHEMA shop; ALTER TABLE shop.cold ATTACH PARTITION shop.p4 FOR VALUES FROM (31) TO (40); INSERT INTO shop.cold VALUES (31, 1, 'back')`, ""},
	{"F43 with rows, into a tree without a key", `CREATE TABLE shop_out.b2 (at int, v text); INSERT INTO shop_out.b2 VALUES (11, 'v'), (11, 'v'); ALTER TABLE shop_out.b2 SET SCHEMA shop;
		ALTER TABLE shop.bare ATTACH PARTITION shop.b2 FOR VALUES FROM (10) TO (20); INSERT INTO shop.bare VALUES (12, 'x')`, "it has no key"},
	{"F43 one statement that writes to an old partition and to a new one, without a key", `CREATE TABLE shop.b3 PARTITION OF shop.bare FOR VALUES FROM (30) TO (40); INSERT INTO shop.bare VALUES (3, 'both'), (31, 'both'), (31, 'both')`, "new partition"},
	{"F41 a dropped one's name for a table", `DROP TABLE shop.p1; CREATE TABLE shop.p1 (id int PRIMARY KEY, w date); INSERT INTO shop.p1 VALUES (1, '2026-01-01')`, `"shop"."p1" is new`},
	{"F43 a table that came, in a tree that comes", `CREATE TABLE shop.leaf (id int PRIMARY KEY, w text); INSERT INTO shop.leaf VALUES (1, 'one')`, `"shop"."leaf" is new`},
	{"F43 and its tree", `CREATE TABLE shop.young (id int PRIMARY KEY, w text) PARTITION BY RANGE (id); ALTER TABLE shop.young ATTACH PARTITION shop.leaf FOR VALUES FROM (0) TO (10); INSERT INTO shop.young VALUES (2, 'two')`, "became a partition"},
}

// Partitions get other places on the source, and the same on the target, with all their rows; a cutover ends it.
func TestF43OtherPlaces(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, treesSetup, treesBlocks)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	for _, s := range placed {
		if !t.Run(s.name, func(t *testing.T) { r.carries(t, s); r.samePlaces(t) }) {
			t.FailNow()
		}
	}
	t.Run("F43 detached, followed alone, attached later", r.attachedLater)
	if t.Failed() {
		t.FailNow()
	}
	r.env.Journal.Close(t.Context())
	r.open() // as a new process
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	t.Run("F43 when the gates stand", func(t *testing.T) {
		r.carries(t, stage{"", `ALTER TABLE shop.cold DETACH PARTITION shop.p4; DELETE FROM shop.p4 WHERE at = 39; ALTER TABLE shop.hot ATTACH PARTITION shop.p4 FOR VALUES FROM (31) TO (39); INSERT INTO shop.hot VALUES (33, 1, 'late')`, "has another place"})
		r.samePlaces(t)
	})
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.sameTables(t)
	r.samePlaces(t)
	r.exec(r.target, "INSERT INTO shop.hot VALUES (34, 1, 'after'); INSERT INTO shop.cold VALUES (2, 2, 'after')")
}

// attachedLater detaches partitions that follow as tables of their own until they are attached again, where they were:
// after passes, and before their tree's capture has accepted that they went.
func (r *rig) attachedLater(t *testing.T) {
	again := `ALTER TABLE shop.cold ATTACH PARTITION shop.c1 FOR VALUES FROM (0) TO (10); ALTER TABLE shop.hot ATTACH PARTITION shop.p3 FOR VALUES FROM (20) TO (31);
		INSERT INTO shop.cold VALUES (2, 7, 'again') ON CONFLICT (at, id) DO UPDATE SET v = 'anew'; INSERT INTO shop.hot VALUES (23, 7, 'again') ON CONFLICT (at, id) DO UPDATE SET v = 'anew'`
	detach := `ALTER TABLE shop.cold DETACH PARTITION shop.c1; UPDATE shop.c1 SET v = 'alone'; ALTER TABLE shop.hot DETACH PARTITION shop.p3; UPDATE shop.p3 SET v = 'alone'`
	r.carries(t, stage{"", detach, `"shop"."c1" is new`})
	r.carries(t, stage{"", again, "became a partition"})
	r.samePlaces(t)
	r.exec(r.source, detach)
	r.must(r.env.Journal.Reopen(t.Context(), catchUpID, true, "it is a test"))
	r.must(r.walk(t.Context(), onlyDefinitions{&catchUpStep{env: r.env}}))
	r.carries(t, stage{"", again, "became a partition"})
	r.samePlaces(t)
}

// onlyDefinitions is a catch_up that ends before it looks at what is captured.
type onlyDefinitions struct{ *catchUpStep }

func (s onlyDefinitions) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	return s.definitions(ctx, cp)
}

// samePlaces compares the partitions of both sides with their parents and bounds.
func (r *rig) samePlaces(t *testing.T) {
	t.Helper()
	const places = `SELECT coalesce(string_agg(concat_ws(' ', h.inhrelid::regclass, h.inhparent::regclass, pg_get_expr(c.relpartbound, c.oid), pg_get_partkeydef(c.oid)), E'\n' ORDER BY h.inhrelid::regclass::text), '')
		FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid WHERE c.relkind IN ('r', 'p')`
	if s, d := query(t, r.source, places), query(t, r.target, places); s != d {
		t.Errorf("the source's partitions are\n%s\nthose of the target\n%s", s, d)
	}
}

// The same before the rows are read, and while they are.
func TestF43OtherPlacesWhileLoading(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, treesSetup, treesBlocks)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(source, `ALTER TABLE shop.hot DETACH PARTITION shop.p1; ALTER TABLE shop.cold ATTACH PARTITION shop.p1 FOR VALUES FROM (0) TO (10);
		ALTER TABLE shop.hot DETACH PARTITION shop.p2; ALTER TABLE shop.hot ATTACH PARTITION shop.p2 FOR VALUES FROM (0) TO (20); INSERT INTO shop.hot VALUES (2, 2, 'wider');
		CREATE TABLE shop.b2 PARTITION OF shop.bare FOR VALUES FROM (10) TO (20); INSERT INTO shop.bare VALUES (11, 'x')`)
	r.must(r.walk(t.Context(), newCopy(r.env), newCatchUp(r.env)))
	r.sameTables(t)
	r.samePlaces(t)
}

// What a person made on the target under a partition's name is not dropped, nor is a table of the run that became a
// partition: the run stops, named, and goes on when the way is free. Without the rule each change stops it.
func TestF43OtherPlacesStop(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, treesSetup, treesBlocks+`table "shop.customer" { data = "at_freeze" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	stops := func(named string) {
		t.Helper()
		if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), named) || engine.HintOf(err) == "" {
			t.Fatalf("%v, hint %q", err, engine.HintOf(err))
		}
	}
	r.exec(target, "CREATE TABLE shop.p5 (mine int); INSERT INTO shop.p5 VALUES (7)")
	r.exec(source, "CREATE TABLE shop.p5 PARTITION OF shop.cold FOR VALUES FROM (500) TO (600); INSERT INTO shop.cold VALUES (501, 1, 'v')")
	stops("which this run did not bring")
	r.want(target, "SELECT mine::text FROM shop.p5", "7")
	r.exec(target, "ALTER TABLE shop.p5 RENAME TO mine")
	r.must(r.catchUp())
	r.exec(source, "CREATE TABLE shop.some (id int, name text) PARTITION BY RANGE (id); ALTER TABLE shop.invoice DROP CONSTRAINT IF EXISTS invoice_customer_fkey; ALTER TABLE shop.some ATTACH PARTITION shop.customer FOR VALUES FROM (0) TO (9999)")
	stops("became a partition of another one")
	r.exec(source, "ALTER TABLE shop.some DETACH PARTITION shop.customer; DROP TABLE shop.some")
	r.must(r.catchUp())
	r.sameTables(t)
	r.samePlaces(t)
	r.env.Runbook.Schema.OnDDL = "stop"
	r.exec(source, "ALTER TABLE shop.hot DETACH PARTITION shop.p2; DELETE FROM shop.p2 WHERE at < 12; ALTER TABLE shop.hot ATTACH PARTITION shop.p2 FOR VALUES FROM (12) TO (20)")
	stops("to another place")
	r.env.Runbook.Schema.OnDDL = "carry"
	r.must(r.catchUp())
	r.sameTables(t)
	r.samePlaces(t)
}

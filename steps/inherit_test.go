package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const heirsSetup = shopSetup + `
CREATE TABLE shop.base (id int PRIMARY KEY, v text);
CREATE TABLE shop.kid (id int PRIMARY KEY, v text);
CREATE TABLE shop.other (id int PRIMARY KEY, v text);
CREATE TABLE shop.lone (id int PRIMARY KEY, v text); INSERT INTO shop.lone SELECT g, 'l' FROM generate_series(1, 10) g;
CREATE TABLE shop.note (n int, v text);
CREATE TABLE shop.zone (id int PRIMARY KEY, v text, n text NOT NULL);
CREATE TABLE shop.able (x int, PRIMARY KEY (id)) INHERITS (shop.zone);
CREATE TABLE shop.able_too (y int, PRIMARY KEY (id)) INHERITS (shop.able);
INSERT INTO shop.zone SELECT g, 'z', 'zone' || g FROM generate_series(1, 10) g;
INSERT INTO shop.able SELECT g, 'a', 'able' || g, g FROM generate_series(1, 30) g;
INSERT INTO shop.able_too SELECT g, 't', 'too' || g, g, g FROM generate_series(1, 30) g;
INSERT INTO shop.base SELECT g, 'v' FROM generate_series(1, 10) g;
INSERT INTO shop.kid SELECT g, 'k' FROM generate_series(5, 20) g;
INSERT INTO shop.other SELECT g, 'o' FROM generate_series(1, 10) g;
INSERT INTO shop.note SELECT g, 'n' FROM generate_series(1, 10) g;
CREATE SCHEMA shop_out; CREATE TABLE shop_out.parent (id int, v text);`

// heirsDDL is inheritance that comes and goes, one after the other in one run.
var heirsDDL = []stage{
	{"F59 a table comes to inherit", `ALTER TABLE shop.kid INHERIT shop.base; UPDATE shop.base SET v = 'through the parent' WHERE id BETWEEN 3 AND 8; DELETE FROM shop.base WHERE id = 9`, `ALTER TABLE "shop"."kid" INHERIT "shop"."base"`},
	{"F59 and is written to through its parent", `UPDATE shop.base SET v = v || '!' WHERE id < 7; DELETE FROM shop.base WHERE id = 5; INSERT INTO shop.kid VALUES (30, 'x')`, ``},
	{"F59 columns of both", `ALTER TABLE shop.base ADD COLUMN w int DEFAULT 3; UPDATE shop.base SET w = id WHERE id > 6`, `new column "w"`},
	{"F59 a new table inherits from one that has changed", `ALTER TABLE shop.other ADD COLUMN y int DEFAULT 4; CREATE TABLE shop.late (x int, PRIMARY KEY (id)) INHERITS (shop.other); INSERT INTO shop.late VALUES (50, 'l', 1, 2), (3, 'l', 1, 2);
		UPDATE shop.other SET v = 'p' WHERE id IN (3, 50)`, `"shop"."late" is new`},
	{"F59 a parent comes and goes between two looks", `ALTER TABLE shop.lone INHERIT shop_out.parent; UPDATE shop_out.parent SET v = 'unseen' WHERE id < 4; DELETE FROM shop_out.parent WHERE id = 5; ALTER TABLE shop.lone NO INHERIT shop_out.parent`, "loaded again"},
	{"F59 the type of an inherited column, rows as they are", `ALTER TABLE shop.zone ALTER v TYPE varchar COLLATE "C"; UPDATE shop.zone SET v = v || '?' WHERE id < 4`, `column "v" has another type`},
	{"F59 the type of an inherited column, without a cast", `ALTER TABLE shop.zone ALTER n TYPE int USING length(n); UPDATE shop.zone SET n = n + 1 WHERE id < 4`, "loaded again"},
	{"F59 a parent alone is read again, and casts its heirs", `ALTER TABLE shop.zone ALTER v TYPE text; ALTER TABLE ONLY shop.zone ENABLE TRIGGER ALL`, "its rows went on the target"},
	{"F59 what inherited columns demand", `ALTER TABLE shop.zone ALTER n DROP NOT NULL; UPDATE shop.zone SET v = 'void' WHERE v IS NULL OR id = 7; ALTER TABLE shop.zone ALTER v SET NOT NULL; UPDATE shop.able SET n = NULL WHERE id = 8`, "SET NOT NULL"},
	{"F59 inherited columns are dropped", `ALTER TABLE shop.zone DROP COLUMN n; UPDATE shop.zone SET v = 'less' WHERE id = 9`, `column "n" was dropped`},
	{"F59 a default of a parent alone", `ALTER TABLE ONLY shop.zone ALTER v SET DEFAULT 'alone'`, `column "v" has another default`},
	{"F59 a default of a parent, and others of its heirs", `ALTER TABLE shop.zone ALTER v SET DEFAULT 'all'; ALTER TABLE shop.able ALTER v SET DEFAULT 'own'; ALTER TABLE ONLY shop.able_too ALTER v DROP DEFAULT`, `column "v" has another default`},
	{"F59 a new column with other defaults below", `ALTER TABLE shop.zone ADD COLUMN d int DEFAULT 3; ALTER TABLE ONLY shop.zone ALTER d SET DEFAULT 7; ALTER TABLE shop.able_too ALTER d SET DEFAULT 9`, `new column "d"`},
	{"F59 a column of an heir that its parent gets with another default", `ALTER TABLE shop.able ADD COLUMN e int DEFAULT 5; ALTER TABLE shop.zone ADD COLUMN e int DEFAULT 6; UPDATE shop.zone SET e = 1 WHERE id < 3`, `new column "e"`},
	{"F59 and keeps when its parent loses it", `ALTER TABLE shop.zone DROP COLUMN e; UPDATE shop.able SET e = 77 WHERE id < 5`, `column "e" was dropped`},
	{"F59 columns of heirs in all generations, which their parents get", `ALTER TABLE shop.able_too ADD COLUMN g int NOT NULL DEFAULT 1, ADD COLUMN h int GENERATED ALWAYS AS (g + y) STORED; ALTER TABLE shop.zone ADD COLUMN s text;
		ALTER TABLE shop.able ADD COLUMN g int DEFAULT 2, ADD COLUMN i int NOT NULL DEFAULT 3; ALTER TABLE shop.zone ADD COLUMN g int, ADD COLUMN i int NOT NULL DEFAULT 4, ADD COLUMN j int GENERATED ALWAYS AS (length(s)) STORED;
		UPDATE shop.zone SET s = 's', g = coalesce(g, 0) + 1 WHERE id < 5`, `new column "i"`},
	{"F59 and keep when their parents lose them", `ALTER TABLE shop.zone DROP COLUMN j, DROP COLUMN g, DROP COLUMN i; ALTER TABLE shop.able DROP COLUMN g; UPDATE shop.able SET i = 78 WHERE id < 4; UPDATE shop.able_too SET g = 79 WHERE id < 3`, `column "g" was dropped`},
	{"F59 a column that rows below got otherwise", `ALTER TABLE shop.zone ADD COLUMN f int DEFAULT 6; ALTER TABLE ONLY shop.zone ALTER f SET DEFAULT 9; CLUSTER shop.zone USING zone_pkey`, "got other values"},
	{"F59 of a table without a key", `CREATE TABLE shop.note_kid () INHERITS (shop.note); INSERT INTO shop.note_kid VALUES (99, 'k'); UPDATE shop.note SET v = 'both' WHERE n > 8; DELETE FROM shop.note WHERE n = 2`, `"shop"."note_kid" is new`},
	{"F59 of tables that the freeze reloads", `CREATE TABLE shop.log_kid () INHERITS (shop.log); CREATE TABLE shop.log_late (line text)`, ``},
	{"F59 and again", `ALTER TABLE shop.log_kid NO INHERIT shop.log; ALTER TABLE shop.log_late INHERIT shop.log`, `table "shop"."log_late" changed`},
	{"F59 a live table inherits from such a one", `CREATE TABLE shop.log_live (id int PRIMARY KEY) INHERITS (shop.log); INSERT INTO shop.log_live VALUES ('line', 1)`, `"shop"."log_live" is new`},
	{"F59 and has its column's type from there", `ALTER TABLE shop.log ALTER line TYPE varchar; UPDATE shop.log SET line = line || '!'; INSERT INTO shop.log_live VALUES ('more', 2)`, `table "shop"."log" changed`},
	{"F59 and gets a column with it", `ALTER TABLE shop.log ADD COLUMN k int DEFAULT 4; ALTER TABLE ONLY shop.log ALTER k DROP DEFAULT; INSERT INTO shop.log_live VALUES ('new', 3)`, `table "shop"."log" changed`},
	{"F59 a table inherits no more, and keeps what its parent loses", `ALTER TABLE shop.late NO INHERIT shop.other; ALTER TABLE shop.other DROP COLUMN v; UPDATE shop.late SET v = 'kept' WHERE id = 3`, `NO INHERIT`},
	{"F59 a parent is dropped", `ALTER TABLE shop.kid NO INHERIT shop.base; DROP TABLE shop.base; UPDATE shop.kid SET v = 'alone' WHERE id < 8`, `"shop"."base" was dropped`},
}

// Inheritance that a table gains or loses is carried, and row triggers take the place of statement triggers. Another
// process goes on with these.
func TestF59InheritanceInMidRun(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, heirsSetup, `schema { on_ddl = "carry" }
table "shop.note*" { identity = "full_row" }
`)
	first := []engine.Step{newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)}
	r.must(r.walk(t.Context(), first...))
	for i, s := range heirsDDL {
		t.Run(s.name, func(t *testing.T) { r.carries(t, s) })
		if i == 0 {
			r.env.Journal.Close(t.Context())
			r.open() // as a new process, from the accepted plan
			if kid := tableOf(r, "kid"); kid.Capture != scope.Row {
				t.Errorf("another process has kid with %s triggers", kid.Capture)
			}
			r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env)))
		}
	}
	const parents = "SELECT coalesce(string_agg(inhrelid::regclass || ' ' || inhparent::regclass, ', ' ORDER BY 1), '') FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid WHERE c.relkind = 'r' AND NOT c.relispartition AND h.inhrelid::regclass::text LIKE 'shop.%'"
	r.want(r.target, strings.Replace(parents, "ORDER BY 1", "ORDER BY inhrelid::regclass::text", 1), "shop.able shop.zone, shop.able_too shop.able, shop.log_late shop.log, shop.log_live shop.log, shop.note_kid shop.note")
	r.exec(r.source, "ALTER TABLE shop.kid DROP COLUMN w; ALTER TABLE shop.kid INHERIT shop_out.parent")
	err := r.catchUp()
	if err == nil || !strings.Contains(err.Error(), `"shop_out"."parent"`) || !strings.Contains(engine.HintOf(err), `ALTER TABLE "shop"."kid" NO INHERIT "shop_out"."parent"`) {
		t.Fatalf("%v, hint %q", err, engine.HintOf(err))
	}
	r.exec(r.source, "ALTER TABLE shop.kid NO INHERIT shop_out.parent; UPDATE shop.kid SET v = 'end'")
	r.must(r.catchUp())
	r.sameTables(t)
	r.must(r.walk(t.Context(), newConstraints(r.env)))
	r.sameDefinitions(t)
}

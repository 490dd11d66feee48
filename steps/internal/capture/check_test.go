package capture

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const checkSetup = `
CREATE TABLE plain (id int PRIMARY KEY, v varchar(10), n int);
INSERT INTO plain SELECT g, 'v', g FROM generate_series(1, 10) g;
CREATE TABLE ref (id int PRIMARY KEY, p int DEFAULT 5, g int GENERATED ALWAYS AS (id + 1) STORED);
INSERT INTO ref VALUES (1, 1);
CREATE TABLE part (id int, g int, v text, PRIMARY KEY (g, id)) PARTITION BY RANGE (g);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
INSERT INTO part SELECT g, g, 'v' FROM generate_series(1, 19) g;`

var checkCases = []struct {
	name, sql string
	want      []string // rule and what, with SQL where carried
}{
	{"nothing", `SELECT 1`, nil},
	{"maintenance", `VACUUM FULL public.plain; CLUSTER public.plain USING plain_pkey; REINDEX TABLE public.plain; ANALYZE public.plain; VACUUM FULL pg_attribute; VACUUM FULL pg_proc; VACUUM FREEZE pg_proc`, nil},
	{"set unlogged and logged", `ALTER TABLE public.plain SET UNLOGGED; ALTER TABLE public.plain SET LOGGED`, nil},
	{"statistics and storage", `ALTER TABLE public.plain ALTER v SET STATISTICS 500; ALTER TABLE public.plain ALTER v SET STORAGE EXTERNAL`, nil},
	{"grants and comments", `GRANT SELECT ON public.plain TO other_reader; GRANT SELECT (v) ON public.plain TO other_reader; COMMENT ON COLUMN public.plain.v IS 'x'`, nil},
	{"indexes and foreign keys", `CREATE INDEX ON public.plain (v); CREATE UNIQUE INDEX ON public.plain (n); ALTER TABLE public.ref ADD FOREIGN KEY (p) REFERENCES public.plain`, nil},
	{"application triggers", `CREATE TRIGGER mine BEFORE UPDATE ON public.plain FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()`, nil},
	{"key rebuilt", `REINDEX TABLE CONCURRENTLY public.plain`, nil},
	{"truncate", `TRUNCATE public.plain; TRUNCATE public.part`, nil},
	{"column added", `ALTER TABLE public.plain ADD COLUMN w text COLLATE "C" DEFAULT 'a b'`, []string{`carry column_added: ALTER TABLE "public"."plain" ADD COLUMN "w" text COLLATE pg_catalog."C" DEFAULT 'a b'::text`}},
	{"volatile column added", `ALTER TABLE public.plain ADD COLUMN w float8 DEFAULT random()`, []string{`carry column_added: ALTER TABLE "public"."plain" ADD COLUMN "w" double precision DEFAULT random()`, "recopy rewritten"}},
	{"varchar widened", `ALTER TABLE public.plain ALTER v TYPE varchar(50)`, []string{`carry column_type: ALTER TABLE "public"."plain" ALTER COLUMN "v" TYPE character varying(50)`}},
	{"type changed by rewrite", `ALTER TABLE public.plain ALTER n TYPE bigint USING n + 1`, []string{`carry column_type: ALTER TABLE "public"."plain" ALTER COLUMN "n" TYPE bigint`, "recopy rewritten"}},
	{"same type by rewrite", `ALTER TABLE public.plain ALTER n TYPE int USING n + 1`, []string{"recopy rewritten"}},
	{"null and default", `ALTER TABLE public.plain ALTER v SET DEFAULT 'd'; ALTER TABLE public.plain ALTER v SET NOT NULL`, []string{
		`carry column_null: ALTER TABLE "public"."plain" ALTER COLUMN "v" SET NOT NULL`,
		`carry column_default: ALTER TABLE ONLY "public"."plain" ALTER COLUMN "v" SET DEFAULT 'd'::character varying`,
	}},
	{"default of a tree", `ALTER TABLE public.part ALTER v SET DEFAULT 'all'`, []string{`carry column_default: ALTER TABLE "public"."part" ALTER COLUMN "v" SET DEFAULT 'all'::text`}},
	{"default of a partition", `ALTER TABLE public.part_1 ALTER v SET DEFAULT 'own'`, []string{`carry column_default: ALTER TABLE ONLY "public"."part_1" ALTER COLUMN "v" SET DEFAULT 'own'::text`}},
	{"default of a tree, and another one of a partition", `ALTER TABLE public.part ALTER v SET DEFAULT 'all'; ALTER TABLE public.part_1 ALTER v SET DEFAULT 'own'`, []string{
		`carry column_default: ALTER TABLE ONLY "public"."part" ALTER COLUMN "v" SET DEFAULT 'all'::text`,
		`carry column_default: ALTER TABLE ONLY "public"."part_1" ALTER COLUMN "v" SET DEFAULT 'own'::text`,
		`carry column_default: ALTER TABLE ONLY "public"."part_2" ALTER COLUMN "v" SET DEFAULT 'all'::text`,
	}},
	{"default of a root alone", `ALTER TABLE ONLY public.part ALTER v SET DEFAULT 'root'`, []string{`carry column_default: ALTER TABLE ONLY "public"."part" ALTER COLUMN "v" SET DEFAULT 'root'::text`}},
	{"column dropped", `ALTER TABLE public.plain DROP COLUMN v`, []string{`carry column_dropped: ALTER TABLE "public"."plain" DROP COLUMN IF EXISTS "v" CASCADE`}},
	{"column of the key dropped", `ALTER TABLE public.plain DROP COLUMN id CASCADE`, []string{"stop column_dropped", "stop key_changed"}},
	{"column renamed", `ALTER TABLE public.plain RENAME v TO w`, []string{"stop column_renamed"}},
	{"expression of a generated column (17)", `ALTER TABLE public.ref ALTER g SET EXPRESSION AS (id * 2)`, []string{"stop column_default", "recopy rewritten"}},
	{"expression of a virtual column (18)", `ALTER TABLE public.ref ALTER virt SET EXPRESSION AS (id * 2)`, []string{"stop column_default"}},
	{"generated no longer (13)", `ALTER TABLE public.ref ALTER g DROP EXPRESSION; ALTER TABLE public.ref ALTER g SET DEFAULT 3`, []string{
		`carry column_generated: ALTER TABLE "public"."ref" ALTER COLUMN "g" DROP EXPRESSION IF EXISTS`,
		`carry column_default: ALTER TABLE ONLY "public"."ref" ALTER COLUMN "g" SET DEFAULT 3`,
	}},
	{"generated column added", `ALTER TABLE public.ref ADD COLUMN h int GENERATED ALWAYS AS (id * 3) STORED`, []string{`carry column_added: ALTER TABLE "public"."ref" ADD COLUMN IF NOT EXISTS "h" integer GENERATED ALWAYS AS ((id * 3)) STORED`, "recopy rewritten"}},
	{"virtual column added (18)", `ALTER TABLE public.ref ADD COLUMN h int GENERATED ALWAYS AS (id * 3) VIRTUAL`, []string{`carry column_added: ALTER TABLE "public"."ref" ADD COLUMN IF NOT EXISTS "h" integer GENERATED ALWAYS AS ((id * 3)) VIRTUAL`}},
	{"identity", `ALTER TABLE public.plain ALTER id ADD GENERATED ALWAYS AS IDENTITY`, []string{"carry column_identity: "}},
	{"identity column added", `ALTER TABLE public.ref ADD COLUMN i int GENERATED ALWAYS AS IDENTITY`, []string{`carry column_added: ALTER TABLE "public"."ref" ADD COLUMN "i" integer`, "recopy rewritten"}},
	{"key type", `ALTER TABLE public.plain ALTER id TYPE bigint`, []string{"stop column_type", "recopy rewritten"}},
	{"key dropped", `ALTER TABLE public.plain DROP CONSTRAINT plain_pkey`, []string{"stop key_changed"}},
	{"table renamed", `ALTER TABLE public.plain RENAME TO plane`, []string{"stop renamed"}},
	{"two tables swap names", `ALTER TABLE public.plain RENAME TO swap; ALTER TABLE public.part RENAME TO plain; ALTER TABLE public.swap RENAME TO part`, []string{"stop renamed", "stop renamed"}},
	{"table dropped", `DROP TABLE public.plain`, []string{"leave dropped"}},
	{"table replaced", `CREATE TABLE public.new (LIKE public.plain INCLUDING ALL); DROP TABLE public.plain; ALTER TABLE public.new RENAME TO plain`, []string{"leave dropped"}},
	{"writes behind disabled triggers", `BEGIN; ALTER TABLE public.plain DISABLE TRIGGER USER; UPDATE public.plain SET v = 'hidden'; ALTER TABLE public.plain ENABLE ALWAYS TRIGGER pgrunbook_capture_upd; COMMIT`, []string{"recopy tampered"}},
	{"ENABLE TRIGGER ALL", `ALTER TABLE public.plain ENABLE TRIGGER ALL`, []string{"recopy tampered"}},
	{"function replaced", `CREATE OR REPLACE FUNCTION pgrunbook.capture_1() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`, []string{"recopy tampered"}},
	{"function replaced, written, put back", putBack("capture_2", "UPDATE public.part SET v = ''hidden''"), []string{"recopy tampered"}},
	{"function with other settings, written, put back", `ALTER FUNCTION pgrunbook.capture_1() SET session_replication_role = replica; ALTER FUNCTION pgrunbook.capture_1() RESET ALL`, []string{"recopy tampered"}},
	{"trigger dropped", `DROP TRIGGER pgrunbook_capture_del ON public.plain`, []string{"recopy tampered"}},
	{"partition made", `CREATE TABLE public.part_3 PARTITION OF public.part FOR VALUES FROM (20) TO (30)`, []string{`carry partition_added: CREATE TABLE "public"."part_3" PARTITION OF "public"."part" FOR VALUES FROM (20) TO (30)`}},
	{
		"partitioned partition made", `CREATE TABLE public.part_3 PARTITION OF public.part FOR VALUES FROM (20) TO (30) PARTITION BY LIST (id); CREATE TABLE public.part_3d PARTITION OF public.part_3 DEFAULT`,
		[]string{`carry partition_added: CREATE TABLE "public"."part_3" PARTITION OF "public"."part" FOR VALUES FROM (20) TO (30) PARTITION BY LIST (id)`, `carry partition_added: CREATE TABLE "public"."part_3d" PARTITION OF "public"."part_3" DEFAULT`},
	},
	{"partition detached and attached", `ALTER TABLE public.part DETACH PARTITION public.part_1; ALTER TABLE public.part ATTACH PARTITION public.part_1 FOR VALUES FROM (0) TO (10)`, []string{"recopy partition_moved"}},
	{
		"partition attached with other bounds", `ALTER TABLE public.part DETACH PARTITION public.part_1; ALTER TABLE public.part ATTACH PARTITION public.part_1 FOR VALUES FROM (-5) TO (10)`,
		[]string{`carry partition_moved: DROP TABLE "public"."part_1"; CREATE TABLE "public"."part_1" PARTITION OF "public"."part" FOR VALUES FROM ('-5') TO (10)`},
	},
	{
		"partition attached below another one", `ALTER TABLE public.part DETACH PARTITION public.part_1; CREATE TABLE public.low PARTITION OF public.part FOR VALUES FROM (0) TO (10) PARTITION BY LIST (id); ALTER TABLE public.low ATTACH PARTITION public.part_1 DEFAULT`,
		[]string{
			`carry partition_added: CREATE TABLE "public"."low" PARTITION OF "public"."part" FOR VALUES FROM (0) TO (10) PARTITION BY LIST (id)`,
			`carry partition_moved: DROP TABLE "public"."part_1"; CREATE TABLE "public"."part_1" PARTITION OF "public"."low" DEFAULT`,
		},
	},
	{
		"partition made anew, partitioned", `DROP TABLE public.part_1; CREATE TABLE public.part_1 PARTITION OF public.part FOR VALUES FROM (0) TO (10) PARTITION BY LIST (id); CREATE TABLE public.part_1d PARTITION OF public.part_1 DEFAULT`,
		[]string{
			`carry partition_added: CREATE TABLE "public"."part_1" PARTITION OF "public"."part" FOR VALUES FROM (0) TO (10) PARTITION BY LIST (id)`,
			`carry partition_added: CREATE TABLE "public"."part_1d" PARTITION OF "public"."part_1" DEFAULT`, "recopy partition_removed",
		},
	},
	{"partition dropped", `DROP TABLE public.part_1`, []string{"recopy partition_removed"}},
	{"inherited", `CREATE TABLE public.kid () INHERITS (public.plain)`, []string{"carry inheritance: "}},
	{
		"a parent comes and goes in one transaction (14)", `CREATE TABLE public.mother (id int, v varchar(10)); BEGIN; ALTER TABLE public.plain INHERIT public.mother; UPDATE public.mother SET v = 'unseen'; ALTER TABLE public.plain NO INHERIT public.mother; COMMIT`,
		[]string{"recopy inheritance"},
	},
	{
		"in three, beside another change (14)", `CREATE TABLE public.mother (v varchar(10), id int); ALTER TABLE public.plain INHERIT public.mother; DELETE FROM public.mother WHERE id = 3; ALTER TABLE public.plain NO INHERIT public.mother; DROP TABLE public.mother; ALTER TABLE public.plain ALTER n SET STATISTICS 7`,
		[]string{"recopy inheritance"},
	},
	{"of a table with row triggers", `CREATE TABLE public.tree (id int NOT NULL, g int NOT NULL, v text) PARTITION BY LIST (g); ALTER TABLE public.tree ATTACH PARTITION public.part DEFAULT; UPDATE public.tree SET v = 'seen'; ALTER TABLE public.tree DETACH PARTITION public.part`, nil},
	{"attached and detached (14)", `CREATE TABLE public.tree (id int NOT NULL, v varchar(10), n int) PARTITION BY LIST (n); ALTER TABLE public.tree ATTACH PARTITION public.plain DEFAULT; UPDATE public.tree SET v = 'unseen'; ALTER TABLE public.tree DETACH PARTITION public.plain`, []string{"recopy inheritance"}},
	{"a default set to what it was", `ALTER TABLE public.ref ALTER p SET DEFAULT 5`, nil},
	{"attached elsewhere (14)", `CREATE TABLE public.tree (id int NOT NULL, v varchar(10), n int) PARTITION BY LIST (n); ALTER TABLE public.tree ATTACH PARTITION public.plain DEFAULT`, []string{"stop inheritance"}},
	{"schema replaced", `ALTER SCHEMA public RENAME TO live; CREATE SCHEMA public`, []string{"stop renamed", "stop renamed", "stop renamed"}},
}

// putBack gives a function of ours another body while something is written. Quotes in sql are doubled.
func putBack(function, sql string) string {
	return fmt.Sprintf(`DO $$ DECLARE def text := pg_get_functiondef('pgrunbook.%[1]s'::regproc); BEGIN
  EXECUTE 'CREATE OR REPLACE FUNCTION pgrunbook.%[1]s() RETURNS trigger LANGUAGE plpgsql AS ''BEGIN RETURN NULL; END'''; EXECUTE '%[2]s'; EXECUTE def; END $$`, function, sql)
}

func describe(changes []Change) []string {
	var list []string
	for _, c := range changes {
		s := string(c.Rule) + " " + string(c.What)
		if c.Rule == Carry {
			s += ": " + c.SQL
		}
		list = append(list, s)
	}
	return list
}

func TestF36W7CheckNamesWhatFiresNoTrigger(t *testing.T) {
	for _, major := range testpg.Some(12, 15, 18) {
		d := newDB(t, major, checkSetup)
		su := d.connect(d.url)
		_ = d.try(su, "CREATE ROLE other_reader") // there already in a cluster that another test uses
		for _, c := range checkCases {
			var since int // older servers lack it; before 14 they refuse to attach a table with transition tables
			if _, err := fmt.Sscanf(c.name[max(0, strings.LastIndex(c.name, "(")):], "(%d)", &since); err == nil && major < since {
				continue
			}
			d.run(su, "DROP SCHEMA IF EXISTS pgrunbook, live CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public; "+checkSetup)
			if major >= 18 {
				d.run(su, "ALTER TABLE public.ref ADD virt int GENERATED ALWAYS AS (id + 1) VIRTUAL")
			}
			tables := []scope.Table{d.table(1, "plain", scope.Statement, scope.ByKey), d.table(2, "part", scope.Row, scope.ByKey), d.table(3, "ref", scope.Statement, scope.ByKey)}
			d.install(tables...)
			if quiet, err := Check(d.ctx, d.ours, testRun, tables); err != nil || len(quiet) > 0 {
				t.Fatalf("%d: before %s: %v, %v", major, c.name, describe(quiet), err)
			}
			for _, s := range split(c.sql) {
				d.run(su, s)
			}
			changes, err := Check(d.ctx, d.ours, testRun, tables)
			if err != nil {
				t.Fatalf("%d: %s: %v", major, c.name, err)
			}
			if diff := cmp.Diff(c.want, describe(changes)); diff != "" {
				t.Errorf("%d: %s (-want +got):\n%s", major, c.name, diff)
			}
			if len(c.want) == 0 { // recorded as seen: no details next time
				if ids, err := differing(d.ctx, d.ours, []int32{1, 2, 3}); err != nil || len(ids) > 0 {
					t.Errorf("%d: %s: sums of %v still differ, %v", major, c.name, ids, err)
				}
			}
			if (Err(changes) != nil) != slices.ContainsFunc(c.want, func(s string) bool { return strings.HasPrefix(s, "stop") || strings.HasPrefix(s, "leave") }) {
				t.Errorf("%d: %s: Err says %v", major, c.name, Err(changes))
			}
		}
	}
}

// The statement that the stop names takes another expression of a generated column back.
func TestF40OtherExpressionIsTakenBack(t *testing.T) {
	d := newDB(t, 18, `CREATE TABLE plain (id int PRIMARY KEY, "G" int GENERATED ALWAYS AS (id + 1) STORED, virt int GENERATED ALWAYS AS (id + 2) VIRTUAL)`)
	table := d.table(1, "plain", scope.Statement, scope.ByKey)
	d.install(table)
	for _, column := range []string{`"G"`, "virt"} {
		d.run(d.ours, "ALTER TABLE public.plain ALTER "+column+" SET EXPRESSION AS (id * 2)")
		changes, err := Check(d.ctx, d.ours, testRun, []scope.Table{table})
		if err != nil {
			t.Fatal(err)
		}
		hint := engine.HintOf(Err(changes))
		statement := regexp.MustCompile(`ALTER TABLE [^;]* SET EXPRESSION AS [^;]*;`).FindString(hint)
		if statement == "" || !strings.Contains(hint, "pgrunbook abort --drop-target") {
			t.Fatalf("%s: the hint is %q", column, hint)
		}
		d.run(d.ours, statement)
		if changes, err = Check(d.ctx, d.ours, testRun, []scope.Table{table}); err != nil || Err(changes) != nil {
			t.Errorf("%s, taken back by %s: %v, %v", column, statement, describe(changes), err)
		}
	}
}

func TestAcceptTakesWhatWasSeenAndNoMore(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain VALUES (1, 'a'), (2, 'b')`)
	table := d.table(1, "plain", scope.Statement, scope.ByKey)
	d.install(table)
	d.run(d.ours, "ALTER TABLE public.plain ADD COLUMN w int")
	seen, err := Check(d.ctx, d.ours, testRun, []scope.Table{table})
	if err != nil || len(seen) != 1 {
		t.Fatalf("Check says %v, %v", seen, err)
	}
	d.run(d.ours, "ALTER TABLE public.plain ADD COLUMN x int")
	if err := Accept(d.ctx, d.ours, table, seen...); err == nil || !strings.Contains(err.Error(), "changed again") {
		t.Fatalf("Accept of a table that changed further says %v", err)
	}
	seen, err = Check(d.ctx, d.ours, testRun, []scope.Table{table})
	if err != nil || len(seen) != 2 {
		t.Fatalf("Check says %v, %v", describe(seen), err)
	}
	d.run(d.ours, "ALTER TABLE public.plain ENABLE TRIGGER ALL")
	if err := InstallOn(d.ctx, d.ours, testRun, table, nil); err != nil {
		t.Fatal(err)
	}
	if err := Accept(d.ctx, d.ours, table, seen...); err != nil {
		t.Fatal(err)
	}
	if seen, err = Check(d.ctx, d.ours, testRun, []scope.Table{table}); err != nil || len(seen) > 0 {
		t.Errorf("after Accept: %v, %v", describe(seen), err)
	}
}

// InstallOn mends a function that somebody replaced, and leaves it to Check to say so, also where the body was put back
// before. What InstallOn itself makes of it, because the table's columns changed, is nobody's tampering.
func TestF45InstallHidesNoReplacedFunction(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY, v text); CREATE TABLE heap (v text); INSERT INTO plain VALUES (1, 'a'), (2, 'b')`)
	plain, heap := d.table(1, "plain", scope.Statement, scope.ByKey), d.table(2, "heap", scope.Statement, scope.FullRow)
	tables := []scope.Table{plain, heap}
	look := func(after string, want ...string) []Change {
		t.Helper()
		changes, err := Check(d.ctx, d.ours, testRun, tables)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, describe(changes)); diff != "" {
			t.Fatalf("after %s (-want +got):\n%s", after, diff)
		}
		return changes
	}
	d.install(tables...)
	d.install(tables...)
	look("a second InstallOn")
	for _, sql := range []string{
		`CREATE OR REPLACE FUNCTION pgrunbook.capture_1() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; UPDATE public.plain SET v = 'hidden'`,
		putBack("capture_1", "UPDATE public.plain SET v = ''hidden''"),
	} {
		d.run(d.ours, sql)
		d.install(plain)
		d.install(plain) // of a process that goes on after a death
		seen := look(sql, "recopy tampered")
		d.run(d.app, "UPDATE public.plain SET v = 'seen' WHERE id = 2")
		if keys, _ := d.logged(plain); !slices.Contains(keys, "2") {
			t.Errorf("after %s: keys %v are logged", sql, keys)
		}
		if err := Accept(d.ctx, d.ours, plain, seen...); err != nil {
			t.Fatal(err)
		}
		look("Accept")
	}

	d.run(d.ours, "ALTER TABLE public.plain ADD COLUMN w int; ALTER TABLE public.heap ADD COLUMN w int")
	heap = d.table(2, "heap", scope.Statement, scope.FullRow)
	added := []string{`carry column_added: ALTER TABLE "public"."plain" ADD COLUMN "w" integer`, `carry column_added: ALTER TABLE "public"."heap" ADD COLUMN "w" integer`}
	seen := look("ADD COLUMN", added...)
	d.install(plain, heap)
	look("a function with the new column", added...)
	d.run(d.ours, putBack("capture_1", "UPDATE public.plain SET w = 1")+"; "+putBack("capture_2", "UPDATE public.heap SET w = 1"))
	if err := Accept(d.ctx, d.ours, plain, seen...); err == nil || !strings.Contains(err.Error(), "changed again") {
		t.Errorf("Accept of a table that changed unseen says %v", err)
	}
	if err := Accept(d.ctx, d.ours, heap, seen...); err != nil { // it is loaded again in any case
		t.Error(err)
	}
	look("Accept", added[0], "recopy tampered")
	d.run(d.ours, "ALTER TABLE public.heap ADD COLUMN x int")
	seen = look("another column", added[0], "recopy tampered", `carry column_added: ALTER TABLE "public"."heap" ADD COLUMN "x" integer`)
	d.run(d.ours, noopSQL("pgrunbook.capture_2"))
	if err := Accept(d.ctx, d.ours, heap, seen...); err == nil || !strings.Contains(err.Error(), "changed again") {
		t.Errorf("Accept of a function that does nothing says %v", err)
	}
}

func TestCheckRefusesAnOldSnapshot(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY)`)
	table := d.table(1, "plain", scope.Statement, scope.ByKey)
	d.install(table)
	tx, err := d.ours.BeginTx(d.ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(d.ctx) }()
	if _, err := Check(d.ctx, d.ours, testRun, []scope.Table{table}); err == nil || !strings.Contains(err.Error(), "past") {
		t.Errorf("Check in REPEATABLE READ says %v", err)
	}
}

func TestFileNodesSeeThePresent(t *testing.T) {
	d := newDB(t, 15, checkSetup)
	table := d.table(1, "part", scope.Statement, scope.ByKey)
	before, err := FileNodes(d.ctx, d.ours, table)
	if err != nil || len(before) != 2 {
		t.Fatalf("file nodes %v, %v", before, err)
	}
	tx, err := d.ours.BeginTx(d.ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(d.ctx) }()
	if _, err := tx.Exec(d.ctx, "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	d.run(d.connect(d.url), "ALTER TABLE part_1 SET UNLOGGED")
	after, err := FileNodes(d.ctx, d.ours, table)
	if err != nil {
		t.Fatal(err)
	}
	if after[`"public"."part_1"`] == before[`"public"."part_1"`] || after[`"public"."part_2"`] != before[`"public"."part_2"`] {
		t.Errorf("file nodes %v, then %v after a rewrite of part_1", before, after)
	}
}

func TestNewPartitionIsCarriedWithItsRows(t *testing.T) {
	for _, mode := range modes() {
		d := newDB(t, 15, checkSetup)
		table := d.table(1, "part", mode, scope.ByKey)
		d.install(table)
		d.run(d.ours, `CREATE TABLE public.part_3 (id int NOT NULL, g int NOT NULL, v text, PRIMARY KEY (g, id));
INSERT INTO public.part_3 VALUES (1, 20, 'before'), (2, 21, 'before');
ALTER TABLE public.part ATTACH PARTITION public.part_3 FOR VALUES FROM (20) TO (30)`)
		d.run(d.ours, "INSERT INTO public.part_3 VALUES (3, 22, 'between')")
		seen, err := Check(d.ctx, d.ours, testRun, []scope.Table{table})
		if err != nil || len(seen) != 1 || seen[0].What != PartitionAdded {
			t.Fatalf("%s: %v, %v", mode, describe(seen), err)
		}
		if err := InstallOn(d.ctx, d.ours, testRun, table, nil); err != nil {
			t.Fatal(err)
		}
		if err := Accept(d.ctx, d.ours, table, seen...); err != nil {
			t.Fatal(err)
		}
		d.run(d.ours, "INSERT INTO public.part_3 VALUES (4, 23, 'after')")
		if keys, _ := d.logged(table); strings.Join(keys, " ") != "20|1 21|2 22|3 23|4" {
			t.Errorf("%s: keys %v are logged", mode, keys)
		}
		if seen, err = Check(d.ctx, d.ours, testRun, []scope.Table{table}); err != nil || len(seen) > 0 {
			t.Errorf("%s: after Accept: %v, %v", mode, describe(seen), err)
		}
	}
}

func TestC4SumsAreCheapForManyTables(t *testing.T) {
	d := newDB(t, 15, `DO $$ BEGIN FOR i IN 1..200 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', i); END LOOP; END $$`)
	var tables []scope.Table
	first := d.table(1, "t1", scope.Statement, scope.ByKey)
	for i := range 200 {
		table := first
		table.ID, table.Name.Name = int32(i+1), fmt.Sprintf("t%d", i+1)
		tables = append(tables, table)
	}
	d.install(tables...)
	d.run(d.ours, "ALTER TABLE public.t77 ADD COLUMN w int; CREATE INDEX ON public.t78 (v)")
	changes, err := Check(d.ctx, d.ours, testRun, tables)
	if err != nil || len(changes) != 1 || changes[0].Table.Name != "t77" {
		t.Errorf("Check says %v, %v", describe(changes), err)
	}
}

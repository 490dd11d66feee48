package capture

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestInstallMendsWhatIsWrong(t *testing.T) {
	for _, mode := range modes() {
		d := newDB(t, 15, coverageSetup)
		tables := []scope.Table{d.table(1, "plain", mode, scope.ByKey), d.table(2, "part", mode, scope.ByKey)}
		d.install(tables...)
		want := d.list(triggerList)
		for _, harm := range []string{
			"ALTER TABLE public.plain DISABLE TRIGGER ALL",
			"ALTER TABLE public.plain ENABLE TRIGGER ALL",
			"DROP TRIGGER pgrunbook_capture_upd ON public.plain",
			"DROP TRIGGER pgrunbook_capture_trunc ON public.part; DROP TRIGGER pgrunbook_capture_ins ON public.part_1",
			"DROP FUNCTION pgrunbook.capture_2() CASCADE",
			"CREATE OR REPLACE FUNCTION pgrunbook.capture_1() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
			"DROP TRIGGER pgrunbook_capture_del ON public.plain; CREATE TRIGGER pgrunbook_capture_del AFTER DELETE ON public.plain FOR EACH STATEMENT EXECUTE FUNCTION suppress_redundant_updates_trigger()",
			"CREATE TRIGGER pgrunbook_capture_more AFTER DELETE ON public.plain FOR EACH STATEMENT EXECUTE FUNCTION suppress_redundant_updates_trigger()",
		} {
			d.run(d.ours, harm)
			d.install(tables...)
			if diff := cmp.Diff(want, d.list(triggerList)); diff != "" {
				t.Errorf("%s: after %q (-want +got):\n%s", mode, harm, diff)
			}
			d.covered("insert", d.app, "INSERT INTO plain VALUES (999, 'x', 1); DELETE FROM plain WHERE id = 999; UPDATE plain SET v = v || '!'; UPDATE part SET v = v || '!'", tables)
		}
	}
}

const triggerList = `SELECT tgrelid::regclass::text || ' ' || tgenabled::text || ' ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname LIKE 'pgrunbook%' ORDER BY 1`

func TestD22AnotherRunIsRefused(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY)`)
	table := d.table(1, "plain", scope.Statement, scope.ByKey)
	d.install(table)
	second := testRun
	second.ID = "r2"
	err := Prepare(d.ctx, d.ours, second)
	if engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(err.Error(), "r1") || engine.HintOf(err) == "" {
		t.Errorf("Prepare of a second run says %v, hint %q", err, engine.HintOf(err))
	}
	if err := Remove(d.ctx, d.srv, second, nil); engine.ClassOf(err) != engine.ClassPreflight {
		t.Errorf("Remove by a second run says %v", err)
	}
	if n := d.one("SELECT count(*)::text FROM pg_trigger WHERE tgname LIKE 'pgrunbook%'"); n != "4" {
		t.Errorf("%s triggers are left, want 4", n)
	}
}

func TestASchemaOfOthersIsRefused(t *testing.T) {
	d := newDB(t, 15, `CREATE SCHEMA pgrunbook; CREATE TABLE pgrunbook.theirs (a int)`)
	if err := Prepare(d.ctx, d.ours, testRun); engine.ClassOf(err) != engine.ClassPreflight {
		t.Errorf("Prepare says %v", err)
	}
}

// A schema that a DBA made for a role that may not create one is used, and stays.
func TestAnEmptySchemaIsUsedAndKept(t *testing.T) {
	d := newDB(t, 15, `CREATE SCHEMA pgrunbook; CREATE TABLE plain (id int PRIMARY KEY)`)
	d.install(d.table(1, "plain", scope.Row, scope.ByKey))
	if err := Remove(d.ctx, d.srv, testRun, nil); err != nil {
		t.Fatal(err)
	}
	if n := d.one("SELECT count(*)::text FROM pg_namespace n WHERE nspname = 'pgrunbook' AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid)"); n != "1" {
		t.Errorf("the schema is gone or not empty")
	}
}

func TestF30InstallNamesWhoIsInTheWay(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY)`)
	table := d.table(1, "plain", scope.Statement, scope.ByKey)
	if err := Prepare(d.ctx, d.ours, testRun); err != nil {
		t.Fatal(err)
	}
	second, third := d.connect(d.appURL()), d.connect(d.appURL())
	d.run(d.app, "BEGIN")
	d.run(d.app, "INSERT INTO plain VALUES (1)")
	d.run(second, "BEGIN")
	d.run(second, "INSERT INTO plain VALUES (3)")
	heard := make(chan pg.LockWait, 100)
	done := make(chan error, 1)
	go func() {
		done <- InstallOn(d.ctx, d.ours, testRun, table, func(w pg.LockWait) { heard <- w })
	}()
	w := <-heard
	if len(w.Blockers) != 2 || w.Blockers[0].User != "app" || w.Object != `"public"."plain"` {
		t.Errorf("blockers are %v on %s", w.Blockers, w.Object)
	}
	// Writers do not queue behind us for as long as those two are in the way.
	d.run(third, "INSERT INTO plain VALUES (4)")
	d.run(third, "UPDATE plain SET id = 5 WHERE id = 4")
	select {
	case err := <-done:
		t.Fatalf("nobody was in the way any more: %v", err)
	default:
	}
	d.run(second, "COMMIT")
	d.run(d.app, "COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	d.run(d.app, "INSERT INTO plain VALUES (2)")
	if keys, _ := d.logged(table); !slices.Equal(keys, []string{"2"}) {
		t.Errorf("keys %v are logged: 1, 3 and 5 were committed before the triggers stood, 2 after", keys)
	}
}

func TestRemoveLeavesTheDatabaseAsFound(t *testing.T) {
	for _, major := range testpg.Some(12, 15, 18) {
		for _, mode := range modes() {
			d := newDB(t, major, coverageSetup+"CREATE TABLE log (v text);")
			before, err := testpg.SchemaDump(d.ctx, d.url)
			if err != nil {
				t.Fatal(err)
			}
			tables := []scope.Table{d.table(1, "plain", mode, scope.ByKey), d.table(2, "part", mode, scope.ByKey), d.table(3, "multi", mode, scope.ByKey), d.table(4, "log", mode, scope.FullRow)}
			d.install(tables...)
			d.run(d.app, "INSERT INTO log VALUES ('x'); UPDATE plain SET v = 'x'")
			if d.size() == 0 {
				t.Error("what was captured takes no room")
			}
			for range 2 {
				if err := Remove(d.ctx, d.srv, testRun, nil); err != nil {
					t.Fatal(err)
				}
			}
			after, err := testpg.SchemaDump(d.ctx, d.url)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("%d %s: removing left (-before +after):\n%s", major, mode, diff)
			}
		}
	}
}

// A Remove that died anywhere is finished by the next one.
func TestF84RemoveContinues(t *testing.T) {
	d := newDB(t, 15, coverageSetup)
	tables := []scope.Table{d.table(1, "plain", scope.Statement, scope.ByKey), d.table(2, "part", scope.Row, scope.ByKey), d.table(3, "ci", scope.Statement, scope.ByKey)}
	want, err := testpg.SchemaDump(d.ctx, d.url)
	if err != nil {
		t.Fatal(err)
	}
	reader := d.connect(d.url)
	for _, held := range []string{"public.part_2b", "public.plain", "pgrunbook.captured", "pgrunbook.side"} {
		d.install(tables...)
		d.run(reader, "BEGIN")
		d.run(reader, "SELECT count(*) FROM "+held)
		ctx, cancel := context.WithCancel(d.ctx)
		var freed atomic.Bool
		done := make(chan error, 1)
		go func() { done <- Remove(ctx, d.srv, testRun, func(pg.LockWait) { freed.Store(true); cancel() }) }()
		if strings.HasPrefix(held, "pgrunbook.") {
			for d.one("SELECT count(*)::text FROM pg_locks WHERE NOT granted") == "0" {
				time.Sleep(5 * time.Millisecond)
			}
			cancel()
		}
		if err := <-done; err == nil {
			t.Fatalf("Remove beside a reader of %s succeeded", held)
		}
		if strings.HasPrefix(held, "public.") && !freed.Load() {
			t.Errorf("Remove did not say that %s is in the way", held)
		}
		cancel()
		d.run(d.app, "UPDATE public.plain SET v = v || '.'") // the functions do nothing, or are gone
		d.run(reader, "COMMIT")
		if err := Remove(d.ctx, d.srv, testRun, nil); err != nil {
			t.Fatal(err)
		}
		got, err := testpg.SchemaDump(d.ctx, d.url)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("after a cut at %s (-want +got):\n%s", held, diff)
		}
	}
}

func TestImagesOfTablesWithoutAKey(t *testing.T) {
	for _, major := range []int{12, 15, 18} {
		for _, mode := range modes() {
			d := newDB(t, major, `CREATE TABLE log (v text, j json, p point, f float8, gen int, at timestamptz); CREATE TABLE page (v text);
CREATE TABLE tree (g int, v text) PARTITION BY LIST (g); CREATE TABLE tree_1 PARTITION OF tree FOR VALUES IN (1); CREATE TABLE tree_2 PARTITION OF tree FOR VALUES IN (2);`)
			d.install(d.table(1, "log", mode, scope.FullRow), d.table(2, "page", mode, scope.AppendOnly), d.table(3, "tree", mode, scope.FullRow))
			d.run(d.app, "SET extra_float_digits = -5; SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Tokyo'")
			d.run(d.app, `INSERT INTO log VALUES ('a,"b', '{"x":1}', '(1,2)', 0.1::float8 + 0.2, 7, '2026-01-02 03:04:05+00')`)
			d.run(d.app, "UPDATE log SET gen = 8")
			d.run(d.app, "DELETE FROM log")
			d.run(d.app, "BEGIN; TRUNCATE log; COMMIT")
			row := `("a,""b","{""x"":1}","(1,2)",0.30000000000000004,%,"2026-01-02 03:04:05+00")`
			want := []string{"i " + strings.Replace(row, "%", "7", 1), "d " + strings.Replace(row, "%", "7", 1), "i " + strings.Replace(row, "%", "8", 1), "d " + strings.Replace(row, "%", "8", 1), "t "}
			images := "SELECT op::text || ' ' || coalesce(img, '-') FROM %s ORDER BY n"
			if diff := cmp.Diff(want, d.list(strings.Replace(images, "%s", ImageName(1), 1))); diff != "" {
				t.Errorf("%d %s: full_row (-want +got):\n%s", major, mode, diff)
			}
			d.run(d.app, "INSERT INTO page VALUES ('x'), (NULL); UPDATE page SET v = 'n' WHERE false; DELETE FROM page WHERE false")
			if diff := cmp.Diff([]string{"i (x)", "i ()"}, d.list(strings.Replace(images, "%s", ImageName(2), 1))); diff != "" {
				t.Errorf("%d %s: append_only (-want +got):\n%s", major, mode, diff)
			}
			if n := d.one("SELECT count(*)::text FROM public.page p WHERE NOT EXISTS (SELECT FROM " + ImageName(2) + " i WHERE i.xmin = p.xmin)"); n != "0" {
				t.Errorf("%d %s: %s rows have no image with their xmin", major, mode, n)
			}
			d.run(d.app, "UPDATE page SET v = 'n' WHERE v = 'x'")
			d.run(d.app, "DELETE FROM page WHERE v = 'n'")
			d.run(d.app, "TRUNCATE page")
			if diff := cmp.Diff([]string{"i (x)", "i ()", "u -", "d -", "t "}, d.list(strings.Replace(images, "%s", ImageName(2), 1))); diff != "" {
				t.Errorf("%d %s: append_only with violations (-want +got):\n%s", major, mode, diff)
			}
			d.run(d.app, "INSERT INTO tree VALUES (1, 'a'); TRUNCATE tree_1; BEGIN; TRUNCATE tree; COMMIT; BEGIN; TRUNCATE tree; INSERT INTO tree VALUES (2, 'b'); TRUNCATE tree_2; COMMIT")
			if diff := cmp.Diff([]string{"i (1,a)", "t public.tree_1", "t ", "t ", "i (2,b)", "t public.tree_2"}, d.list(strings.Replace(images, "%s", ImageName(3), 1))); diff != "" {
				t.Errorf("%d %s: a tree's images (-want +got):\n%s", major, mode, diff)
			}
		}
	}
}

func TestA1D5ForeignLeafAndInheritanceWantRowTriggers(t *testing.T) {
	d := newDB(t, 15, `CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw;
CREATE TABLE tree (id int, g int) PARTITION BY LIST (g); CREATE TABLE tree_1 PARTITION OF tree FOR VALUES IN (1); CREATE FOREIGN TABLE tree_2 PARTITION OF tree FOR VALUES IN (2) SERVER s;
CREATE TABLE mother (id int PRIMARY KEY); CREATE TABLE daughter (PRIMARY KEY (id)) INHERITS (mother); INSERT INTO daughter VALUES (1)`)
	if err := Prepare(d.ctx, d.ours, testRun); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tree", "mother"} {
		table := d.table(1, name, scope.Statement, scope.FullRow)
		var e *engine.Error
		if err := InstallOn(d.ctx, d.ours, testRun, table, nil); !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("statement triggers on %s: %v", name, err)
		}
	}
	mother, daughter := d.table(1, "mother", scope.Row, scope.ByKey), d.table(2, "daughter", scope.Row, scope.ByKey)
	d.install(mother, daughter, d.table(3, "tree", scope.Row, scope.FullRow))
	d.run(d.app, "INSERT INTO tree VALUES (1, 1); UPDATE mother SET id = 2 WHERE id = 1")
	if keys, _ := d.logged(daughter); !slices.Equal(keys, []string{"1", "2"}) {
		t.Errorf("the daughter's keys %v are logged", keys)
	}
	if keys, _ := d.logged(mother); len(keys) > 0 {
		t.Errorf("the mother's keys %v are logged", keys)
	}
}

// A table that was dropped and made again is another one: its capture begins with a new load, so InstallOn leaves
// it and the record as they are, and Check goes on saying what happened.
func TestF41InstallLeavesAnotherTableAlone(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY)`)
	table := d.table(1, "plain", scope.Statement, scope.ByKey)
	d.install(table)
	for _, sql := range []string{"DROP TABLE plain", "CREATE TABLE plain AS SELECT 1 AS id; ALTER TABLE plain ADD PRIMARY KEY (id)"} {
		d.run(d.ours, "SET search_path = public; "+sql)
		if err := InstallOn(d.ctx, d.ours, testRun, table, nil); !errors.Is(err, ErrAnother) || engine.HintOf(err) == "" {
			t.Errorf("after %s: %v, hint %q", sql, err, engine.HintOf(err))
		}
		if n := d.one("SELECT count(*)::text FROM pg_trigger WHERE tgname LIKE 'pgrunbook%' AND tgrelid = to_regclass('public.plain')"); n != "0" {
			t.Errorf("after %s: %s triggers", sql, n)
		}
		seen, err := Check(d.ctx, d.ours, testRun, []scope.Table{table})
		if err != nil || len(seen) != 1 || seen[0].What != Dropped {
			t.Errorf("after %s: Check says %v, %v", sql, describe(seen), err)
		}
	}
	if err := Forget(d.ctx, d.ours, testRun, table, nil); err != nil {
		t.Fatal(err)
	}
	d.install(table)
}

package dump

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestInventoryOnEveryMajor: catalogs differ; each definition is found on the oldest as on the newest.
func TestInventoryOnEveryMajor(t *testing.T) {
	majors := []int{10, 12, 15, 18}
	if testpg.Full() {
		majors = []int{10, 11, 12, 13, 14, 15, 16, 17, 18}
	}
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			conn := connect(t, server(t, major, "source"))
			run(t, conn, `CREATE SCHEMA s;
CREATE TYPE s.mood AS ENUM ('sad', 'glad');
CREATE DOMAIN s.small AS int CHECK (VALUE < 100);
CREATE TYPE s.span AS RANGE (subtype = int);
CREATE TYPE s.pair AS (a int, b text);
CREATE FUNCTION s.one(n int) RETURNS int LANGUAGE sql AS 'SELECT n';
CREATE AGGREGATE s.total(int) (sfunc = int4pl, stype = int, initcond = '0');
CREATE TABLE s.t (id int PRIMARY KEY, v s.mood, note text COLLATE "C", CHECK (id > 0));
CREATE TABLE s.tree (id int, d int) PARTITION BY LIST (d);
CREATE TABLE s.leaf PARTITION OF s.tree FOR VALUES IN (1);
CREATE TABLE s.child (id int REFERENCES s.t);
CREATE VIEW s.seen AS SELECT id FROM s.t;
CREATE MATERIALIZED VIEW s.kept AS SELECT id FROM s.t;
CREATE INDEX by_v ON s.t (v);
CREATE SEQUENCE s.n;
CREATE STATISTICS s.both ON id, d FROM s.leaf;
CREATE FUNCTION s.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TRIGGER touch BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE PROCEDURE s.touch();
CREATE RULE quiet AS ON DELETE TO s.child DO INSTEAD NOTHING;
CREATE POLICY mine ON s.t USING (id > 5);
CREATE OPERATOR s.=== (leftarg = int, rightarg = int, procedure = int4eq);
CREATE COLLATION s.plain (locale = 'C');
COMMENT ON TABLE s.t IS 'rows'; COMMENT ON FUNCTION s.one(int) IS 'one'; GRANT SELECT ON s.t TO PUBLIC`)
			items, err := Inventory(testContext(t), conn, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range []string{
				`schema "s"`, `enum "s"."mood"`, `domain "s"."small"`, `type "s"."span"`, `type "s"."pair"`, `function "s"."one"(n integer)`,
				`object aggregate "s"."total"(integer)`, `table "s"."t"`, `table "s"."tree"`, `partition "s"."leaf"`, `view "s"."seen"`,
				`materialized view "s"."kept"`, `index "s"."by_v"`, `sequence "s"."n"`, `statistics "s"."both"`, `trigger "touch" on "s"."t"`,
				`rule "quiet" on "s"."child"`, `policy "mine" on "s"."t"`, `constraint "t_pkey" on "s"."t"`, `check constraint "t_id_check" on "s"."t"`,
				`foreign key "child_id_fkey" on "s"."child"`, `domain constraint "small_check" on "s"."small"`, `owner "s"."one"(n integer)`,
				`grant "s"."t"`, `comment "s"."t"`, `comment "s"."one"(n integer)`, `options "s"."t"`, `object collation s.plain`, `object operator s.===(integer,integer)`,
			} {
				if _, ok := items[id]; !ok {
					t.Errorf("%s is missing", id)
				}
			}
			if t.Failed() {
				for id := range items {
					t.Log(id)
				}
			}
		})
	}
}

// What ALTER changes of an object is told from what it was, on the oldest and the newest of servers.
func TestInventorySeesWhatIsAltered(t *testing.T) {
	for _, major := range []int{10, 15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			conn := connect(t, server(t, major, "source"))
			run(t, conn, `CREATE SCHEMA s; CREATE TYPE s.mood AS ENUM ('sad'); CREATE TABLE s.t (id int PRIMARY KEY, note text); CREATE SEQUENCE s.n;
				CREATE POLICY mine ON s.t USING (id > 5); CREATE STATISTICS s.both ON id, note FROM s.t; CREATE MATERIALIZED VIEW s.kept AS SELECT note FROM s.t;
				CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE s.far (a int) SERVER far`)
			for _, c := range []struct {
				since   int
				sql, id string
			}{
				{10, `ALTER TABLE s.t ALTER note SET STORAGE EXTERNAL`, `options "s"."t"`},
				{10, `ALTER TABLE s.t ALTER note SET STATISTICS 7`, `options "s"."t"`},
				{10, `ALTER TABLE s.t ALTER note SET (n_distinct = 5)`, `options "s"."t"`},
				{14, `ALTER TABLE s.t ALTER note SET COMPRESSION pglz`, `options "s"."t"`},
				{10, `ALTER TABLE s.t SET (fillfactor = 50)`, `options "s"."t"`},
				{10, `ALTER TABLE s.t ENABLE ROW LEVEL SECURITY`, `options "s"."t"`},
				{10, `ALTER TABLE s.t CLUSTER ON t_pkey`, `options "s"."t"`},
				{10, `ALTER TABLE s.t REPLICA IDENTITY USING INDEX t_pkey`, `options "s"."t"`},
				{10, `ALTER TABLE s.t SET UNLOGGED`, `options "s"."t"`},
				{10, `ALTER MATERIALIZED VIEW s.kept SET (fillfactor = 50)`, `options "s"."kept"`},
				{10, `ALTER FOREIGN TABLE s.far OPTIONS (ADD a 'b')`, `options "s"."far"`},
				{10, `ALTER FOREIGN TABLE s.far ALTER a OPTIONS (ADD c 'd')`, `options "s"."far"`},
				{10, `ALTER SEQUENCE s.n OWNED BY s.t.id`, `options "s"."n"`},
				{10, `ALTER SCHEMA s OWNER TO pg_monitor`, `owner "s"`},
				{10, `ALTER TYPE s.mood OWNER TO pg_monitor`, `owner "s"."mood"`},
				{10, `ALTER TABLE s.t OWNER TO pg_monitor`, `owner "s"."t"`},
				{10, `REVOKE USAGE ON TYPE s.mood FROM PUBLIC`, `grant "s"."mood"`},
				{10, `GRANT SELECT (note) ON s.t TO PUBLIC`, `grant "s"."t"`},
				{10, `ALTER POLICY mine ON s.t TO pg_monitor`, `policy "mine" on "s"."t"`},
				{13, `ALTER STATISTICS s.both SET STATISTICS 9`, `statistics "s"."both"`},
			} {
				if major < c.since {
					continue
				}
				var defs [2]string
				for i := range defs {
					items, err := Inventory(testContext(t), conn, nil)
					if err != nil {
						t.Fatal(err)
					}
					item, ok := items[c.id]
					if !ok {
						t.Fatalf("%s is missing", c.id)
					}
					if defs[i] = item.Def; i == 0 {
						run(t, conn, c.sql)
					}
				}
				if defs[0] == defs[1] {
					t.Errorf("%s is not seen", c.sql)
				}
			}
		})
	}
}

// A table that is locked even against readers keeps its definitions, and those of its views, from being read: it is named,
// and who locked it, and what to type.
func TestInventoryNamesWhoLockedATable(t *testing.T) {
	s := server(t, 15, "source")
	app := connect(t, s)
	run(t, app, "CREATE TABLE public.\"X\" (id int); CREATE VIEW public.seen AS SELECT id FROM public.\"X\"; CREATE TABLE public.other (id int)")
	conn, err := s.Connect(testContext(t), pg.Use{Name: "test", LockTimeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	gid := pg.Literal("locked in " + conn.Config().Database)
	for _, c := range []struct{ hold, end, in, hint string }{
		{"SELECT 1", "ROLLBACK", fmt.Sprintf("pid %d (postgres", app.PgConn().PID()), fmt.Sprintf("pg_terminate_backend(%d)", app.PgConn().PID())},
		{"PREPARE TRANSACTION " + gid, "ROLLBACK PREPARED " + gid, "prepared transaction", "ROLLBACK PREPARED " + gid},
	} {
		run(t, app, "BEGIN")
		run(t, app, `LOCK TABLE public."X" IN ACCESS EXCLUSIVE MODE`)
		run(t, app, c.hold)
		_, err := Inventory(testContext(t), conn, nil)
		if pg.SQLState(err) != "55P03" || !strings.Contains(err.Error(), `reading the definitions: no lock on public."X" within`) || !strings.Contains(err.Error(), c.in) || !strings.Contains(engine.HintOf(err), c.hint) {
			t.Errorf("error %v, hint %q", err, engine.HintOf(err))
		}
		run(t, app, c.end)
		if items, err := Inventory(testContext(t), conn, nil); err != nil || items[`view "public"."seen"`].Kind == "" {
			t.Errorf("afterwards: %v, %v", items, err)
		}
	}
}

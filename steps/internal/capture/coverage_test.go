package capture

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const coverageSetup = `
CREATE EXTENSION citext SCHEMA public;
CREATE TABLE plain (id int PRIMARY KEY, v text, u int);
INSERT INTO plain SELECT g, 'v' || g, g FROM generate_series(1, 20) g;
CREATE TABLE multi (a varchar(10), b numeric, v text, PRIMARY KEY (b, a));
INSERT INTO multi SELECT 'a' || g, g / 2.0, 'v' FROM generate_series(1, 20) g;
CREATE TABLE ci (k citext PRIMARY KEY, v text);
INSERT INTO ci SELECT 'k' || g, 'v' FROM generate_series(1, 20) g;
CREATE TABLE part (id int, g int, v text, PRIMARY KEY (g, id)) PARTITION BY RANGE (g);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (30) PARTITION BY RANGE (g);
CREATE TABLE part_2a PARTITION OF part_2 FOR VALUES FROM (10) TO (20);
CREATE TABLE part_2b (v text, g int NOT NULL, dropped int, id int NOT NULL, PRIMARY KEY (g, id));
ALTER TABLE part_2b DROP COLUMN dropped;
ALTER TABLE part_2 ATTACH PARTITION part_2b FOR VALUES FROM (20) TO (30);
INSERT INTO part SELECT g, g, 'v' FROM generate_series(1, 29) g;
CREATE TABLE parent (id int PRIMARY KEY, up int REFERENCES parent ON DELETE SET NULL ON UPDATE CASCADE);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
INSERT INTO parent SELECT g, nullif(g - 1, 0) FROM generate_series(1, 10) g;
INSERT INTO child SELECT g, 1 + g % 10 FROM generate_series(1, 30) g;
CREATE TABLE busy (id int PRIMARY KEY, v text);
INSERT INTO busy SELECT g, 'v' FROM generate_series(1, 10) g;
CREATE FUNCTION busy_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF pg_trigger_depth() = 1 THEN UPDATE busy SET v = v || '+' WHERE id = NEW.id % 10 + 1; INSERT INTO busy VALUES (NEW.id + 1000, 'by trigger') ON CONFLICT DO NOTHING; END IF;
  RETURN NULL; END $$;
CREATE TRIGGER aa AFTER INSERT OR UPDATE ON busy FOR EACH ROW EXECUTE FUNCTION busy_row();
CREATE FUNCTION busy_key() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.v = 'shift' THEN NEW.id := NEW.id + 5000; END IF; RETURN NEW; END $$;
CREATE TRIGGER zz BEFORE INSERT OR UPDATE ON busy FOR EACH ROW EXECUTE FUNCTION busy_key();
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE plain SET v = 'late' WHERE id = 20; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON busy DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late();
CREATE VIEW plain_view AS SELECT id, v FROM plain WHERE id > 5;
CREATE SCHEMA evil;
CREATE FUNCTION evil.never(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.never8(int8, int8) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, PROCEDURE = evil.never);
CREATE OPERATOR evil.= (LEFTARG = int8, RIGHTARG = int8, PROCEDURE = evil.never8);
GRANT USAGE ON SCHEMA evil TO app;`

// statements that each must leave every changed key in a delta. Each runs in its own transaction
// unless it says otherwise.
var coverage = []struct {
	name, sql string
	since     int
}{
	{name: "insert", sql: `INSERT INTO plain VALUES (100, 'x', 1), (101, NULL, NULL)`},
	{name: "update", sql: `UPDATE plain SET v = v || '.' WHERE id < 10`},
	{name: "delete", sql: `DELETE FROM plain WHERE id IN (2, 3)`},
	{name: "on conflict", sql: `INSERT INTO plain VALUES (4, 'up', 0), (104, 'new', 0) ON CONFLICT (id) DO UPDATE SET v = excluded.v`},
	{name: "on conflict changes the key", sql: `INSERT INTO plain VALUES (5, 'moved', 0) ON CONFLICT (id) DO UPDATE SET id = plain.id + 500, v = excluded.v`},
	{name: "merge", since: 15, sql: `MERGE INTO plain p USING (VALUES (6, 'm'), (7, 'd'), (106, 'i')) s (id, v) ON p.id = s.id
  WHEN MATCHED AND s.v = 'd' THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v, 0)`},
	{name: "data-modifying CTE", sql: `WITH d AS (DELETE FROM plain WHERE id = 8 RETURNING *), i AS (INSERT INTO plain SELECT id + 800, v, u FROM d RETURNING id) UPDATE multi SET v = 'cte' WHERE b = 1`},
	{name: "key shift", sql: `UPDATE plain SET id = -id WHERE id BETWEEN 9 AND 12`},
	{name: "key swap", sql: `UPDATE multi SET b = CASE b WHEN 2 THEN -3 WHEN 3 THEN -2 END WHERE b IN (2, 3); UPDATE multi SET b = -b WHERE b < 0`},
	{name: "equal key in other digits", sql: `UPDATE multi SET b = 5.000 WHERE b = 5; UPDATE multi SET v = NULL WHERE b = 6`},
	{name: "citext key in other case", sql: `UPDATE ci SET k = 'K1' WHERE k = 'k1'; UPDATE ci SET k = 'other' WHERE k = 'K2'; DELETE FROM ci WHERE k = 'K3'`},
	{name: "partition by root", sql: `INSERT INTO part VALUES (50, 5, 'r'), (51, 15, 'r'), (52, 25, 'r'); UPDATE part SET v = 'w' WHERE g IN (1, 11, 21); DELETE FROM part WHERE g IN (2, 12, 22)`},
	{name: "partition by leaf and middle", sql: `INSERT INTO part_1 VALUES (60, 6, 'l'); UPDATE part_2b SET v = 'l' WHERE g = 23; DELETE FROM part_2a WHERE g = 13; UPDATE part_2 SET v = 'm' WHERE g IN (14, 24)`},
	{name: "row movement", sql: `UPDATE part SET g = g + 20 WHERE g = 3; UPDATE part_2 SET g = 27 WHERE g = 16`},
	{name: "row movement by MERGE", since: 15, sql: `MERGE INTO part p USING (VALUES (4), (17)) s (g) ON p.g = s.g WHEN MATCHED THEN UPDATE SET g = p.g + 8`},
	{name: "leaf with other column order", sql: `INSERT INTO part_2b (id, g, v) VALUES (70, 28, 'o'); UPDATE part SET id = id + 1000 WHERE g = 28`},
	{name: "cascade of delete", sql: `DELETE FROM parent WHERE id IN (3, 4)`},
	{name: "cascade of update", sql: `BEGIN; UPDATE parent SET id = id + 100 WHERE id = 5; UPDATE child SET p = p; COMMIT`},
	{name: "triggers that write the same table", sql: `INSERT INTO busy VALUES (50, 'x'), (51, 'y'); UPDATE busy SET v = 'z' WHERE id IN (1, 2)`},
	{name: "BEFORE trigger changes the key", sql: `UPDATE busy SET v = 'shift' WHERE id = 3; INSERT INTO busy VALUES (7777, 'shift')`},
	{name: "view", sql: `UPDATE plain_view SET v = 'view' WHERE id = 13; INSERT INTO plain_view VALUES (213, 'view'); DELETE FROM plain_view WHERE id = 14`},
	{name: "savepoints", sql: `BEGIN; UPDATE plain SET v = 'kept' WHERE id = 15; SAVEPOINT a; UPDATE plain SET v = 'gone' WHERE id = 16; ROLLBACK TO a; SAVEPOINT b; UPDATE plain SET v = 'sub' WHERE id = 17; RELEASE b; COMMIT`},
	{name: "exception block", sql: `DO $$ BEGIN UPDATE plain SET v = 'kept2' WHERE id = 17; BEGIN INSERT INTO plain VALUES (18, 'dup', 0); EXCEPTION WHEN unique_violation THEN UPDATE plain SET v = 'handled' WHERE id = 18; END; END $$`},
	{name: "cursor", sql: `BEGIN; DECLARE c CURSOR FOR SELECT * FROM plain WHERE id = 19 FOR UPDATE; FETCH c; UPDATE plain SET v = 'cursor' WHERE CURRENT OF c; COMMIT`},
	{name: "two-phase", sql: `BEGIN; INSERT INTO plain VALUES (300, '2pc', 0); PREPARE TRANSACTION 'g1'; COMMIT PREPARED 'g1'`},
	{name: "rolled back", sql: `BEGIN; TRUNCATE plain; INSERT INTO plain VALUES (1, 'no', 0); ROLLBACK`},
	{name: "only nulls", sql: `UPDATE plain SET v = NULL, u = NULL WHERE id = 20`},
	{name: "no rows", sql: `UPDATE plain SET v = 'none' WHERE false; DELETE FROM plain WHERE false; INSERT INTO plain SELECT 1, 'x', 1 WHERE false`},
	{name: "hostile search path and temporary tables", sql: `CREATE TEMP TABLE pgrunbook_new (id int); CREATE TEMP TABLE pgrunbook_old (id int); CREATE TEMP TABLE truncated (rel int);
  SET search_path = evil, pg_temp, public, pg_catalog; UPDATE public.plain SET id = id + 9000 WHERE id = 1; UPDATE public.multi SET a = 'hostile' WHERE b OPERATOR(pg_catalog.=) 7; DELETE FROM public.ci WHERE k OPERATOR(public.=) 'k9'`},
	{name: "truncate of a leaf", sql: `TRUNCATE part_1`},
	{name: "truncate of the middle", sql: `TRUNCATE part_2`},
	{name: "truncate and refill of the root", sql: `INSERT INTO part VALUES (1, 1, 'before'); BEGIN; TRUNCATE part; INSERT INTO part VALUES (2, 2, 'after'); COMMIT`},
	{name: "truncate cascade", sql: `TRUNCATE parent CASCADE`},
}

func modes() []scope.Capture { return []scope.Capture{scope.Statement, scope.Row} }

func TestF33F37EveryChangeLeavesItsKey(t *testing.T) {
	for _, major := range []int{12, 15, 18} {
		for _, mode := range modes() {
			t.Run(fmt.Sprintf("%d %s", major, mode), func(t *testing.T) {
				d := newDB(t, major, coverageSetup)
				var tables []scope.Table
				for i, name := range []string{"plain", "multi", "ci", "part", "parent", "child", "busy"} {
					triggers := mode
					if name == "part" {
						triggers = scope.Row // as the scope has it for every tree
					}
					tables = append(tables, d.table(int32(i+1), name, triggers, scope.ByKey))
				}
				d.install(tables...)
				for _, c := range coverage {
					if major < c.since {
						continue
					}
					d.covered(c.name, d.app, c.sql, tables)
					d.run(d.app, "DISCARD ALL")
				}
				su := d.connect(d.url)
				d.run(su, "SET session_replication_role = replica")
				d.covered("replica role", su, "INSERT INTO plain VALUES (400, 'r', 0); UPDATE multi SET v = 'r'; DELETE FROM ci WHERE k = 'k10'", tables)
				d.copied(tables)
			})
		}
	}
}

// covered runs a script and holds the deltas against the rows.
func (d *db) covered(name string, conn *pgx.Conn, sql string, tables []scope.Table) {
	d.t.Helper()
	d.forget(tables...)
	before := make([]map[string]string, len(tables))
	for i, t := range tables {
		before[i] = d.content(t)
	}
	for _, s := range split(sql) {
		d.run(conn, s)
	}
	changed := 0
	for i, t := range tables {
		after := d.content(t)
		keys, marks := d.logged(t)
		if m := missed(before[i], after, keys, marks); len(m) > 0 {
			d.t.Errorf("%s: capture of %s missed %v; it has %v and marks %v", name, t.Name.Name, m, keys, marks)
		}
		changed += len(keys) + len(marks)
	}
	if quiet := name == "rolled back" || name == "no rows"; (changed == 0) != quiet {
		d.t.Errorf("%s: %d keys and marks logged", name, changed)
	}
}

// split cuts a script at "; " outside of $$: each statement is its own message, so that COMMIT
// PREPARED and savepoints behave as for a client.
func split(sql string) []string {
	var list []string
	for i, part := range strings.Split(sql, "$$") {
		if i%2 == 1 {
			list[len(list)-1] += "$$" + part + "$$"
			continue
		}
		for j, s := range strings.Split(part, "; ") {
			if j == 0 && i > 0 {
				list[len(list)-1] += s
			} else {
				list = append(list, s)
			}
		}
	}
	return list
}

func (d *db) copied(tables []scope.Table) {
	d.t.Helper()
	for _, c := range []struct{ into, rows string }{
		{"plain (id, v)", "901\ta\n902\tb\n"}, {"part (id, g, v)", "901\t4\tx\n901\t14\tx\n901\t24\tx\n"}, {"part_2b (id, g, v)", "902\t25\tx\n"},
	} {
		d.forget(tables...)
		if _, err := d.app.PgConn().CopyFrom(d.ctx, strings.NewReader(c.rows), "COPY "+c.into+" FROM STDIN"); err != nil {
			d.t.Fatal(err)
		}
		counts, err := Pending(d.ctx, d.ours, nil)
		if err != nil {
			d.t.Fatal(err)
		}
		var all int64
		for _, n := range counts {
			all += n.All()
		}
		if want := int64(strings.Count(c.rows, "\n")); all != want {
			d.t.Errorf("COPY %s: %d keys logged, want %d", c.into, all, want)
		}
	}
}

func TestCaptureOnTheOldestServer(t *testing.T) {
	d := newDB(t, 10, `CREATE TABLE plain (id int PRIMARY KEY, v text); INSERT INTO plain SELECT g, 'v' FROM generate_series(1, 5) g; CREATE TABLE log (v text)`)
	for i, mode := range modes() {
		table, log := d.table(1, "plain", mode, scope.ByKey), d.table(2, "log", mode, scope.FullRow)
		d.install(table, log)
		for _, one := range []scope.Table{table, log} { // by other triggers than before, the second time
			if err := Accept(d.ctx, d.ours, one); err != nil {
				t.Fatal(err)
			}
		}
		d.covered("dml", d.app, fmt.Sprintf("INSERT INTO plain VALUES (%d, 'n'); UPDATE plain SET id = id + 10 WHERE id = %d; DELETE FROM plain WHERE id = %d; INSERT INTO log VALUES ('l')", 100+i, 1+i, 3+i), []scope.Table{table})
		if changes, err := Check(d.ctx, d.ours, testRun, []scope.Table{table, log}); err != nil || len(changes) > 0 {
			t.Errorf("%s: Check says %v, %v", mode, changes, err)
		}
	}
	if n := d.one("SELECT count(*)::text FROM pgrunbook.image_2"); n != "2" {
		t.Errorf("%s images, want 2", n)
	}
	if err := Remove(d.ctx, d.srv, testRun, nil); err != nil {
		t.Fatal(err)
	}
}

func TestA2KeyDDLDoesNotFailWrites(t *testing.T) {
	for _, mode := range modes() {
		d := newDB(t, 15, `CREATE TABLE n (id int PRIMARY KEY, v text); CREATE TABLE c (k varchar(3) PRIMARY KEY)`)
		number := d.table(1, "n", mode, scope.ByKey)
		d.install(number, d.table(2, "c", mode, scope.ByKey))
		d.run(d.app, "INSERT INTO n VALUES (1, 'a'); INSERT INTO c VALUES ('abc')") // plans are cached now
		d.run(d.ours, "ALTER TABLE public.n ALTER COLUMN id TYPE bigint; ALTER TABLE public.c ALTER COLUMN k TYPE varchar(50)")
		d.run(d.app, "INSERT INTO n VALUES (3000000000, 'b'); UPDATE n SET id = id + 1; INSERT INTO c VALUES ('a longer key'); UPDATE c SET k = k || '!'; DELETE FROM c")
		d.run(d.ours, "ALTER TABLE public.n DROP CONSTRAINT n_pkey; ALTER TABLE public.n ALTER COLUMN id DROP NOT NULL")
		d.run(d.app, "INSERT INTO n VALUES (NULL, 'x'); UPDATE n SET id = 5 WHERE id IS NULL; UPDATE n SET id = NULL WHERE id = 5; DELETE FROM n")
		if got := d.one("SELECT string_agg(DISTINCT k1::text, ' ' ORDER BY k1::text) FROM " + DeltaName(number.Key.Shape)); !strings.Contains(got, "3000000001") {
			t.Errorf("%s: the delta has %s", mode, got)
		}
	}
}

func TestApplicationReachesNothingOfOurs(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY)`)
	table := d.table(1, "plain", scope.Statement, scope.ByKey)
	d.install(table)
	for _, sql := range []string{
		"SELECT * FROM " + DeltaName(table.Key.Shape), "SELECT pgrunbook.capture_1()", "SELECT * FROM pgrunbook.side",
		"CREATE TRIGGER x AFTER INSERT ON plain FOR EACH STATEMENT EXECUTE FUNCTION pgrunbook.capture_1()",
	} {
		if code := pgCode(d.try(d.app, sql)); code != "42501" {
			t.Errorf("%s: SQLSTATE %q, want 42501", sql, code)
		}
	}
}

func TestMarkedSessionIsNotCaptured(t *testing.T) {
	for _, mode := range modes() {
		d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY)`)
		table := d.table(1, "plain", mode, scope.ByKey)
		d.install(table)
		d.run(d.app, "SET pgrunbook.mark = '"+testRun.Mark+"'; INSERT INTO plain VALUES (1); UPDATE plain SET id = 2; DELETE FROM plain; TRUNCATE plain")
		if keys, marks := d.logged(table); len(keys)+len(marks) > 0 {
			t.Errorf("%s: a marked session left keys %v and marks %v", mode, keys, marks)
		}
		d.run(d.app, "SET pgrunbook.mark = 'another run'; INSERT INTO plain VALUES (1)")
		if keys, _ := d.logged(table); len(keys) != 1 {
			t.Errorf("%s: a session of another run left keys %v", mode, keys)
		}
	}
}

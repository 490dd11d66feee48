package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

var testRun = scope.Run{ID: "r1", Mark: "m-1", GateKey: 4611686018427387905, Message: `moved to "new"; it's \ over there`, ClosedError: "25006", Elsewhere: "o'new:5432/erp"}

const setup = `
CREATE TABLE plain (id int PRIMARY KEY, v text);
INSERT INTO plain SELECT g, 'v' FROM generate_series(1, 10) g;
CREATE TABLE part (id int, g int) PARTITION BY RANGE (g);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (g);
CREATE TABLE part_2a PARTITION OF part_2 FOR VALUES FROM (10) TO (20);
CREATE TABLE nodata (id int); CREATE TABLE frozen (id int);
CREATE VIEW plain_view AS SELECT * FROM plain;
CREATE TABLE outside (id int);
GRANT ALL ON plain, part, part_1, part_2, part_2a, nodata, frozen, plain_view, outside TO app;`

func tables() []scope.Table {
	name := func(id int32, n string, k scope.Kind, data scope.Data) scope.Table {
		return scope.Table{ID: id, Name: scope.Name{Schema: "public", Name: n}, Kind: k, Data: data}
	}
	return []scope.Table{
		name(1, "plain", scope.Plain, scope.Live), name(2, "part", scope.Partitioned, scope.Live),
		name(3, "nodata", scope.Plain, scope.NoData), name(4, "frozen", scope.Plain, scope.AtFreeze),
	}
}

type db struct {
	t    *testing.T
	ctx  context.Context
	url  string
	srv  *pg.Server
	ours *pgx.Conn
}

func newDB(t *testing.T, c *testpg.Cluster) *db {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	d := &db{t: t, ctx: ctx, url: testpg.NewDB(t, c)}
	var err error
	if d.srv, err = pg.New(pg.Config{Side: "source", URL: d.url, RunID: testRun.ID, Mark: testRun.Mark}); err != nil {
		t.Fatal(err)
	}
	if d.ours, err = d.srv.Connect(ctx, pg.Use{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.ours.Close(context.Background()) })
	su := d.connect("postgres")
	d.run(su, `DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$`)
	d.run(su, setup)
	return d
}

// connect connects as a driver does, with the extended protocol.
func (d *db) connect(role string) *pgx.Conn {
	d.t.Helper()
	conn, err := pgx.Connect(d.ctx, strings.Replace(d.url, "postgres@", role+"@", 1))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (d *db) try(conn *pgx.Conn, sql string) string {
	_, err := conn.PgConn().Exec(d.ctx, sql).ReadAll()
	return code(err)
}

func (d *db) run(conn *pgx.Conn, sql string) {
	d.t.Helper()
	if _, err := conn.PgConn().Exec(d.ctx, sql).ReadAll(); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
}

func code(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pgErr):
		return pgErr.Code
	}
	return err.Error()
}

func (d *db) install() {
	d.t.Helper()
	if err := InstallOn(d.ctx, d.ours, testRun, tables(), nil); err != nil {
		d.t.Fatal(err)
	}
}

func (d *db) want(p Position) {
	d.t.Helper()
	got, err := State(d.ctx, d.ours, testRun)
	if err != nil || got != p {
		d.t.Errorf("the gate is %s, %v; want %s", got, err, p)
	}
}

func (d *db) set(f func(context.Context, *pgx.Conn, scope.Run) error) {
	d.t.Helper()
	if err := f(d.ctx, d.ours, testRun); err != nil {
		d.t.Fatal(err)
	}
}

func (d *db) is(flag string) {
	d.t.Helper()
	var got string
	if err := d.ours.QueryRow(d.ctx, "SELECT last_value::text FROM pgrunbook.gate_flag").Scan(&got); err != nil || got != flag {
		d.t.Errorf("the flag is %s, %v; want %s", got, err, flag)
	}
}

// writes are every way to write a gated table.
var writes = []string{
	"INSERT INTO plain VALUES (100)", "UPDATE plain SET v = 'x'", "DELETE FROM plain WHERE id = 100", "UPDATE plain SET v = 'x' WHERE false", "TRUNCATE plain",
	"INSERT INTO plain VALUES (1) ON CONFLICT (id) DO UPDATE SET v = 'up'", "WITH i AS (INSERT INTO plain VALUES (101) RETURNING id) SELECT * FROM i",
	"INSERT INTO part VALUES (1, 1)", "INSERT INTO part_1 VALUES (1, 1)", "INSERT INTO part_2 VALUES (1, 11)", "UPDATE part_2a SET id = 5", "TRUNCATE part", "TRUNCATE part_1",
	"UPDATE plain_view SET v = 'v'", "INSERT INTO nodata VALUES (1)", "INSERT INTO frozen VALUES (1)",
}

func TestGateOpenAndClosed(t *testing.T) {
	for _, major := range []int{12, 15, 18} {
		d := newDB(t, testpg.Shared(t, major))
		d.want(Absent)
		d.install()
		d.want(Open)
		all := writes
		if major >= 15 {
			all = append([]string{"MERGE INTO plain p USING (VALUES (1)) s (id) ON p.id = s.id WHEN MATCHED THEN UPDATE SET v = 'm'"}, writes...)
		}
		app, su, marked := d.connect("app"), d.connect("postgres"), d.connect("app")
		d.run(su, "SET session_replication_role = replica")
		d.run(marked, "SET pgrunbook.mark = '"+testRun.Mark+"'")
		expect := func(when string, conn *pgx.Conn, want string) {
			t.Helper()
			for _, sql := range all {
				if got := d.try(conn, "BEGIN; "+sql); got != want {
					t.Errorf("%d, %s: %s: SQLSTATE %q, want %q", major, when, sql, got, want)
				}
				d.run(conn, "ROLLBACK")
			}
		}
		expect("open", app, "")
		d.set(CloseNow)
		d.want(Closed)
		before, err := Refused(d.ctx, d.ours)
		if err != nil || before != 0 {
			t.Errorf("%d: %d writes refused before any, %v", major, before, err)
		}
		d.is("2")
		expect("closed", app, "25006")
		expect("closed, replica role", su, "25006")
		expect("closed, marked", marked, "")
		for _, phase := range []struct{ flag, message string }{{"2", notOpenYet}, {"1", testRun.Message}} { // before the first flip, and after one
			d.run(d.ours, "ALTER SEQUENCE pgrunbook.gate_flag RESTART "+phase.flag)
			_, err = app.PgConn().CopyFrom(d.ctx, strings.NewReader("200\tc\n"), "COPY plain FROM STDIN")
			var e *pgconn.PgError
			if !errors.As(err, &e) || e.Code != "25006" || e.Message != phase.message || e.Detail != "Writes go to o'new:5432/erp." {
				t.Errorf("%d: COPY into a table that is closed with %s: %+v", major, phase.flag, err)
			}
		}
		if got := d.try(app, "INSERT INTO outside VALUES (1); SELECT * FROM plain"); got != "" {
			t.Errorf("%d: a table out of scope and a reader: SQLSTATE %q", major, got)
		}
		refused, err := Refused(d.ctx, d.ours)
		if want := int64(2*len(all) + 2); err != nil || refused != want {
			t.Errorf("%d: %d writes refused, %v, want %d", major, refused, err, want)
		}
		d.set(OpenNow)
		d.want(Open)
		expect("open again", app, "")
	}
}

// Sequences are read outside MVCC: what a transaction saw before does not matter.
func TestOldSnapshotsAndPlansSeeTheFlag(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	d.install()
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		app := d.connect("app")
		if _, err := app.Prepare(d.ctx, "p", "UPDATE plain SET v = $1 WHERE id = $2"); err != nil {
			t.Fatal(err)
		}
		for i := range 8 { // a generic plan after five
			if _, err := app.Exec(d.ctx, "p", "x", i); err != nil {
				t.Fatal(err)
			}
		}
		d.run(app, "BEGIN ISOLATION LEVEL "+level+"; SELECT count(*) FROM plain")
		d.set(CloseNow)
		if _, err := app.Exec(d.ctx, "p", "late", 1); code(err) != "25006" {
			t.Errorf("%s: a prepared UPDATE with an old snapshot: %v", level, err)
		}
		d.run(app, "ROLLBACK")
		d.set(OpenNow)
	}
}

func TestR22AHeldGateMakesWritersWait(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	d.install()
	holder, app := d.connect("postgres"), d.connect("app")
	d.run(holder, fmt.Sprintf("BEGIN; ALTER SEQUENCE pgrunbook.gate_flag RESTART 1; SELECT pg_advisory_xact_lock(%d)", testRun.GateKey))
	d.want(Held)
	done := make(chan string, 1)
	go func() { done <- d.try(app, "SET lock_timeout = '50ms'; UPDATE plain SET v = 'waited' WHERE id = 1") }()
	for waiting := 0; waiting == 0; {
		if err := d.ours.QueryRow(d.ctx, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case got := <-done:
		t.Fatalf("a writer did not wait: %q", got)
	case <-time.After(200 * time.Millisecond): // four times the application's lock_timeout
	}
	d.run(holder, "ROLLBACK")
	if got := <-done; got != "" {
		t.Errorf("the writer got %q after the hold was let go", got)
	}
	d.want(Open)
}

// What messages tell people to type works in the sessions of a side that was left, and waits for writers in flight.
func TestByHand(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	d.install()
	app := d.connect("app")
	d.run(d.ours, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$")
	person := d.connect("postgres")
	d.run(app, "BEGIN; UPDATE plain SET v = 'in flight' WHERE id = 1")
	if got := d.try(person, "SET lock_timeout = '100ms'; "+CloseByHand); got != "55P03" {
		t.Errorf("with a writer in flight closing by hand says %q", got)
	}
	d.run(person, "ROLLBACK; SET lock_timeout = 0")
	d.run(app, "COMMIT")
	d.want(Open)
	d.run(person, CloseByHand)
	d.want(Closed)
	d.run(person, OpenByHand)
	d.want(Open)
}

func TestR2DeadRunnerLeavesTheGateOpen(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	d.install()
	holder := d.connect("postgres")
	d.run(holder, fmt.Sprintf("BEGIN; ALTER SEQUENCE pgrunbook.gate_flag RESTART 1; SELECT pg_advisory_xact_lock(%d)", testRun.GateKey))
	d.want(Held)
	if err := holder.PgConn().Conn().Close(); err != nil { // what the server sees of a SIGKILL
		t.Fatal(err)
	}
	if got := d.try(d.connect("app"), "UPDATE plain SET v = 'on' WHERE id = 1"); got != "" {
		t.Errorf("a writer after the runner's death: %q", got)
	}
	d.want(Open)
}

func TestR2ClosedSurvivesACrash(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: 15, Fsync: true, Settings: map[string]string{"synchronous_commit": "off"}})
	ctx := context.Background()
	for _, stop := range []func() error{func() error { return c.Stop(ctx, testpg.Immediate) }, c.KillPostmaster} {
		d := newDB(t, c)
		d.install()
		d.run(d.ours, "CHECKPOINT")
		d.set(CloseNow)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		conn, err := d.srv.Connect(ctx, pg.Use{})
		if err != nil {
			t.Fatal(err)
		}
		if p, err := State(ctx, conn, testRun); err != nil || p != Closed {
			t.Errorf("after a crash the gate is %s, %v", p, err)
		}
		_ = conn.Close(ctx)
	}
}

func TestR28VerifyFindsAnUngatedTable(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	d.install()
	if err := Verify(d.ctx, d.ours, testRun, tables()); err != nil {
		t.Fatal(err)
	}
	for _, harm := range []string{
		`ALTER TABLE public.plain DISABLE TRIGGER ALL`, `ALTER TABLE public.part_2a ENABLE TRIGGER ALL`, `DROP TRIGGER "!pgrunbook_gate" ON public.frozen`,
		`CREATE TABLE public.part_3 PARTITION OF public.part DEFAULT`,
		`DROP TRIGGER "!pgrunbook_gate" ON public.nodata; CREATE TRIGGER "!pgrunbook_gate" BEFORE INSERT ON public.nodata FOR EACH STATEMENT EXECUTE FUNCTION pgrunbook.gate()`,
	} {
		d.run(d.ours, harm)
		var e *engine.Error
		if err := Verify(d.ctx, d.ours, testRun, tables()); !errors.As(err, &e) || e.Hint == "" || e.Object == "" {
			t.Errorf("Verify after %s says %v", harm, err)
		}
		d.install()
		if err := Verify(d.ctx, d.ours, testRun, tables()); err != nil {
			t.Errorf("Verify after mending %s: %v", harm, err)
		}
	}
	gone := append(tables(), scope.Table{ID: 9, Name: scope.Name{Schema: "public", Name: "gone"}})
	if err := Verify(d.ctx, d.ours, testRun, gone); err == nil {
		t.Error("Verify does not miss a table that is gone")
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	before, err := testpg.SchemaDump(d.ctx, d.url)
	if err != nil {
		t.Fatal(err)
	}
	d.install()
	d.set(CloseNow)
	if err := Disarm(d.ctx, d.ours); err != nil {
		t.Fatal(err)
	}
	app := d.connect("app")
	if got := d.try(app, "UPDATE plain SET v = 'free'"); got != "" {
		t.Errorf("a disarmed gate refuses: %q", got)
	}
	for range 2 {
		if err := Remove(d.ctx, d.srv, testRun, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := capture.Remove(d.ctx, d.srv, testRun, nil); err != nil {
		t.Fatal(err)
	}
	after, err := testpg.SchemaDump(d.ctx, d.url)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("removing left (-before +after):\n%s", diff)
	}
}

func TestRemoveStatementIsAllThatAPersonNeeds(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	before, err := testpg.SchemaDump(d.ctx, d.url)
	if err != nil {
		t.Fatal(err)
	}
	d.install()
	d.set(CloseNow)
	if err := capture.Remove(d.ctx, d.srv, testRun, nil); err != nil {
		t.Fatal(err)
	}
	d.want(Closed)
	app := d.connect("app")
	if got := d.try(app, "UPDATE plain SET v = 'no'"); got != "25006" {
		t.Errorf("after capture went, the closed gate says %q", got)
	}
	d.run(d.connect("postgres"), RemoveStatement())
	if got := d.try(app, "UPDATE plain SET v = 'yes'"); got != "" {
		t.Errorf("after %s: %q", RemoveStatement(), got)
	}
	after, err := testpg.SchemaDump(d.ctx, d.url)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("removing left (-before +after):\n%s", diff)
	}
}

func TestR29AnApplicationCannotTouchTheGate(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	d.install()
	app := d.connect("app")
	for _, sql := range []string{"SELECT nextval('pgrunbook.gate_flag')", "SELECT * FROM pgrunbook.gate_flag", "SELECT pgrunbook.gate()"} {
		if got := d.try(app, sql); got != "42501" {
			t.Errorf("%s: SQLSTATE %q, want 42501", sql, got)
		}
	}
	if got := d.try(app, "UPDATE plain SET v = 'fine'"); got != "" {
		t.Errorf("a role without any grant of ours cannot write: %q", got)
	}
}

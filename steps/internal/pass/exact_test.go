package pass

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
)

const plainTable = `CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now(), x double precision)`

// A pass that took longer than the patience with failures, and is cut then, is made again.
func TestPatienceBeginsWithTheFirstFailure(t *testing.T) {
	const patience = 200 * time.Millisecond
	p, tries := New(Config{}), 0
	err := p.patiently(t.Context(), patience, func() error {
		if tries++; tries > 1 {
			return nil
		}
		time.Sleep(2 * patience)
		return &pgconn.PgError{Code: "40001"}
	})
	if err != nil || tries != 2 {
		t.Errorf("after %d tries: %v", tries, err)
	}
}

func TestExactPassCarriesEveryKindOfChange(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t SELECT g, 'v' || g, now(), g / 3.0 FROM generate_series(1, 1000) g`)
	res := p.synced()
	if res.Keys != 1000 || res.Rows != 1000 || res.Deleted != 0 || res.Tables != 1 || res.Empty {
		t.Errorf("the first pass says %+v", res)
	}
	p.app(`DELETE FROM t WHERE id <= 10; UPDATE t SET v = 'new' WHERE id BETWEEN 11 AND 20; UPDATE t SET id = -id WHERE id = 21;
		INSERT INTO t VALUES (5, 'again')`)
	res = p.synced()
	if res.Keys != 22 || res.Rows != 12 || res.Deleted != 10 {
		t.Errorf("the second pass says %+v", res)
	}
	if n := p.deltaRows(); n != 0 {
		t.Errorf("%d delta rows are left", n)
	}
	if res = p.synced(); !res.Empty {
		t.Errorf("a pass without changes says %+v", res)
	}
	p.app(`TRUNCATE t; INSERT INTO t VALUES (7, 'only')`)
	p.synced()
}

// What commits between the locks and the hold is in the final pass: its snapshot is taken by Run.
func TestR10SnapshotIsTakenByRun(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t VALUES (1, 'a')`)
	p.synced()
	p.app(`UPDATE t SET v = 'before'`)
	open, err := p.passer.Begin(p.ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close(p.ctx)
	p.app(`UPDATE t SET v = 'a writer in flight'`)
	if _, err := open.Run(p.ctx, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := p.one(p.target, "SELECT v FROM t"); got != "a writer in flight" {
		t.Errorf("the target has %q", got)
	}
}

func TestPassIDIsInTheWatermark(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t VALUES (1, 'a')`)
	res := p.synced()
	if got := p.one(p.target, `SELECT pass::text || ' ' || snapshot FROM pgrunbook.watermark WHERE from_side = 'source'`); got != res.PassID+" "+res.Snapshot {
		t.Errorf("the watermark says %q, the pass %q %q", got, res.PassID, res.Snapshot)
	}
}

func TestSnapshotOutlivesThePass(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t VALUES (1, 'a')`)
	res, err := p.passer.Exact(p.ctx, Options{Snapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	p.app(`UPDATE t SET v = 'later'`)
	conn := p.connect(p.source)
	if err := run(p.ctx, conn, "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '"+res.ExportedSnapshot+"'"); err != nil {
		t.Fatal(err)
	}
	var v string
	if err := conn.QueryRow(p.ctx, "SELECT v FROM t").Scan(&v); err != nil || v != "a" {
		t.Errorf("the exported snapshot reads %q, %v", v, err)
	}
	res.Release()
	if err := run(p.ctx, p.connect(p.source), "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '"+res.ExportedSnapshot+"'"); err == nil {
		t.Error("the snapshot is still there after Release")
	}
}

// A trigger on To that changes rows raises nothing and keeps none back: only the comparison sees it.
func TestProveFindsRowsThatChangeOnTheirWay(t *testing.T) {
	p := newPair(t, `CREATE DOMAIN short AS varchar(20) NOT NULL;
		CREATE TABLE t (id int, part int, v text, s short, j json, n numeric(10,2), a int[], PRIMARY KEY (id, part))`)
	const rows = `INSERT INTO t SELECT g, g %% 3, CASE WHEN g %% 5 > 0 THEN 'v' || g END, 's', '{"a": 1}', g / 3.0, ARRAY[g, NULL] FROM generate_series(%d, %d) g`
	p.app(fmt.Sprintf(rows, 1, 100))
	res, err := p.passer.Exact(p.ctx, Options{Prove: 1000})
	if err != nil || res.Proved != 100 {
		t.Fatalf("%d of 100 rows were compared: %v", res.Proved, err)
	}
	p.app(`DELETE FROM t WHERE id < 11; UPDATE t SET v = 'x' WHERE id > 95`)
	if res, err = p.passer.Exact(p.ctx, Options{Prove: 1000}); err != nil || res.Proved != 15 {
		t.Fatalf("%d of 15 keys were compared: %v", res.Proved, err)
	}
	p.exec(p.target, `CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.n := NEW.n + 1; RETURN NEW; END $$;
		CREATE TRIGGER meddle BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE PROCEDURE meddle(); ALTER TABLE t ENABLE ALWAYS TRIGGER meddle`)
	p.app(fmt.Sprintf(rows, 101, 103))
	_, err = p.passer.Exact(p.ctx, Options{Prove: 1000})
	if engine.ClassOf(err) != engine.ClassDifferences || !strings.Contains(err.Error(), "3 of 3 differ") {
		t.Errorf("rows are changed on their way, and the pass says: %v", err)
	}
	if n := p.one(p.target, "SELECT count(*)::text FROM t WHERE id > 100"); n != "0" {
		t.Errorf("%s changed rows were kept", n)
	}
	if res, err = p.passer.Exact(p.ctx, Options{}); err != nil || res.Proved != 0 { // the naive pass sees nothing
		t.Errorf("without the comparison: %+v, %v", res, err)
	}
	p.exec(p.target, "DROP TRIGGER meddle ON t; UPDATE t SET n = n - 1 WHERE id > 100")
	p.synced()
}

// Who holds a lock that a pass needs is named, with what ends that; once it is free the pass is made.
func TestWhoLocksATableIsNamed(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t SELECT g FROM generate_series(1, 10) g`)
	holder := p.connect(p.source)
	if err := run(p.ctx, holder, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	var said []engine.Event
	p.passer.cfg.Emit = func(e engine.Event) {
		if e.Kind != engine.EventWaiting {
			return
		}
		said = append(said, e)
		if err := run(p.ctx, holder, "ROLLBACK"); err != nil {
			t.Error(err)
		}
	}
	p.exact()
	p.equal()
	if len(said) == 0 {
		t.Fatal("nobody was named")
	}
	pid := holder.PgConn().PID()
	want := fmt.Sprintf("wait for pid %d to end, or on the source: SELECT pg_terminate_backend(%d)", pid, pid)
	if said[0].Hint != want || len(said[0].Blockers) != 1 {
		t.Errorf("the hint is %q, want %q; in the way are %q", said[0].Hint, want, said[0].Blockers)
	}
}

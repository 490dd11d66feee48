package pass

import (
	"testing"
)

const plainTable = `CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now(), x double precision)`

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

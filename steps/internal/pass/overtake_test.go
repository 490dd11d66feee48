package pass

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// A pass whose COMMIT is still on its way, and could not be looked up, has written another version of a row that the next pass
// deletes: that one finds places of rows, and waits until they are known.
func TestPassWaitsForACommitOnItsWay(t *testing.T) {
	p := newPair(t, plainTable)
	p.app("INSERT INTO t SELECT g FROM generate_series(1, 3) g")
	p.synced()
	earlier, err := p.to.Connect(p.ctx, pg.Use{Name: "pass write", Marked: true, Replica: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = earlier.Close(p.ctx) }()
	if err := run(p.ctx, earlier, "BEGIN; UPDATE public.t SET id = id WHERE id = 1; UPDATE pgrunbook.watermark SET pass = md5('earlier')::uuid WHERE from_side = 'source'"); err != nil {
		t.Fatal(err)
	}
	p.app("DELETE FROM t WHERE id = 1")
	ended := make(chan error, 1)
	go func() {
		_, err := p.passer.Exact(p.ctx, Options{})
		ended <- err
	}()
	const waits = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
	for deadline := time.Now().Add(time.Minute); p.one(p.target, waits) == "0"; time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("the pass waited for nobody: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("the pass does not come to the row")
		}
	}
	if err := run(p.ctx, earlier, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	p.equal()
}

// A piece of a backlog looks its own keys up, however many others wait behind it.
func TestPieceReadsItsOwnRows(t *testing.T) {
	p := newPair(t, "CREATE TABLE t (id int8 PRIMARY KEY, v text) WITH (autovacuum_enabled = off)")
	p.app("INSERT INTO t SELECT g, 'a' FROM generate_series(1, 12000) g; ANALYZE t")
	p.synced()
	p.app("UPDATE t SET v = 'b'")
	p.tables[0].Rows = 12000
	p.passer.SetTables(p.tables)
	const stats = "SELECT seq_scan || ' ' || idx_scan FROM pg_stat_user_tables WHERE relname = 't'"
	read := func() (seq, idx int64) {
		if _, err := fmt.Sscan(p.one(p.source, stats), &seq, &idx); err != nil {
			t.Fatal(err)
		}
		return seq, idx
	}
	const rows = 100
	if _, _, last, err := p.passer.piece(p.ctx, p.tables[0], rows); err != nil || last {
		t.Fatalf("no piece was cut: %v", err)
	}
	if err := p.passer.Close(p.ctx); err != nil { // it tells what it read as it ends
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		seq, idx := read()
		if idx >= rows {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the piece looked up no keys: %d scans of the whole table, %d of its index", seq, idx)
		}
	}
}

// The key of a partitioned table may be an array.
func TestPartitionsByAnArray(t *testing.T) {
	p := newPair(t, `CREATE TABLE t (id int4[], n text COLLATE "C", v text, PRIMARY KEY (id, n)) PARTITION BY LIST (n); CREATE TABLE t1 PARTITION OF t FOR VALUES IN ('x')`)
	p.app("INSERT INTO t SELECT ARRAY[g, g], 'x', 'a' FROM generate_series(1, 30) g")
	p.synced()
	p.app("DELETE FROM t WHERE id[1] < 10; UPDATE t SET v = 'b' WHERE id[1] > 20")
	p.synced()
	if typ := p.tables[0].Key.Columns[0].DeltaType; !strings.HasSuffix(typ, "._int4") {
		t.Errorf("the key's type is written %s", typ)
	}
}

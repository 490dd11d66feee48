package pass

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// F39: a delete on the target would cascade once more, to children that no delta names. Rows of a
// table whose identity is always generated are deleted and written again, so that every update of a
// parent would take its children along.
func TestF39CascadesHappenOnce(t *testing.T) {
	p := newPair(t, `CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, up int REFERENCES parent ON DELETE SET NULL);
		CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE)`)
	p.app(`INSERT INTO parent (v) SELECT 'v' FROM generate_series(1, 10); UPDATE parent SET up = id - 1 WHERE id > 1; INSERT INTO child SELECT g, g % 10 + 1 FROM generate_series(1, 40) g`)
	p.synced()
	p.app(`UPDATE parent SET v = 'w' WHERE id <= 5`)
	p.synced()
	if n := p.one(p.target, "SELECT count(*)::text FROM child"); n != "40" {
		t.Errorf("%s of 40 children are left", n)
	}
	p.app(`DELETE FROM parent WHERE id IN (3, 4)`)
	p.synced()
	if n := p.one(p.target, "SELECT count(*)::text FROM child"); n != "32" {
		t.Errorf("%s children are left, want 32", n)
	}
}

var touched = regexp.MustCompile(`Buffers: shared hit=(\d+)`)

// buffers are how many pages of t's delta a look from an xid on touches.
func (p *pair) buffers(low uint64) int {
	p.t.Helper()
	conn := p.connect(p.source)
	var version int
	if err := conn.QueryRow(p.ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		p.t.Fatal(err)
	}
	table := p.tables[0]
	sql := "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, COSTS OFF) SELECT count(*) FROM " + deltaTable(table) + " d WHERE " + span{low: low}.where(dialectOf(version), table.ID)
	if err := run(p.ctx, conn, "SET enable_seqscan = off; SET enable_bitmapscan = off"); err != nil {
		p.t.Fatal(err)
	}
	var most int
	for range 2 { // the first reads from disk
		rows, err := conn.Query(p.ctx, sql)
		if err != nil {
			p.t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			p.t.Fatal(err)
		}
		most = 0
		for _, m := range touched.FindAllStringSubmatch(strings.Join(lines, "\n"), 1) {
			most, _ = strconv.Atoi(m[1])
		}
	}
	return most
}

// C1: rows that passes took stay in the delta as dead ones while somebody's transaction is open. A
// pass begins where the last one left nothing.
func TestC1DeadDeltaRowsCostNothing(t *testing.T) {
	p := newPair(t, plainTable)
	old := p.connect(p.source)
	if err := run(p.ctx, old, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t"); err != nil {
		t.Fatal(err)
	}
	p.app(`INSERT INTO t SELECT g FROM generate_series(1, 40000) g`)
	p.exact()
	p.app(`UPDATE t SET v = 'one' WHERE id = 7`)
	low := p.passer.from.low[p.tables[0].ID]
	all, needed := p.buffers(0), p.buffers(low)
	if all < 100 || needed*10 > all {
		t.Errorf("a pass reads %d pages of the delta, all of it are %d", needed, all)
	}
	p.exact()
	if err := run(p.ctx, old, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	p.synced()
}

// C2: vacuumed space at the front of a delta is filled first, so that heap order would serve the
// newest rows for ever.
func TestC2OldestFirst(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t SELECT g FROM generate_series(1, 2000) g`)
	p.app(`INSERT INTO t VALUES (-1, 'old')`)
	if _, _, _, err := p.passer.piece(p.ctx, p.tables[0], 2000); err != nil {
		t.Fatal(err)
	}
	p.app(`VACUUM pgrunbook.` + strings.TrimPrefix(deltaTable(p.tables[0]), `"pgrunbook".`))
	p.app(`INSERT INTO t SELECT g FROM generate_series(5001, 6000) g`)
	first := p.one(p.source, "SELECT k1::text FROM "+deltaTable(p.tables[0])+" LIMIT 1")
	if first == "-1" {
		t.Error("the oldest row comes first in the heap: nothing is proved")
	}
	if _, _, _, err := p.passer.piece(p.ctx, p.tables[0], 1); err != nil {
		t.Fatal(err)
	}
	if got := p.one(p.target, "SELECT count(*)::text FROM t WHERE id = -1"); got != "1" {
		t.Error("the oldest change waits behind newer ones")
	}
	p.synced()
}

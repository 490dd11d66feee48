package pass

import (
	"testing"
	"time"
)

// A partition that was detached keeps its triggers: what they left of it says nothing of the tree any
// more, and on the other side the name may be a table that was loaded since, or nothing.
func TestF44MarksOfPartitionsThatLeft(t *testing.T) {
	p := newPair(t, `CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100); CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (100) TO (200)`)
	p.app(`INSERT INTO r SELECT g, 'v' FROM generate_series(1, 150) g`)
	p.synced()
	p.app(`TRUNCATE r1, r2; ALTER TABLE r DETACH PARTITION r1; INSERT INTO r1 VALUES (1, 'own')`)
	p.exec(p.target, `ALTER TABLE r DETACH PARTITION r1; DELETE FROM r1; INSERT INTO r1 VALUES (1, 'own')`) // joined, and loaded
	p.synced()
	if got := p.one(p.target, "SELECT count(*)::text FROM r1"); got != "1" {
		t.Errorf("%s rows are left of the table that was a partition", got)
	}
	p.app(`TRUNCATE r1`)
	p.exec(p.target, `DROP TABLE r1`)
	if _, err := p.passer.Exact(p.ctx, Options{Patience: time.Second}); err != nil {
		t.Errorf("a mark of what is gone: %v", err)
	}
	if got := p.one(p.source, "SELECT count(*)::text FROM pgrunbook.truncated"); got != "0" {
		t.Errorf("%s marks are not forgotten", got)
	}
}

// A composite key with a null field is not "IS NOT NULL", and its row is there all the same.
func TestF38CompositeKeyWithANullField(t *testing.T) {
	p := newPair(t, `CREATE TYPE pair AS (a int, b int); CREATE TABLE c (k pair PRIMARY KEY, v int)`)
	p.app(`INSERT INTO c VALUES ((1, 1), 1), ((1, NULL), 2), ((NULL, NULL), 3)`)
	p.synced()
	p.app(`UPDATE c SET v = v + 1; DELETE FROM c WHERE v = 2`)
	if _, err := p.passer.Exact(p.ctx, Options{Patience: 5 * time.Second, Prove: 100}); err != nil {
		t.Error(err)
	}
	p.equal()
}

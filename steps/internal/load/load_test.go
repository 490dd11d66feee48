package load

import (
	"testing"

	"github.com/pgrunbook/pgrunbook/engine/journal"
)

const manyRows = `CREATE TABLE t (id int PRIMARY KEY, v text, n numeric UNIQUE); CREATE INDEX t_v ON t (v);
CREATE TABLE small (k text PRIMARY KEY, j json);
CREATE TABLE empty (k text PRIMARY KEY);
CREATE TABLE tree (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE tree_1 PARTITION OF tree FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE tree_2 PARTITION OF tree FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY HASH (id);
CREATE TABLE tree_2a PARTITION OF tree_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE tree_2b PARTITION OF tree_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1)`

const fillRows = `INSERT INTO t SELECT g, md5(g::text), g FROM generate_series(1, 20000) g;
INSERT INTO small VALUES ('a', '{"x": 1}'), ('b', NULL);
INSERT INTO tree SELECT g, '2020-06-01'::date + g % 500, 'v' || g FROM generate_series(1, 5000) g`

func TestLoadCopiesEveryRowOnceAndBuildsKeys(t *testing.T) {
	p := newPair(t, manyRows, chunks(128<<10))
	p.exec(p.source, fillRows)
	p.exec(p.source, "DELETE FROM pgrunbook.truncated")
	// The rows were captured as well; without their keys a load has to stand on its own.
	p.exec(p.source, `DO $$ DECLARE d text; BEGIN FOR d IN SELECT c.oid::regclass::text FROM pg_class c WHERE relname LIKE 'delta\_%' AND relkind = 'r' LOOP EXECUTE 'DELETE FROM ' || d; END LOOP; END $$`)
	p.load()
	p.equal()
	if n := p.one(p.target, "SELECT count(*)::text FROM pgrunbook.item WHERE state = 'done' AND tbl = (SELECT min(tbl) FROM pgrunbook.item WHERE size = (SELECT max(size) FROM pgrunbook.item))"); n == "1" {
		t.Error("the large table was one chunk")
	}
	states, err := p.journal.TableStates(p.ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tbl := range p.tables {
		if states[tbl.ID].State != journal.Following {
			t.Errorf("%s is %q", tbl.Name.Name, states[tbl.ID].State)
		}
	}
	p.load() // nothing is left to do
	p.synced()
}

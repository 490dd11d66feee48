package load

import "testing"

// A TRUNCATE and a fill behind disabled triggers, as scripts that replace a table make them: the table is
// loaded again, and the mark of the TRUNCATE must not empty it afterwards.
func TestF44TruncatedAndFilledBehindTheTriggers(t *testing.T) {
	p := newPair(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	p.beforeCapture(`INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g`)
	p.load()
	p.synced()
	p.exec(p.source, `BEGIN; TRUNCATE t; ALTER TABLE t DISABLE TRIGGER ALL; INSERT INTO t SELECT g, 'new' FROM generate_series(1, 50) g; COMMIT;
		ALTER TABLE t ENABLE ALWAYS TRIGGER pgrunbook_capture_ins; ALTER TABLE t ENABLE ALWAYS TRIGGER pgrunbook_capture_upd;
		ALTER TABLE t ENABLE ALWAYS TRIGGER pgrunbook_capture_del; ALTER TABLE t ENABLE ALWAYS TRIGGER pgrunbook_capture_trunc; INSERT INTO t VALUES (1000, 'seen')`)
	l := New(p.cfg)
	if err := l.StartOver(p.ctx, p.tables[0]); err != nil {
		t.Fatal(err)
	}
	if err := l.Run(p.ctx); err != nil {
		t.Fatal(err)
	}
	p.synced()
	p.exec(p.source, `TRUNCATE t; INSERT INTO t VALUES (1, 'last')`)
	p.synced()
}

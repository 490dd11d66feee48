package pass

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// duringRead runs ddl in another session after the pass took its snapshot and before it reads the
// rows, waits until it is done or waits for a lock, and lets the pass go on.
func (p *pair) duringRead(ddl string) {
	p.t.Helper()
	conn := p.connect(p.source)
	finished := make(chan error, 1)
	err := p.afterSnapshot(func() {
		go func() { finished <- run(p.ctx, conn, ddl) }()
		p.settled(conn)
	})
	if err != nil {
		p.t.Fatalf("the pass failed: %v", err)
	}
	if err := <-finished; err != nil {
		p.t.Fatalf("%s: %v", ddl, err)
	}
}

// settled waits until the first statement of a session is done or waits for a lock.
func (p *pair) settled(conn *pgx.Conn) {
	p.t.Helper()
	for p.one(p.source, `SELECT count(*)::text FROM pg_stat_activity WHERE pid = `+strconv.Itoa(int(conn.PgConn().PID()))+` AND query <> '' AND (wait_event_type = 'Lock' OR state = 'idle')`) != "1" {
		if p.ctx.Err() != nil {
			return
		}
	}
}

// D1: a rewrite is not MVCC-safe: a snapshot from before it reads an empty table, and a pass that
// reads after it would delete every row that it has the key of.
func TestD1RewriteBetweenSnapshotAndRead(t *testing.T) {
	for _, ddl := range []string{"ALTER TABLE t SET UNLOGGED", "ALTER TABLE t ALTER v TYPE varchar(40) USING v || ''", "VACUUM FULL t"} {
		p := newPair(t, plainTable)
		p.app(`INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g`)
		p.synced()
		p.app(`UPDATE t SET v = 'w' WHERE id <= 5`)
		p.duringRead(ddl)
		p.equal()
	}
}

// repack is what pg_repack does in the end: the copy's files become the table's.
const repack = `LOCK TABLE t IN ACCESS EXCLUSIVE MODE; CREATE TABLE packed (LIKE t INCLUDING ALL); INSERT INTO packed SELECT * FROM t;
	UPDATE pg_class a SET relfilenode = b.relfilenode, reltablespace = b.reltablespace FROM pg_class b WHERE a.relnamespace = 'public'::regnamespace AND b.relnamespace = a.relnamespace
	  AND (a.relname, b.relname) IN (('t', 'packed'), ('packed', 't'), ('t_pkey', 'packed_pkey'), ('packed_pkey', 't_pkey'));
	DROP TABLE packed`

// F42: a table that goes to another tablespace, and one that pg_repack has made smaller, have other
// files with the same rows: no alarm, neither between two passes nor in the middle of one.
func TestF42MovedAndRepacked(t *testing.T) {
	major, _, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	cluster := testpg.Shared(t, major)
	t.Cleanup(func() { // after the database that uses it
		if err := cluster.Exec(context.Background(), "postgres", "DROP TABLESPACE moved"); err != nil {
			t.Error(err)
		}
	})
	p := newPair(t, plainTable)
	admin := p.connect(p.source)
	for _, sql := range []string{"SET allow_in_place_tablespaces = on", "CREATE TABLESPACE moved LOCATION ''"} {
		if _, err := admin.Exec(p.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	files := func() string {
		return p.one(p.source, "SELECT string_agg(pg_relation_filepath(oid), ' ' ORDER BY relname) FROM pg_class WHERE relname IN ('t', 't_pkey')")
	}
	p.app(`INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g`)
	p.synced()
	for _, sql := range []string{"ALTER TABLE t SET TABLESPACE moved; ALTER INDEX t_pkey SET TABLESPACE moved", repack, "ALTER TABLE t SET TABLESPACE pg_default; ALTER INDEX t_pkey SET TABLESPACE pg_default", repack} {
		before := files()
		p.app(`UPDATE t SET v = v || '.' WHERE id <= 5`)
		p.app(sql)
		p.app(`UPDATE t SET v = v || ',' WHERE id BETWEEN 4 AND 8; DELETE FROM t WHERE id = (SELECT max(id) FROM t)`)
		if files() == before {
			t.Fatalf("the files are the same after %.40s", sql)
		}
		p.synced()
	}
	for _, sql := range []string{"ALTER TABLE t SET TABLESPACE moved", repack} {
		p.app(`UPDATE t SET v = v || '!' WHERE id <= 9`)
		p.duringRead(sql)
		p.equal()
		p.synced()
	}
}

// D5: DML through a parent of legacy inheritance changes rows of the children.
func TestD5InheritanceIsReadWithOnly(t *testing.T) {
	p := newPair(t, `CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)`,
		func(t *scope.Table) { t.Capture, t.Inherits = scope.Row, true })
	p.app(`INSERT INTO parent VALUES (1, 'p'), (2, 'p'); INSERT INTO child VALUES (1, 'c'), (3, 'c')`)
	p.synced()
	p.app(`UPDATE parent SET v = 'x' WHERE id IN (1, 3); DELETE FROM parent WHERE id = 2`)
	p.synced()
}

// D7: what a pass reads from asynchronous commits must not be lost by a crash of the source.
func TestD7SourceCrashAfterThePass(t *testing.T) {
	source, _, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: source, Settings: map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10s"}})
	_, target := testpg.Pair(t)
	p := pairOf(t, testpg.NewDB(t, c), target, plainTable)
	p.app(`SET synchronous_commit = on; INSERT INTO t VALUES (1, 'old')`)
	p.synced()
	p.app(`INSERT INTO t VALUES (2, 'new'); UPDATE t SET v = 'new' WHERE id = 1`)
	p.exact()
	if err := c.KillPostmaster(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(p.ctx); err != nil {
		t.Fatal(err)
	}
	p.equal()
	p.passer = p.newPasser()
	p.synced()
}

// D10: a writer in replica role leaves no trace in ordinary triggers.
func TestD10F36ReplicaRoleWriters(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`SET session_replication_role = replica; INSERT INTO t VALUES (1, 'a')`)
	p.synced()
}

// D11: keys from before a TRUNCATE must not come after it, however the backlog is cut.
func TestD11TruncateInABacklogOfPieces(t *testing.T) {
	p := newPair(t, plainTable)
	for range 3 {
		p.app(`INSERT INTO t SELECT g, 'before' FROM generate_series(1001, 1100) g; TRUNCATE t`)
		p.app(`INSERT INTO t SELECT g, 'after' FROM generate_series(50, 350) g; DELETE FROM t WHERE id > 340`)
		p.app(`UPDATE t SET v = 'last' WHERE id % 7 = 0`)
		if _, err := p.passer.Drain(p.ctx, DrainOptions{PieceRows: 20, Workers: 2}); err != nil {
			t.Fatal(err)
		}
		p.equal()
	}
}

// D11: ids of transactions are no order of their commits. What a transaction with a smaller id than the TRUNCATE's brings
// after it is in the backlog's first piece.
func TestD11TruncateBeforeAnOlderTransaction(t *testing.T) {
	p := newPair(t, plainTable)
	older := p.connect(p.source)
	begin := func(sql string) {
		t.Helper()
		if err := run(p.ctx, older, sql); err != nil {
			t.Fatal(err)
		}
	}
	begin("BEGIN; SELECT txid_current()")
	p.app(`INSERT INTO t SELECT g, 'before' FROM generate_series(1, 100) g; TRUNCATE t`)
	begin(`INSERT INTO t SELECT g, 'older' FROM generate_series(1, 50) g; COMMIT`)
	for n := range 3 {
		p.app(fmt.Sprintf(`INSERT INTO t SELECT g, 'later' FROM generate_series(%d, %d) g`, 200+n*30, 229+n*30))
	}
	if _, err := p.passer.Drain(p.ctx, DrainOptions{PieceRows: 20, Workers: 1}); err != nil {
		t.Fatal(err)
	}
	p.equal()
}

const keyless = `CREATE TABLE k (a int, j json, at point, f float8)`

// D12: row images are applied in order, by top-level transaction and compared as records.
func TestD12KeylessTablesByImage(t *testing.T) {
	p := newPair(t, keyless)
	p.app(`BEGIN; INSERT INTO k VALUES (1, '{"a": 1}', '(1,2)', 0.1); TRUNCATE k; INSERT INTO k VALUES (2, NULL, NULL, 'NaN'); COMMIT`)
	p.synced()
	p.app(`INSERT INTO k SELECT 3, '[]', '(0,0)', 1e-300 FROM generate_series(1, 5)`)
	p.app(`BEGIN; SAVEPOINT a; INSERT INTO k VALUES (4); ROLLBACK TO a; SAVEPOINT b; INSERT INTO k VALUES (5); RELEASE b; COMMIT`)
	p.synced()
	p.app(`DELETE FROM k WHERE ctid IN (SELECT ctid FROM k WHERE a = 3 LIMIT 2); UPDATE k SET f = 7 WHERE a = 5; INSERT INTO k VALUES (9); DELETE FROM k WHERE a = 9`)
	p.synced()
	p.app(`TRUNCATE k`)
	p.synced()
}

func TestD12DivergedImageIsNamed(t *testing.T) {
	p := newPair(t, keyless)
	p.app(`INSERT INTO k VALUES (1)`)
	p.synced()
	p.exec(p.target, `DELETE FROM k`)
	p.app(`DELETE FROM k`)
	_, err := p.passer.Exact(p.ctx, Options{})
	var e *engine.Error
	if !errors.As(err, &e) || engine.ClassOf(err) != engine.ClassDifferences || e.Hint == "" || !strings.Contains(err.Error(), "1 rows were deleted on the source but only 0") {
		t.Errorf("the pass says %v", err)
	}
}

func TestAppendOnlyStopsByName(t *testing.T) {
	for _, dml := range []string{"UPDATE k SET a = 2", "DELETE FROM k", "TRUNCATE k"} {
		p := newPair(t, keyless, func(t *scope.Table) { t.Identity = scope.AppendOnly })
		p.app(`INSERT INTO k VALUES (1), (1)`)
		p.synced()
		p.app(dml)
		if _, err := p.passer.Exact(p.ctx, Options{}); err == nil || !strings.Contains(err.Error(), `"public"."k"`) || engine.HintOf(err) == "" {
			t.Errorf("after %s the pass says %v", dml, err)
		}
	}
}

// D14: a trigger on the target that fires for us and swallows rows raises nothing.
func TestD14TriggerThatSwallowsRows(t *testing.T) {
	p := newPair(t, plainTable)
	p.exec(p.target, `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE t ENABLE ALWAYS TRIGGER no`)
	p.app(`INSERT INTO t VALUES (1)`)
	if _, err := p.passer.Exact(p.ctx, Options{}); err == nil || !strings.Contains(err.Error(), "keeps rows back") {
		t.Errorf("the pass says %v", err)
	}
	if n := p.deltaRows(); n != 1 {
		t.Errorf("%d keys are left of the pass that failed", n)
	}
}

// D18, D19: what happened to a COMMIT whose answer was lost is looked up by the pass's own id.
func TestD18LostAnswersOfCommits(t *testing.T) {
	source, target, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	for _, side := range []string{"source", "target"} {
		for _, cut := range []testpg.CommitCut{testpg.CommitNotSent, testpg.CommitUnanswered} {
			sc, tc := testpg.Shared(t, source), testpg.Shared(t, target)
			p := pairOf(t, testpg.NewDB(t, sc), testpg.NewDB(t, tc), plainTable+"; "+keyless)
			c := map[string]*testpg.Cluster{"source": sc, "target": tc}[side]
			proxy := testpg.ListenT(t, c)
			if side == "source" {
				p.from = server(t, "source", proxy.URL(p.source))
			} else {
				p.to = server(t, "target", proxy.URL(p.target))
			}
			p.passer = p.newPasser()
			p.app(`INSERT INTO t VALUES (1, 'a'); INSERT INTO k VALUES (1)`)
			p.synced()
			p.app(`INSERT INTO t VALUES (2, 'b'); INSERT INTO k VALUES (2); DELETE FROM t WHERE id = 1`)
			proxy.CutCommit(cut, 0)
			if _, err := p.passer.Exact(p.ctx, Options{Patience: 10 * time.Second}); err != nil {
				t.Errorf("%s, cut %d: %v", side, cut, err)
			}
			if proxy.Fired(testpg.FaultCommit) != 1 {
				t.Errorf("%s: the commit was not cut", side)
			}
			p.equal()
			p.app(`INSERT INTO k VALUES (3); DELETE FROM k WHERE a = 2`)
			p.synced()
		}
	}
}

// D18: a runner that was thought dead is in the middle of a pass when its successor makes one over the
// same keys, and loses its session on the target. It looks up what became of its pass, finds the id of
// another one, and forgets nothing: the successor has the keys.
func TestD18ZombieBesideItsSuccessor(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t SELECT g, 'a' FROM generate_series(1, 20) g`)
	p.synced()
	p.app(`UPDATE t SET v = 'b' WHERE id <= 10; DELETE FROM t WHERE id = 20`)
	successor := p.newPasser()
	successor.cfg.Run.Epoch++
	done := make(chan error, 1)
	const waits = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
	_, err := p.passer.Exact(p.ctx, Options{InTarget: func(ctx context.Context, tx pgx.Tx, _ *pgx.Conn) error {
		go func() {
			res, err := successor.Exact(p.ctx, Options{Patience: 20 * time.Second})
			if err == nil && res.Rows != 10 {
				err = fmt.Errorf("the successor wrote %d rows", res.Rows)
			}
			done <- err
		}()
		for p.one(p.target, waits) == "0" && p.one(p.source, waits) == "0" {
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		p.exec(p.target, fmt.Sprintf("SELECT pg_terminate_backend(%d)", tx.Conn().PgConn().PID()))
		return nil
	}})
	if err == nil {
		t.Error("the first runner's pass was made")
	}
	if err := <-done; err != nil {
		t.Fatalf("its successor: %v", err)
	}
	if n := p.deltaRows(); n != 0 {
		t.Errorf("%d rows are left in the delta", n)
	}
	p.equal()
}

// S3: a GENERATED ALWAYS identity refuses to be updated.
func TestS3IdentityAlways(t *testing.T) {
	p := newPair(t, `CREATE TABLE s (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, g int GENERATED ALWAYS AS (id * 2) STORED, v text)`)
	p.app(`INSERT INTO s (id, v) SELECT g, 'v' FROM generate_series(1, 20) g`)
	p.synced()
	p.app(`DELETE FROM s WHERE id = 3; INSERT INTO s (id, v) VALUES (3, 'again'); UPDATE s SET v = 'w' WHERE id > 15`)
	p.synced()
}

// S4: TRUNCATE is refused where a foreign key points to the table.
func TestS4TruncateBehindForeignKeys(t *testing.T) {
	p := newPair(t, `CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE)`)
	p.app(`INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1), (2, 2)`)
	p.synced()
	p.app(`TRUNCATE parent, child; INSERT INTO parent VALUES (5); INSERT INTO child VALUES (7, 5)`)
	p.synced()
}

// S5: values that are handed from row to row clash with a unique constraint, in any order.
func TestS5F37ValuesThatMoveBetweenRows(t *testing.T) {
	p := newPair(t, `CREATE EXTENSION btree_gist; CREATE TABLE u (id int PRIMARY KEY, mail text UNIQUE);
		CREATE TABLE x (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&))`)
	p.app(`INSERT INTO u SELECT g, 'm' || g FROM generate_series(1, 30) g; INSERT INTO x SELECT g, int4range(g * 10, g * 10 + 5) FROM generate_series(1, 20) g`)
	p.synced()
	p.app(`DELETE FROM u WHERE id = 1; INSERT INTO u VALUES (100, 'm1')`)
	p.synced()
	p.app(`UPDATE u SET mail = 'tmp' WHERE id = 2; UPDATE u SET mail = 'm2' WHERE id = 3; UPDATE u SET mail = 'm3' WHERE id = 2;
		UPDATE x SET during = 'empty' WHERE id = 4; UPDATE x SET during = int4range(40, 45) WHERE id = 5; UPDATE x SET during = int4range(50, 55) WHERE id = 4`)
	p.synced()
	p.app(`UPDATE u SET mail = 'n' || id; UPDATE u SET mail = 'm' || (31 - id) WHERE id <= 30`)
	if _, err := p.passer.Drain(p.ctx, DrainOptions{PieceRows: 5}); err != nil {
		t.Fatal(err)
	}
	p.equal()
}

// S5: what cuts the swap of two values apart holds one of them twice: such a piece is made larger.
func TestS5PiecesThatClash(t *testing.T) {
	p := newPair(t, `CREATE TABLE u (id int PRIMARY KEY, mail text UNIQUE)`)
	p.app(`INSERT INTO u SELECT g, 'm' || g FROM generate_series(1, 10) g`)
	p.synced()
	for _, sql := range []string{"UPDATE u SET mail = 'tmp' WHERE id = 2", "UPDATE u SET mail = 'm2' WHERE id = 3", "UPDATE u SET mail = 'm3' WHERE id = 2"} {
		p.app(sql)
	}
	if _, _, last, err := p.passer.piece(p.ctx, p.tables[0], 1); err == nil || !clashes(err) || last {
		t.Fatalf("the first piece ended with %v, last %v: this proves nothing", err, last)
	}
	if _, err := p.passer.Drain(p.ctx, DrainOptions{PieceRows: 1, Workers: 1}); err != nil {
		t.Fatal(err)
	}
	p.equal()
}

// S8: ONLY on a partition root reads nothing, without an error.
func TestS8PartitionTrees(t *testing.T) {
	p := newPair(t, `CREATE TABLE r (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
		CREATE TABLE r1 PARTITION OF r FOR VALUES IN (1); CREATE TABLE r2 PARTITION OF r FOR VALUES IN (2) PARTITION BY HASH (id);
		CREATE TABLE r2a PARTITION OF r2 FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE r2b PARTITION OF r2 FOR VALUES WITH (MODULUS 2, REMAINDER 1)`)
	p.app(`INSERT INTO r SELECT g, 1 + g % 2, 'v' FROM generate_series(1, 100) g`)
	p.synced()
	p.app(`UPDATE r SET d = 3 - d WHERE id < 20; DELETE FROM r2a WHERE id > 50; UPDATE r1 SET v = 'w'`)
	p.synced()
	p.app(`TRUNCATE r2a; INSERT INTO r VALUES (1000, 2, 'new'); INSERT INTO r VALUES (1001, 1, 'new')`)
	p.synced()
	p.app(`TRUNCATE r`)
	p.synced()
}

// A5: in a deadlock with an application, the pass gives way, also where the server looks for one early.
func TestA5F32ApplicationIsNeverTheVictim(t *testing.T) {
	for name, tt := range map[string]struct {
		set   string
		after time.Duration // the pass's own deadlock check, were it to wait on, is over by then
	}{
		"deadlock_timeout by default": {"SELECT 1", 1200 * time.Millisecond},
		"a short deadlock_timeout": {
			`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 100', current_database()); END $$`, 150 * time.Millisecond,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, `CREATE TABLE t1 (id int PRIMARY KEY); CREATE TABLE t2 (id int PRIMARY KEY)`)
			p.app(tt.set)
			for n := range 3 {
				p.deadlock(n, tt.after)
			}
		})
	}
}

// deadlock makes a pass that holds t1 and waits for t2, which an application holds that then asks for t1.
func (p *pair) deadlock(n int, after time.Duration) {
	p.t.Helper()
	p.app(fmt.Sprintf(`INSERT INTO t1 VALUES (%d); INSERT INTO t2 VALUES (%d)`, n, n))
	app := p.connect(p.source)
	if err := run(p.ctx, app, "BEGIN; LOCK TABLE t2"); err != nil {
		p.t.Fatal(err)
	}
	passed := make(chan error, 1)
	go func() {
		_, err := p.passer.Exact(p.ctx, Options{Patience: 20 * time.Second})
		passed <- err
	}()
	for p.one(p.source, `SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = 't2'::regclass`) == "0" {
		if p.ctx.Err() != nil {
			p.t.Fatal("the pass never waited")
		}
	}
	time.Sleep(after)
	if err := run(p.ctx, app, fmt.Sprintf("ALTER TABLE t1 ADD CHECK (id > -%d); COMMIT", n+1)); err != nil {
		p.t.Errorf("the application got %v", err)
		_ = run(p.ctx, app, "ROLLBACK")
	}
	if err := <-passed; err != nil {
		p.t.Errorf("the pass got %v", err)
	}
	p.equal()
}

// A6: while To is slow, the application's TRUNCATE and those behind it must not wait.
func TestA6NoLockIsHeldWhileTheTargetWrites(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t VALUES (1, 'a')`)
	p.synced()
	holder := p.connect(p.target)
	if err := run(p.ctx, holder, "BEGIN; SELECT * FROM t FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	p.app(`UPDATE t SET v = 'b'`)
	passed := make(chan error, 1)
	go func() {
		_, err := p.passer.Exact(p.ctx, Options{})
		passed <- err
	}()
	for p.one(p.target, `SELECT count(*)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`) == "0" {
		if p.ctx.Err() != nil {
			t.Fatal("the target never waited")
		}
	}
	p.app(`SET lock_timeout = '5s'; TRUNCATE t; INSERT INTO t VALUES (2, 'c')`)
	if err := run(p.ctx, holder, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := <-passed; err != nil {
		t.Fatal(err)
	}
	p.synced()
}

// C3: passes leave the target's catalog as large as it was.
func TestC3PassesDoNotGrowTheCatalog(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t VALUES (1, 'a')`)
	p.synced()
	count := `SELECT (SELECT max(xmin::text::bigint) FROM pg_attribute)::text`
	before := p.one(p.target, count)
	for range 20 {
		p.app(`UPDATE t SET v = v || 'x'`)
		p.exact()
	}
	if after := p.one(p.target, count); after != before {
		t.Errorf("rows were added to pg_attribute: %s, was %s", after, before)
	}
}

func TestCancelledPassEndsSoon(t *testing.T) {
	p := newPair(t, plainTable)
	p.app(`INSERT INTO t VALUES (1, 'a')`)
	p.synced()
	holder := p.connect(p.target)
	if err := run(p.ctx, holder, "BEGIN; SELECT * FROM t FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	p.app(`UPDATE t SET v = 'b'`)
	ctx, cancel := context.WithTimeout(p.ctx, time.Second)
	defer cancel()
	if _, err := p.passer.Exact(ctx, Options{Patience: time.Minute}); err == nil {
		t.Error("a pass that waits for a row lock came back without an error")
	}
	if err := run(p.ctx, holder, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	p.synced()
}

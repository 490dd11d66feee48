package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const oneTable = `CREATE TABLE t (id int PRIMARY KEY, v text, n int UNIQUE)`

// beforeCapture fills a table as rows that were there before the triggers.
func (p *pair) beforeCapture(sql string) {
	p.t.Helper()
	p.exec(p.source, "SET pgrunbook.mark = '"+p.run.Mark+"'; "+sql)
}

// slowly makes a chunk stop in the middle until the test has done something.
func (p *pair) slowly(bytesPerSecond float64) {
	p.cfg.Control = func() Control { return Control{Workers: 2} }
	p.cfg.Rate = NewRate(bytesPerSecond)
}

// D2: a COPY that queued behind DDL that rewrites reads an empty table, without an error.
func TestD2CopyBehindRewritingDDL(t *testing.T) {
	p := newPair(t, oneTable)
	if err := p.loadBehindRewrite(); err != nil {
		t.Fatal(err)
	}
	if n := p.one(p.target, "SELECT count(*)::text FROM t"); n != "1000" {
		t.Errorf("%s of 1000 rows arrived", n)
	}
	if !strings.Contains(p.messages(), "loaded again from the start") {
		t.Errorf("nobody was told: %s", p.messages())
	}
}

// loadBehindRewrite loads 1,000 rows with the first chunk waiting for a rewrite.
func (p *pair) loadBehindRewrite() error {
	p.t.Helper()
	p.beforeCapture(`INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 1000) g`)
	l := New(p.cfg)
	if err := l.Prepare(p.ctx); err != nil {
		p.t.Fatal(err)
	}
	app := p.connect(p.source)
	if _, err := app.Exec(p.ctx, "BEGIN"); err != nil {
		p.t.Fatal(err)
	}
	if _, err := app.Exec(p.ctx, "ALTER TABLE t ALTER v TYPE text USING v || ''"); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(p.ctx) }()
	for p.one(p.source, `SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = 't'::regclass`) == "0" {
		if p.ctx.Err() != nil {
			p.t.Fatal("the chunk never waited")
		}
	}
	if _, err := app.Exec(p.ctx, "COMMIT"); err != nil {
		p.t.Fatal(err)
	}
	return <-done
}

// D8: two runners of one load take each chunk once.
func TestD8TwoLoadersShareTheChunks(t *testing.T) {
	p := newPair(t, oneTable, chunks(16<<10))
	p.beforeCapture(`INSERT INTO t SELECT g, md5(g::text), g FROM generate_series(1, 20000) g`)
	if err := New(p.cfg).Prepare(p.ctx); err != nil {
		t.Fatal(err)
	}
	g, ctx := errgroup.WithContext(p.ctx)
	for range 2 {
		g.Go(func() error { return New(p.cfg).chunksOnly(ctx) })
	}
	g.Go(func() error { return New(p.cfg).Run(ctx) })
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	p.equal()
}

// chunksOnly takes chunks until there are none, as another runner of the same load does that knows nothing of this one.
func (l *Loader) chunksOnly(ctx context.Context) error {
	o := newOverview(l)
	g, gctx := errgroup.WithContext(ctx)
	for n := range maxWorkers {
		g.Go(func() error { return l.lazily(gctx, n, o.copied) })
	}
	g.Go(func() error {
		for {
			if err := o.look(gctx); err != nil || o.isCopied() {
				return err
			}
			if err := sleep(gctx, overviewPoll); err != nil {
				return err
			}
		}
	})
	return g.Wait()
}

// D8: a loader stands still in the middle of a chunk while another one takes all the rest, and then
// goes on. Nobody has taken its chunk meanwhile, and nobody takes it again.
func TestD8StalledLoaderWakesUp(t *testing.T) {
	p := newPair(t, oneTable, chunks(16<<10))
	p.beforeCapture(`INSERT INTO t SELECT g, md5(g::text), g FROM generate_series(1, 20000) g`)
	if err := New(p.cfg).Prepare(p.ctx); err != nil {
		t.Fatal(err)
	}
	g, ctx := errgroup.WithContext(p.ctx)
	stalled := p.cfg
	stalled.Rate = NewRate(1)
	stalled.Control = func() Control { return Control{Workers: 1} }
	if err := stalled.Rate.Take(ctx, 1<<30); err != nil { // the next byte waits for years
		t.Fatal(err)
	}
	g.Go(func() error { return New(stalled).chunksOnly(ctx) })
	count := func(sql string) string { return p.one(p.target, "SELECT count(*)::text FROM "+sql) }
	const inCopy, pending = "pg_locks WHERE relation = 't'::regclass AND mode = 'RowExclusiveLock'", "pgrunbook.item WHERE state = 'pending'"
	for count(inCopy) == "0" {
		if ctx.Err() != nil {
			t.Fatalf("the first loader took nothing: %v", g.Wait())
		}
	}
	g.Go(func() error { return New(p.cfg).Run(ctx) })
	for count(pending) != "1" {
		if ctx.Err() != nil {
			t.Fatalf("the second loader did not take all the rest: %v", g.Wait())
		}
	}
	if n := count("t"); n == "20000" {
		t.Error("the stalled loader's rows are there")
	}
	stalled.Rate.Set(0)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	p.equal()
}

// D12: a table without a key is loaded from one snapshot, and images are applied from there on.
func TestD12KeylessTableUnderWriters(t *testing.T) {
	p := newPair(t, `CREATE TABLE k (a int, j json); CREATE TABLE other (a int PRIMARY KEY)`)
	p.beforeCapture(`INSERT INTO k SELECT g % 50, '{"a": 1}' FROM generate_series(1, 3000) g`)
	app := p.connect(p.source)
	// The subtransaction's own id counts as visible in a snapshot that does not see its parent.
	for _, sql := range []string{"BEGIN", "INSERT INTO other VALUES (1)", "SAVEPOINT s", "INSERT INTO k VALUES (1000, NULL)", "DELETE FROM k WHERE a = 7", "RELEASE s"} {
		if _, err := app.Exec(p.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	p.exec(p.source, `INSERT INTO k VALUES (2000, '[]'), (2000, '[]')`)
	p.load()
	if _, err := app.Exec(p.ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	p.exec(p.source, `DELETE FROM k WHERE ctid = (SELECT min(ctid) FROM k WHERE a = 2000)`)
	p.synced()
}

// D14: rows that a trigger of the target swallows are missed by the row counts of COPY.
func TestD14TriggerThatSwallowsRows(t *testing.T) {
	p := newPair(t, oneTable)
	p.beforeCapture(`INSERT INTO t VALUES (1)`)
	p.exec(p.target, `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE t ENABLE ALWAYS TRIGGER no`)
	err := New(p.cfg).Run(p.ctx)
	if err == nil || !strings.Contains(err.Error(), "1 rows were read but 0 were written") {
		t.Errorf("the load says %v", err)
	}
}

// D16: what a DBA set for a database must not change bytes.
func TestD15D16SettingsOfTheDatabase(t *testing.T) {
	p := newPair(t, `CREATE DOMAIN d AS text NOT NULL; CREATE TABLE t (id int PRIMARY KEY, a text[], m money, at timestamptz, i interval, r regclass, f float8, d d)`)
	for _, url := range []string{p.source, p.target} {
		name := p.one(url, "SELECT quote_ident(current_database())")
		for _, set := range []string{
			"array_nulls = off", "datestyle = 'German'", "intervalstyle = 'iso_8601'", "extra_float_digits = -5", "bytea_output = 'escape'",
			"enable_tidscan = off", "statement_timeout = '500ms'", "default_transaction_isolation = 'serializable'", "search_path = 'nowhere'",
		} {
			p.exec(url, "ALTER DATABASE "+name+" SET "+set)
		}
	}
	p.exec(p.source, `SET statement_timeout = 0; SET search_path = public; SET pgrunbook.mark = '`+p.run.Mark+`'; SET array_nulls = on;
		INSERT INTO t VALUES (1, '{NULL,x}', 12.5, '2020-02-03 04:05:06.789+00', '1 mon 2 days', 't', 0.1, 'a')`)
	p.load()
	p.exec(p.source, `SET statement_timeout = 0; SET search_path = public; SET array_nulls = on; INSERT INTO t VALUES (2, '{NULL,NULL}', 1, now(), '-1 day', NULL, 1e-300, 'b'); DELETE FROM t WHERE id = 3`)
	p.synced()
}

// D17: a row that moved between chunks is read twice or not at all, and its key decides.
func TestD17RowsThatMoveBetweenChunks(t *testing.T) {
	p := newPair(t, oneTable, chunks(16<<10))
	p.beforeCapture(`INSERT INTO t SELECT g, repeat('v', 100), g FROM generate_series(1, 3000) g`)
	p.slowly(300_000)
	done := make(chan error, 1)
	go func() { done <- New(p.cfg).Run(p.ctx) }()
	for i := range 12 { // to the end of the table, to its beginning
		p.exec(p.source, fmt.Sprintf(`UPDATE t SET v = v || 'w' WHERE id %% 12 = %d; DELETE FROM t WHERE id %% 700 = %d; UPDATE t SET n = -n WHERE id IN (%d, %d)`, i, i, i+20, i+50))
		p.exec(p.source, "VACUUM t")
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.synced()
}

// D20: a chunk whose commit the target lost in a crash is loaded again, whatever memory says.
func TestD20TargetCrashInMidLoad(t *testing.T) {
	source, target, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: target, Settings: map[string]string{"wal_writer_delay": "10s"}})
	p := pairOf(t, testpg.NewDB(t, testpg.Shared(t, source)), testpg.NewDB(t, c), oneTable, chunks(16<<10))
	p.beforeCapture(`INSERT INTO t SELECT g, repeat('v', 100), g FROM generate_series(1, 5000) g`)
	p.slowly(400_000)
	done := make(chan error, 1)
	go func() { done <- New(p.cfg).Run(p.ctx) }()
	p.until("SELECT (count(*) > 3)::text FROM pgrunbook.item WHERE state = 'done'", "true")
	if err := c.Stop(p.ctx, testpg.Immediate); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(p.ctx); err != nil {
		t.Fatal(err)
	}
	p.slowly(0)
	if err := <-done; err != nil { // the journal's own lock died with the server: the runner may stop here
		p.journal.Close(p.ctx)
		p.reopen()
		p.load()
	}
	p.synced()
}

// until waits for a value on the target.
func (p *pair) until(sql, want string) {
	p.t.Helper()
	for p.one(p.target, sql) != want {
		if p.ctx.Err() != nil {
			p.t.Fatalf("%s is never %s", sql, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// reopen is a new runner of the same run.
func (p *pair) reopen() {
	p.t.Helper()
	run, err := journal.Open(p.ctx, p.server("target", p.target, "", ""), journal.OpenOptions{ToolVersion: "1.0.0", Steal: true})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { run.Close(context.Background()) })
	p.journal, p.run.Epoch = run, run.Epoch
	p.cfg.Journal, p.cfg.Run = run, p.run
}

// D23: a subtransaction's row has an xmin that a snapshot takes for committed; captured rows are
// told by the xmin of their images instead. The one here is older than the trigger, and is still open when what was captured
// before the load is forgotten: its row is both captured and there to be read.
func TestD23AppendOnlyRowsAreLoadedOrCapturedOnce(t *testing.T) {
	source, target := testpg.Pair(t)
	older, err := pgx.Connect(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = older.Close(context.Background()) }()
	run := func(conn *pgx.Conn, statements ...string) {
		t.Helper()
		for _, sql := range statements {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	begun := false
	p := pairOf(t, source, target, `CREATE TABLE k (a int, v text)`, chunks(8<<10), func(t *scope.Table) {
		t.Identity = scope.AppendOnly
		if !begun { // before the trigger is there
			begun = true
			run(older, "CREATE SCHEMA beside", "CREATE TABLE beside.other (a int)", "BEGIN", "SAVEPOINT s", "INSERT INTO beside.other VALUES (1)")
		}
	})
	p.beforeCapture(`INSERT INTO k SELECT g, 'old' FROM generate_series(1, 2000) g`)
	run(older, "INSERT INTO k VALUES (42, 'older')", "RELEASE s")
	l := New(p.cfg)
	if err := l.Prepare(p.ctx); err != nil {
		t.Fatal(err)
	}
	run(older, "COMMIT")
	if n := p.one(p.source, "SELECT count(*)::text FROM "+capture.ImageName(p.tables[0].ID)); n != "1" {
		t.Fatalf("%s rows are captured before they are loaded: this proves nothing", n)
	}
	app := p.connect(p.source)
	run(app, "BEGIN", "SAVEPOINT s", "INSERT INTO k VALUES (43, 'later')", "RELEASE s")
	if err := l.Run(p.ctx); err != nil {
		t.Fatal(err)
	}
	p.exec(p.source, `INSERT INTO k VALUES (44, 'after')`)
	run(app, "COMMIT")
	p.synced()
}

// A table that has its keys already is loaded around the rows that clash.
func TestTargetThatHasItsKeys(t *testing.T) {
	p := newPair(t, oneTable, chunks(16<<10))
	p.beforeCapture(`INSERT INTO t SELECT g, repeat('v', 100), g FROM generate_series(1, 2000) g`)
	if err := p.builder.all(p.ctx, p.connect(p.target), append(p.builder.unique, p.builder.keys["t"]...)); err != nil {
		t.Fatal(err)
	}
	p.builder.unique = nil
	p.slowly(200_000)
	done := make(chan error, 1)
	go func() { done <- New(p.cfg).Run(p.ctx) }()
	for i := range 8 {
		p.exec(p.source, fmt.Sprintf(`UPDATE t SET v = v || 'w' WHERE id %% 8 = %d; UPDATE t SET n = NULL WHERE id = %d; UPDATE t SET n = %d WHERE id = %d`, i, i+1, i+1, 1900+i))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.synced()
}

// Before 14 there are no TID range scans: chunks are key ranges.
func TestKeyRangesOnOldSources(t *testing.T) {
	for _, major := range []int{10, 12} {
		p := pairOf(t, testpg.NewDB(t, testpg.Shared(t, major)), testpg.NewDB(t, testpg.Shared(t, 18)),
			`CREATE TABLE t (name text, id int, v text, PRIMARY KEY (name, id)); CREATE TABLE n (id int PRIMARY KEY, v text)`, chunks(32<<10))
		p.beforeCapture(`INSERT INTO t SELECT 'it''s ' || g % 97, g, repeat('v', 50) FROM generate_series(1, 8000) g; INSERT INTO n SELECT g * 3, repeat('v', 50) FROM generate_series(1, 8000) g; ANALYZE`)
		p.load()
		p.equal()
		for _, tbl := range p.tables {
			if n := p.one(p.target, fmt.Sprintf("SELECT (count(*) > 3)::text FROM pgrunbook.item WHERE tbl = %d", tbl.ID)); n != "true" {
				t.Errorf("%d: %s is not cut", major, tbl.Name.Name)
			}
		}
		p.exec(p.source, `UPDATE t SET v = 'w' WHERE id % 10 = 0; DELETE FROM n WHERE id % 6 = 0`)
		p.synced()
	}
}

// TestKilledSessionsAndWriters ends sessions of the load on both sides while the application
// writes, and a runner in the middle of it.
func TestKilledSessionsAndWriters(t *testing.T) {
	p := newPair(t, manyRows, chunks(32<<10))
	p.beforeCapture(fillRows)
	p.slowly(1_000_000)
	ctx, cancel := context.WithCancel(p.ctx)
	var killed atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		r := rand.New(rand.NewPCG(3, 3))
		for gctx.Err() == nil {
			if conn, err := pgx.Connect(gctx, []string{p.source, p.target}[r.IntN(2)]); err == nil {
				var n int64
				_ = conn.QueryRow(gctx, `SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity WHERE datname = current_database()
					AND application_name ~ '^pgrunbook [^ ]+ (load|finish)' ORDER BY random() LIMIT 1) s`).Scan(&n)
				killed.Add(n)
				_ = conn.Close(context.Background())
			}
			time.Sleep(time.Duration(100+r.IntN(200)) * time.Millisecond)
		}
		return nil
	})
	g.Go(func() error {
		conn, err := pgx.Connect(gctx, p.source)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.Background()) }()
		for i := 0; gctx.Err() == nil; i++ {
			sql := fmt.Sprintf(`UPDATE t SET v = v || 'w' WHERE id %% 100 = %d; DELETE FROM t WHERE id = %d; INSERT INTO t VALUES (%d, 'new', %d);
				UPDATE tree SET at = at + 100 WHERE id = %d AND at < '2021-01-01'; INSERT INTO small VALUES ('k%d', '[1]')`, i%100, i*7+1, 100000+i, -i-1, i, i)
			if _, err := conn.PgConn().Exec(gctx, sql).ReadAll(); err != nil && gctx.Err() == nil {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	})
	first, stop := context.WithTimeout(p.ctx, 1500*time.Millisecond)
	err := New(p.cfg).Run(first)
	stop()
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the runner that was stopped says %v", err)
	}
	p.load()
	cancel()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if killed.Load() < 3 {
		t.Errorf("only %d sessions were ended", killed.Load())
	}
	p.synced()
}

// TestExternalLoad scrubs what somebody else loaded, and builds the rest.
func TestExternalLoad(t *testing.T) {
	p := newPair(t, oneTable, func(t *scope.Table) { t.Method = scope.External })
	p.beforeCapture(`INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
	asked := 0
	p.cfg.Loaded = func(_ context.Context, tables []scope.Table) error {
		asked++
		if asked == 1 {
			return errors.New("not yet")
		}
		return nil
	}
	if err := New(p.cfg).Run(p.ctx); err == nil || err.Error() != "not yet" {
		t.Errorf("the load says %v", err)
	}
	p.exec(p.target, `SET pgrunbook.mark = '`+p.run.Mark+`'; INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
	p.exec(p.source, `UPDATE t SET v = 'w', n = n + 1000 WHERE id < 10; DELETE FROM t WHERE id = 50; UPDATE t SET id = 200 WHERE id = 60`)
	p.load()
	if n := p.one(p.target, "SELECT count(*)::text FROM t WHERE id < 10 OR id IN (50, 60)"); n != "0" {
		t.Errorf("%s changed rows are left after the scrub", n)
	}
	p.synced()
}

// TestBulkLoad goes on after a bulk loader that died half way.
func TestBulkLoad(t *testing.T) {
	p := newPair(t, oneTable, func(t *scope.Table) { t.Method = scope.PgDump })
	p.beforeCapture(`INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
	died := errors.New("the bulk loader died")
	calls := 0
	p.cfg.Bulk = func(_ context.Context, tables []scope.Table) error {
		calls++
		p.exec(p.target, `SET pgrunbook.mark = '`+p.run.Mark+`'; INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
		if calls == 1 {
			return died
		}
		p.exec(p.source, `UPDATE t SET v = 'w' WHERE id < 10`)
		return nil
	}
	if err := New(p.cfg).Run(p.ctx); !errors.Is(err, died) {
		t.Errorf("the load says %v", err)
	}
	p.load()
	p.synced()
}

// A runner that stood still before it empties a table for pg_dump leaves what another one has loaded since.
func TestBulkLoadOfAReplacedRunner(t *testing.T) {
	p := newPair(t, oneTable, func(t *scope.Table) { t.Method = scope.PgDump })
	p.beforeCapture(`INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
	p.cfg.Bulk = func(context.Context, []scope.Table) error { return errors.New("it went on") }
	l := New(p.cfg)
	if err := l.Prepare(p.ctx); err != nil {
		t.Fatal(err)
	}
	p.exec(p.target, `UPDATE pgrunbook.run SET epoch = epoch + 1; SET pgrunbook.mark = '`+p.run.Mark+`'; INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
	if err := l.bulk(p.ctx); engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("the load says %v", err)
	}
	if n := p.one(p.target, "SELECT count(*)::text FROM t"); n != "100" {
		t.Errorf("%s of 100 rows are left", n)
	}
}

func TestTableWithRowsOnTheTargetIsRefused(t *testing.T) {
	p := newPair(t, oneTable)
	p.exec(p.target, `INSERT INTO t VALUES (1)`)
	if err := New(p.cfg).Run(p.ctx); err == nil || !strings.Contains(err.Error(), "it has rows on the target already") {
		t.Errorf("the load says %v", err)
	}
}

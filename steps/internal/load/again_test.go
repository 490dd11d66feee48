package load

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A rewrite gives rows another xmin than their images have, between capture and the first chunks, and under
// a second load.
func TestF42AppendOnlyTableIsRewritten(t *testing.T) {
	p := newPair(t, `CREATE TABLE k (a int, v text)`, chunks(16<<10), func(t *scope.Table) { t.Identity = scope.AppendOnly })
	const rewrite = `; ALTER TABLE k SET UNLOGGED; ALTER TABLE k SET LOGGED; INSERT INTO k VALUES (-1, 'after')`
	p.beforeCapture(`INSERT INTO k SELECT g, 'v' FROM generate_series(1, 500) g`)
	p.exec(p.source, `INSERT INTO k SELECT g, 'w' FROM generate_series(1, 500) g`+rewrite)
	p.load()
	p.exec(p.source, `INSERT INTO k SELECT g, 'x' FROM generate_series(1, 500) g`+rewrite)
	if err := New(p.cfg).StartOver(p.ctx, p.tables[0]); err != nil {
		t.Fatal(err)
	}
	p.exec(p.source, `INSERT INTO k VALUES (-2, 'y')`)
	p.load()
	p.exec(p.source, `INSERT INTO k VALUES (-3, 'z')`)
	p.synced()
}

// pg_dump takes its snapshot before its locks: of a table that was rewritten in between it reads nothing.
func TestF42PgDumpOfARewrittenTable(t *testing.T) {
	p := newPair(t, oneTable, func(t *scope.Table) { t.Method = scope.PgDump })
	p.beforeCapture(`INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
	calls := 0
	p.cfg.Bulk = func(context.Context, []scope.Table) error {
		if calls++; calls == 1 {
			p.exec(p.source, `ALTER TABLE t SET UNLOGGED; ALTER TABLE t SET LOGGED`)
			return nil
		}
		p.exec(p.target, `SET pgrunbook.mark = '`+p.run.Mark+`'; INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
		return nil
	}
	p.load()
	if calls != 2 || !strings.Contains(p.messages(), "loaded again from the start") {
		t.Errorf("it was dumped %d times: %s", calls, p.messages())
	}
	p.synced()
}

// A table that has to be loaded by somebody else again is the only one that is asked for.
func TestF42ExternalLoadAgain(t *testing.T) {
	p := newPair(t, `CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)`, func(t *scope.Table) { t.Method = scope.External })
	p.beforeCapture(`INSERT INTO t SELECT g FROM generate_series(1, 100) g; INSERT INTO u SELECT g FROM generate_series(1, 100) g`)
	fill := func(tables ...string) {
		for _, name := range tables {
			p.exec(p.target, `SET pgrunbook.mark = '`+p.run.Mark+`'; INSERT INTO `+name+` SELECT g FROM generate_series(1, 100) g`)
		}
	}
	asked, approved := "", true
	notYet, unseen := errors.New("not yet"), errors.New("rows changed unseen")
	p.cfg.Loaded = func(_ context.Context, tables []scope.Table) error {
		asked = ""
		for _, one := range tables {
			asked += one.Name.Name
		}
		if !approved {
			return notYet
		}
		return nil
	}
	p.cfg.Emptied = func(context.Context, pgx.Tx, scope.Table) error { approved = false; return nil }
	p.cfg.Check = func(_ context.Context, _ *pgx.Conn, t scope.Table) error {
		if t.Name.Name == "u" {
			return unseen
		}
		return nil
	}
	fill("t", "u")
	if err := New(p.cfg).Run(p.ctx); !errors.Is(err, unseen) || asked != "tu" {
		t.Fatalf("the load asked for %q and says %v", asked, err)
	}
	p.cfg.Check = nil
	for _, one := range p.tables {
		if one.Name.Name == "u" {
			if err := New(p.cfg).StartOver(p.ctx, one); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := New(p.cfg).Run(p.ctx); !errors.Is(err, notYet) || asked != "u" {
		t.Fatalf("the load asked for %q and says %v", asked, err)
	}
	fill("u")
	approved = true
	p.load()
	p.synced()
}

// The COMMIT that emptied a table may be seen and not be on the synchronous standby: what was captured before is
// forgotten only when it is, or a failover would bring back rows that a TRUNCATE took.
func TestForgetsOnlyWhenTheEmptyingIsDurable(t *testing.T) {
	source, target, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: target})
	p := pairOf(t, testpg.NewDB(t, testpg.Shared(t, source)), testpg.NewDB(t, c), oneTable)
	p.beforeCapture(`INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
	p.load()
	p.exec(p.source, `TRUNCATE t; INSERT INTO t VALUES (1, 'w', 1)`)
	l, table := New(p.cfg), p.tables[0]
	s, err := l.connect(p.ctx, "load again")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var next int
	err = pgx.BeginFunc(p.ctx, s.to, func(tx pgx.Tx) (err error) { // by a process that died
		next, err = l.reset(p.ctx, tx, table, 1)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	back, ended := testpg.LoseStandbyT(t, c), make(chan error, 1)
	go func() { ended <- l.refill(p.ctx, s, table, next) }()
	testpg.AwaitStandbyT(t, p.target, "application_name LIKE '%load again%'", ended)
	if n := p.one(p.source, "SELECT count(*)::text FROM pgrunbook.truncated"); n != "1" {
		t.Errorf("of the TRUNCATE %s marks are left, want 1", n)
	}
	back()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	p.load()
	p.synced()
}

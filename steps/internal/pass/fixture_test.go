package pass

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass/passtest"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestMain(m *testing.M) { testpg.Main(m) }

var testRun = scope.Run{ID: "r1", Mark: "m1", Epoch: 1, GateKey: 4611686018427387904}

// pair is two databases whose tables are captured on the source and equal on the target.
type pair struct {
	t              *testing.T
	ctx            context.Context
	source, target string
	from, to       *pg.Server
	tables         []scope.Table
	passer         *Passer
	events         []engine.Event
	last           bool // the final pass was made
}

// shape changes what the fixture found out about a table before it is captured.
type shape func(t *scope.Table)

// newPair runs ddl on both sides, captures every table of schema public on the source and makes
// both sides equal by a first pass over an empty target.
func newPair(t *testing.T, ddl string, shapes ...shape) *pair {
	t.Helper()
	source, target := testpg.Pair(t)
	return pairOf(t, source, target, ddl, shapes...)
}

func pairOf(t *testing.T, source, target, ddl string, shapes ...shape) *pair {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	p := &pair{t: t, ctx: ctx, source: source, target: target, from: server(t, "source", source), to: server(t, "target", target)}
	p.exec(source, ddl)
	p.exec(target, ddl)
	p.capture(shapes...)
	p.passer = p.newPasser()
	return p
}

func (p *pair) newPasser() *Passer {
	passer := New(Config{
		From: p.from, To: p.to, Run: testRun, Tables: p.tables, Emit: func(e engine.Event) { p.events = append(p.events, e) },
		Check: func(ctx context.Context, conn *pgx.Conn) error {
			changes, err := capture.Check(ctx, conn, testRun, p.tables)
			if err != nil {
				return err
			}
			return capture.Err(changes)
		},
	})
	p.t.Cleanup(func() { _ = passer.Close(context.Background()) })
	return passer
}

func server(t *testing.T, side, url string) *pg.Server {
	t.Helper()
	s, err := pg.New(pg.Config{Side: side, URL: url, RunID: testRun.ID, Mark: testRun.Mark})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// connect opens a session like an application's; it is closed with the test.
func (p *pair) connect(url string) *pgx.Conn {
	p.t.Helper()
	conn, err := pgx.Connect(p.ctx, url)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (p *pair) exec(url, sql string) {
	p.t.Helper()
	conn, err := testpg.Connect(p.ctx, url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close(p.ctx) }()
	if err := run(p.ctx, conn.Conn, sql); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
}

func (p *pair) app(sql string) { p.t.Helper(); p.exec(p.source, sql) }

func (p *pair) one(url, sql string) string {
	p.t.Helper()
	conn, err := testpg.Connect(p.ctx, url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = conn.Close(p.ctx) }()
	var s string
	if err := conn.QueryRow(p.ctx, sql).Scan(&s); err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
	return s
}

func (p *pair) exact() Result {
	p.t.Helper()
	res, err := p.passer.Exact(p.ctx, Options{Patience: 5 * time.Second})
	if err != nil {
		p.t.Fatalf("the pass failed: %v", err)
	}
	return res
}

// equal compares the sides with code that is not the product's.
func (p *pair) equal() {
	p.t.Helper()
	diffs, err := testpg.Diff(p.ctx, p.source, p.target, p.names())
	if err != nil {
		p.t.Fatal(err)
	}
	for _, d := range diffs {
		p.t.Errorf("%s", d)
	}
}

func (p *pair) names() []string {
	var names []string
	for _, t := range p.tables {
		names = append(names, pg.Name(t.Schema, t.Name.Name))
	}
	return names
}

// synced makes a pass and compares.
func (p *pair) synced() Result {
	p.t.Helper()
	res := p.exact()
	p.equal()
	return res
}

// capture installs our triggers on every table of schema public and logs the rows that are there.
func (p *pair) capture(shapes ...shape) {
	p.t.Helper()
	p.tables = passtest.Tables(p.t, p.connect(p.source))
	from, to := p.connect(p.source), p.connect(p.target)
	for _, c := range []*pgx.Conn{from, to} {
		if err := capture.Prepare(p.ctx, c, testRun); err != nil {
			p.t.Fatal(err)
		}
	}
	for i := range p.tables {
		t := &p.tables[i]
		for _, s := range shapes {
			s(t)
		}
		if err := capture.InstallOn(p.ctx, from, testRun, *t, nil); err != nil {
			p.t.Fatal(err)
		}
		if t.Identity == scope.FullRow { // as its load leaves it, which has read nothing here
			p.exec(p.target, fmt.Sprintf("INSERT INTO pgrunbook.watermark (from_side, pass, epoch, snapshot) VALUES ('source/%d', md5('')::uuid, 1, '1:1:')", t.ID))
		}
	}
}

// deltaRows counts what waits on the source.
func (p *pair) deltaRows() int64 {
	p.t.Helper()
	b, err := p.passer.Pending(p.ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return b.Rows
}

// hook runs f inside a pass of one table, between two of its statements on the source: after the
// snapshot was taken and before the rows are read.
func (p *pair) afterSnapshot(f func()) error {
	p.t.Helper()
	from, err := p.passer.prepare(p.ctx, 0, maxStages)
	if err != nil {
		return err
	}
	found, err := from.look(p.ctx, p.passer.following())
	if err != nil {
		return err
	}
	open, err := p.passer.begin(p.ctx, from, p.passer.following(), found.ids())
	if err != nil {
		return err
	}
	if _, err := from.look(p.ctx, p.passer.following()); err != nil {
		return err
	}
	f()
	_, err = open.Run(p.ctx, Options{})
	return err
}

//go:build failpoint

package load

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// How a scenario ended.
const (
	equal   = "equal"
	differs = "differs" // says an oracle that is not the product's
	refused = "refused" // the product stopped and said why
	stuck   = "stuck"   // it cannot go on
)

func (p *pair) ended(err error) string {
	p.t.Helper()
	var e *engine.Error
	switch {
	case errors.As(err, &e):
		return refused
	case err != nil:
		return stuck
	case len(p.diffs()) > 0:
		return differs
	}
	return equal
}

// once runs f when a worker gets to a failpoint for the first time.
func (p *pair) once(point string, f func()) {
	done := false
	p.t.Cleanup(failpoint.On(point, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !done {
			done = true
			f()
		}
	}))
}

var mutants = []struct {
	name, ddl    string
	play         func(p *pair) error
	clean, dirty string
}{
	{
		name: "load.no_filenode", ddl: oneTable, clean: equal, dirty: differs,
		play: (*pair).loadBehindRewrite,
	},
	{
		name: "load.no_lock", ddl: `CREATE TABLE t (id int, v text, n int)`, clean: equal, dirty: differs,
		play: (*pair).loadBehindRewrite,
	},
	{
		name: "load.no_scrub", ddl: oneTable, clean: equal, dirty: stuck,
		play: func(p *pair) error {
			p.beforeCapture(`INSERT INTO t SELECT g, repeat('v', 100), g FROM generate_series(1, 2000) g`)
			p.cfg.Control = func() Control { return Control{Workers: 1} }
			p.once("load.committed", func() { p.exec(p.source, `UPDATE t SET v = v || 'w' WHERE id % 40 = 0`) })
			return errors.Join(New(p.cfg).Run(p.ctx), p.follow())
		},
	},
	{
		name: "load.left_out", ddl: oneTable, clean: refused, dirty: differs,
		play: func(p *pair) error {
			p.beforeCapture(`INSERT INTO t SELECT g, 'v' || g % 1500, g FROM generate_series(1, 2000) g`)
			p.exec(p.target, `CREATE UNIQUE INDEX mine ON t (v)`)
			if err := New(p.cfg).Run(p.ctx); err != nil {
				return err
			}
			return p.follow()
		},
	},
	{
		name: "load.mark_apart", ddl: `CREATE TABLE k (a int, v text)`, clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.cfg.Control = func() Control { return Control{Workers: 1} } // another one could take the chunk between the two
			p.beforeCapture(`INSERT INTO k SELECT g, 'v' FROM generate_series(1, 100) g`)
			p.once("load.marked", func() {
				if n := p.one(p.target, `SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity
					WHERE datname = current_database() AND application_name ~ '^pgrunbook .* load [0-9]'`); n == "0" {
					p.t.Error("no worker has a session there")
				}
			})
			return errors.Join(New(p.cfg).Run(p.ctx), p.follow())
		},
	},
	{
		// It dies before it has emptied the table, and what asked for that is gone.
		name: "load.forget_first", ddl: oneTable, clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.beforeCapture(`INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
			p.load()
			p.exec(p.source, `TRUNCATE t; INSERT INTO t VALUES (1, 'new', 1)`)
			died := errors.New("died")
			p.cfg.Emptied = func(context.Context, pgx.Tx, scope.Table) error { return died }
			if err := New(p.cfg).StartOver(p.ctx, p.tables[0]); !errors.Is(err, died) {
				return fmt.Errorf("it did not die: %w", err)
			}
			return p.follow()
		},
	},
	{
		name: "journal.no_fence", ddl: oneTable, clean: refused, dirty: differs,
		play: func(p *pair) error {
			p.beforeCapture(`INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g`)
			p.load()
			stale, old := New(p.cfg), p.journal // decided to load the table again, and then was stopped
			p.t.Cleanup(func() { old.Close(context.Background()) })
			p.reopen()
			if err := p.follow(); err != nil {
				return err
			}
			err := stale.StartOver(p.ctx, p.tables[0])
			if pg.Retryable(err) { // the new runner ended its sessions; it connects again
				err = stale.StartOver(p.ctx, p.tables[0])
			}
			return err
		},
	},
}

// TestMutants plays each scenario by the protocol and without one of its rules: the oracle must say
// nothing of the first and notice the second.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		for _, name := range []string{"", m.name} {
			want := m.dirty
			if name == "" {
				want = m.clean
			}
			t.Run(m.name+"/"+want, func(t *testing.T) {
				t.Cleanup(failpoint.Mutate(name))
				p := newPair(t, m.ddl, chunks(16<<10))
				err := m.play(p)
				if got := p.ended(err); got != want {
					t.Errorf("it ended %s (%v), want %s", got, err, want)
				}
			})
		}
	}
}

// unsafePair is a pair whose source forgets what was committed, for seconds, when it crashes.
func unsafePair(t *testing.T) (p *pair, crash func()) {
	t.Helper()
	major, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: major, Settings: map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10s"}})
	p = pairOf(t, testpg.NewDB(t, c), testpg.NewDB(t, testpg.Shared(t, targetMajor)), oneTable)
	p.exec(p.source, `SET synchronous_commit = on; SET pgrunbook.mark = '`+p.run.Mark+`'; INSERT INTO t SELECT g, 'old', g FROM generate_series(1, 100) g`)
	crashed := false
	t.Cleanup(func() {
		if !crashed {
			t.Error("the source did not crash")
		}
	})
	return p, func() {
		crashed = true
		if err := errors.Join(c.KillPostmaster(), c.Start(p.ctx)); err != nil {
			t.Error(err)
		}
	}
}

// TestMutantOfTheScrubWithoutHeartbeat crashes the source after a scrub, which forgets the changes that it had not made
// durable: the rows were removed on the target, and no key says so any more.
func TestMutantOfTheScrubWithoutHeartbeat(t *testing.T) {
	for name, want := range map[string]string{"": equal, "load.scrub_no_heartbeat": differs} {
		t.Run("it ends "+want, func(t *testing.T) {
			t.Cleanup(failpoint.Mutate(name))
			p, crash := unsafePair(t)
			p.once("load.committed", func() { p.exec(p.source, `UPDATE t SET v = 'new' WHERE id % 10 = 0`) })
			p.once("load.scrubbed", func() {
				if n := p.one(p.target, "SELECT count(*)::text FROM t"); n != "90" {
					p.t.Errorf("%s rows are left after the scrub", n)
				}
				crash()
			})
			p.load()
			if got := p.ended(p.follow()); got != want {
				t.Errorf("it ended %s, want %s", got, want)
			}
		})
	}
}

// TestD7MutantOfTheLoadWithoutHeartbeat crashes the source after a chunk with rows that it had not made durable: the
// source has them no more, and no change says so.
func TestD7MutantOfTheLoadWithoutHeartbeat(t *testing.T) {
	for name, want := range map[string]string{"": equal, "load.no_heartbeat": differs} {
		t.Run("it ends "+want, func(t *testing.T) {
			t.Cleanup(failpoint.Mutate(name))
			p, crash := unsafePair(t)
			p.once("load.claimed", func() { p.exec(p.source, `UPDATE t SET v = 'new' WHERE id % 10 = 0`) })
			p.once("load.committed", func() {
				if n := p.one(p.target, "SELECT count(*)::text FROM t WHERE v = 'new'"); n != "10" {
					p.t.Errorf("%s of the new rows are on the target", n)
				}
				crash()
				lost := map[string]string{equal: "10", differs: "0"}[want]
				if n := p.one(p.source, "SELECT count(*)::text FROM t WHERE v = 'new'"); n != lost {
					p.t.Errorf("%s of the new rows are on the source after its crash, want %s", n, lost)
				}
			})
			p.load()
			if got := p.ended(p.follow()); got != want {
				t.Errorf("it ended %s, want %s", got, want)
			}
		})
	}
}

// TestMutantOfXminAlone has a transaction whose id came round, and a row of the one that had it before.
func TestMutantOfXminAlone(t *testing.T) {
	for name, want := range map[string]string{"": equal, "load.xmin_alone": differs} {
		t.Run("it ends "+want, func(t *testing.T) {
			t.Cleanup(failpoint.Mutate(name))
			p := newPair(t, `CREATE TABLE k (a int, v text, at timestamptz, f float8, i interval)`, func(t *scope.Table) { t.Identity = scope.AppendOnly })
			image := capture.ImageName(p.tables[0].ID)
			if err := New(p.cfg).Prepare(p.ctx); err != nil { // what was captured before is forgotten
				t.Fatal(err)
			}
			p.exec(p.source, `SET datestyle = 'German'; SET timezone = 'Asia/Tokyo'; SET intervalstyle = 'iso_8601'; SET extra_float_digits = -5; BEGIN;
				INSERT INTO k VALUES (1, 'captured', '2020-02-03 04:05:06.789+00', 1e-300, '1 mon 2 days'), (2, 'old', NULL, 0.1, NULL);
				UPDATE `+image+` SET x = '4294968296'; DELETE FROM `+image+` WHERE img LIKE '%old%'; COMMIT`)
			p.load()
			if got := p.ended(p.follow()); got != want {
				t.Errorf("it ended %s, want %s", got, want)
			}
		})
	}
}

// A death between the emptying of a table and its new chunks: the next run cuts them, though nothing else asks
// for it any more.
func TestF42MutantsOfTheSecondLoad(t *testing.T) {
	p := newPair(t, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE k (a int, v text)`, chunks(16<<10), func(t *scope.Table) {
		if t.Key == nil {
			t.Identity = scope.AppendOnly
		}
	})
	p.beforeCapture(`INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g; INSERT INTO k SELECT g, 'v' FROM generate_series(1, 100) g`)
	p.load()
	p.exec(p.source, `INSERT INTO k SELECT g, 'w' FROM generate_series(1, 100) g; TRUNCATE t; INSERT INTO t VALUES (1, 'new')`)
	for _, table := range p.tables {
		ctx, cancel := context.WithCancel(p.ctx)
		t.Cleanup(failpoint.On("load.emptied", cancel))
		if err := New(p.cfg).StartOver(ctx, table); err == nil {
			t.Fatal("it did not die")
		}
	}
	if n := p.one(p.target, "SELECT count(*)::text FROM pgrunbook.item"); n != "0" {
		t.Fatalf("%s chunks are there: this proves nothing", n)
	}
	p.load()
	p.synced()
}

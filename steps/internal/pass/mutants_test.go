//go:build failpoint

package pass

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// How a scenario ended, by an oracle that is not the product's.
const (
	equal   = "equal"
	differs = "differs"
	refused = "refused" // the product stopped by itself and said why
	stuck   = "stuck"   // it cannot go on
)

// ended says how: unless the scenario made the final pass, another one must get through. Then the
// sides must be equal.
func (p *pair) ended(err error) string {
	p.t.Helper()
	var e *engine.Error
	if err == nil && !p.last {
		err = p.pass()
	}
	if errors.As(err, &e) {
		return refused
	}
	if err != nil {
		return stuck
	}
	diffs, err := testpg.Diff(p.ctx, p.source, p.target, p.names())
	if err != nil {
		p.t.Fatal(err)
	}
	if len(diffs) > 0 {
		return differs
	}
	return equal
}

// pass makes one, and lets sessions that died be opened again.
func (p *pair) pass() error {
	_, err := p.passer.Exact(p.ctx, Options{Patience: 5 * time.Second})
	return err
}

// after runs f once, when the pass gets to a failpoint.
func (p *pair) after(point string, f func()) {
	done := false
	p.t.Cleanup(failpoint.On(point, func() {
		if !done {
			done = true
			f()
		}
	}))
}

// endSessions ends the pass's sessions on a side.
func (p *pair) endSessions(url string) {
	p.t.Helper()
	if n := p.one(url, `SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity
		WHERE datname = current_database() AND application_name LIKE 'pgrunbook r1 pass%'`); n == "0" {
		p.t.Error("the pass has no session there")
	}
}

// A mutant is a rule of the protocol that is left out or turned round.
type mutant struct {
	name  string
	ddl   string
	play  func(p *pair) error // what happens; a fault where the rule needs one
	clean string              // how it must end without the mutant
	dirty string              // and with it
}

var mutants = []mutant{
	{
		name: "pass.forget_first", clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.app(`INSERT INTO t VALUES (1, 'a')`)
			p.after("pass.marked", func() { p.endSessions(p.target) }) // before the target is durable
			return p.pass()
		},
	},
	{
		// D18: the session is lost, and what the look-up finds is the id of another runner's pass.
		name: "pass.any_watermark", clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.app(`INSERT INTO t VALUES (1, 'a')`)
			p.after("pass.marked", func() {
				p.endSessions(p.target)
				p.exec(p.target, `INSERT INTO pgrunbook.watermark (from_side, pass, epoch, snapshot, at) VALUES ('source', md5('another')::uuid, 1, '1:1:', now())
					ON CONFLICT (from_side) DO UPDATE SET pass = EXCLUDED.pass`)
			})
			return p.pass()
		},
	},
	{
		name: "pass.forget_by_xid", clean: equal, dirty: differs,
		play: func(p *pair) error {
			slow := p.connect(p.source)
			if err := run(p.ctx, slow, `BEGIN; INSERT INTO t VALUES (1, 'the smaller id')`); err != nil {
				return err
			}
			p.app(`INSERT INTO t VALUES (2, 'the larger one')`)
			p.after("pass.committed", func() {
				if err := run(p.ctx, slow, "COMMIT"); err != nil {
					p.t.Error(err)
				}
			})
			return p.pass()
		},
	},
	{
		name: "pass.forget_unread", clean: equal, dirty: differs,
		play: func(p *pair) error {
			for range 5 {
				p.app(`INSERT INTO t SELECT coalesce((SELECT max(id) FROM t), 0) + g FROM generate_series(1, 10) g`)
			}
			_, _, _, err := p.passer.piece(p.ctx, p.tables[0], 10)
			return err
		},
	},
	{
		name: "pass.marks_last", clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.app(`INSERT INTO t VALUES (1, 'a')`)
			if err := p.pass(); err != nil {
				return err
			}
			p.app(`BEGIN; TRUNCATE t; INSERT INTO t VALUES (2, 'b'); COMMIT`)
			return p.pass()
		},
	},
	{
		name: "pass.upsert_first", clean: equal, dirty: stuck, ddl: `CREATE TABLE t (id int PRIMARY KEY, mail text UNIQUE)`,
		play: func(p *pair) error {
			p.app(`INSERT INTO t VALUES (1, 'a@example.net')`)
			if err := p.pass(); err != nil {
				return err
			}
			p.app(`BEGIN; DELETE FROM t; INSERT INTO t VALUES (2, 'a@example.net'); COMMIT`)
			return p.pass()
		},
	},
	{
		name: "pass.no_fingerprint", clean: refused, dirty: differs,
		play: func(p *pair) error {
			p.passer.cfg.Check = func(ctx context.Context, conn *pgx.Conn) error {
				changes, err := capture.Check(ctx, conn, testRun, p.tables)
				if err == nil && len(changes) > 0 {
					err = &engine.Error{Op: "following", Object: "t", Err: errors.New(changes[0].Text)}
				}
				return err
			}
			p.app(`BEGIN; ALTER TABLE t DISABLE TRIGGER ALL; INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ENABLE TRIGGER ALL; COMMIT`)
			return p.pass()
		},
	},
	{
		name: "pass.no_locks", clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.app(`INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50) g`)
			if err := p.pass(); err != nil {
				return err
			}
			p.app(`UPDATE t SET v = 'w' WHERE id <= 5`)
			rewriting := p.connect(p.source)
			rewritten := make(chan error, 1)
			err := p.afterSnapshot(func() {
				go func() { rewritten <- run(p.ctx, rewriting, `ALTER TABLE t SET UNLOGGED`) }()
				p.settled(rewriting)
			})
			return errors.Join(err, <-rewritten)
		},
	},
	{
		name: "pass.no_locks", clean: equal, dirty: differs, ddl: twoPartitions,
		play: func(p *pair) error {
			p.app(`INSERT INTO r SELECT g, 'v' FROM generate_series(1, 150) g`)
			if err := p.pass(); err != nil {
				return err
			}
			p.passer.cfg.Check = nil
			_, err := p.detachedAround(make(chan struct{}))
			return err
		},
	},
	{
		name: "pass.snapshot_first", clean: equal, dirty: differs,
		play: func(p *pair) error {
			open, err := p.passer.Begin(p.ctx, Options{})
			if err != nil {
				return err
			}
			p.app(`INSERT INTO t VALUES (1, 'before the hold')`)
			if _, err := open.Run(p.ctx, Options{}); err != nil {
				return err
			}
			p.last = true
			return nil
		},
	},
	{
		name: "pass.bare_operator", clean: equal, dirty: differs, ddl: `CREATE EXTENSION citext; CREATE TABLE t (k citext PRIMARY KEY, v int)`,
		play: func(p *pair) error {
			p.app(`INSERT INTO t VALUES ('a', 1), ('b', 2)`)
			if err := p.pass(); err != nil {
				return err
			}
			p.app(`BEGIN; DELETE FROM t WHERE k = 'a'; INSERT INTO t VALUES ('A', 1); COMMIT`)
			return p.pass()
		},
	},
	{
		name: "capture.new_key_only", clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.app(`INSERT INTO t VALUES (1, 'a')`)
			if err := p.pass(); err != nil {
				return err
			}
			p.app(`UPDATE t SET id = 2`)
			return p.pass()
		},
	},
	{
		name: "capture.origin_only", clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.app(`SET session_replication_role = replica; INSERT INTO t VALUES (1, 'a')`)
			return p.pass()
		},
	},
	{
		name: "capture.no_truncation", clean: equal, dirty: differs,
		play: func(p *pair) error {
			p.app(`INSERT INTO t VALUES (1, 'a')`)
			if err := p.pass(); err != nil {
				return err
			}
			p.app(`TRUNCATE t`)
			return p.pass()
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
				ddl := m.ddl
				if ddl == "" {
					ddl = plainTable
				}
				p := newPair(t, ddl)
				if got := p.ended(m.play(p)); got != want {
					t.Errorf("it ended %s, want %s", got, want)
				}
			})
		}
	}
}

// TestMutantWithoutHeartbeat crashes the source, which forgets what it had not made durable.
func TestMutantWithoutHeartbeat(t *testing.T) {
	major, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: major, Settings: map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10s"}})
	for name, want := range map[string]string{"": equal, "pass.no_heartbeat": differs} {
		t.Cleanup(failpoint.Mutate(name))
		p := pairOf(t, testpg.NewDB(t, c), testpg.NewDB(t, testpg.Shared(t, targetMajor)), plainTable)
		p.app(`SET synchronous_commit = on; INSERT INTO t VALUES (1, 'old')`)
		if err := p.pass(); err != nil {
			t.Fatal(err)
		}
		p.app(`INSERT INTO t VALUES (2, 'new'); UPDATE t SET v = 'new' WHERE id = 1`)
		if err := p.pass(); err != nil {
			t.Fatal(err)
		}
		if err := c.KillPostmaster(); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(p.ctx); err != nil {
			t.Fatal(err)
		}
		if got := p.ended(nil); got != want {
			t.Errorf("%q: it ended %s, want %s", name, got, want)
		}
	}
}

// TestMutantWithoutTheFirstSlot has a table's first pass with images lose its session on the source before the COMMIT on the
// target, which comes there after the next pass has begun.
func TestMutantWithoutTheFirstSlot(t *testing.T) {
	for name, want := range map[string]string{"": equal, "pass.no_slot": differs} {
		t.Run("it ends "+want, func(t *testing.T) {
			t.Cleanup(failpoint.Mutate(name))
			p := newPair(t, `CREATE TABLE k (a int, v text)`, func(t *scope.Table) { t.Identity = scope.AppendOnly })
			p.app(`INSERT INTO k VALUES (1, 'a'), (1, 'a')`)
			next, second := p.newPasser(), make(chan error, 1)
			p.after("pass.marked", func() {
				p.endSessions(p.source)
				go func() {
					_, err := next.Exact(p.ctx, Options{Patience: 30 * time.Second})
					second <- err
				}()
				for p.one(p.target, `SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name LIKE 'pgrunbook r1 pass%'`) == "0" {
					if p.ctx.Err() != nil {
						p.t.Error("the next pass does not wait")
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
			})
			if _, err := p.passer.exact(p.ctx, Options{}); err == nil {
				t.Error("the first pass has forgotten its images: this proves nothing")
			}
			if got := p.ended(<-second); got != want {
				t.Errorf("it ended %s, want %s", got, want)
			}
		})
	}
}

// TestMutantThatCommitsEachTable makes passes of two tables, the second of which the target refuses: what it holds then
// has never been seen on the source.
func TestMutantThatCommitsEachTable(t *testing.T) {
	for name, want := range map[string]string{"": "0", "pass.commit_each": "1"} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(failpoint.Mutate(name))
			p := newPair(t, plainTable+"; CREATE TABLE u (id int PRIMARY KEY)")
			p.exec(p.target, "ALTER TABLE u ADD CHECK (id <> 1)")
			p.app("BEGIN; INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (1); COMMIT")
			if err := p.pass(); err == nil {
				t.Fatal("the target takes what it shall refuse")
			}
			if got := p.one(p.target, "SELECT count(*)::text FROM t"); got != want {
				t.Errorf("half a transaction: %s rows, want %s", got, want)
			}
		})
	}
}

// Each time that a pass has locked what has changed, another table changes.
func TestMutantsAsideTablesKeepComing(t *testing.T) {
	p := widePair(t)
	p.app(`INSERT INTO t1 VALUES (1)`)
	begun := 0
	t.Cleanup(failpoint.On("pass.begun", func() {
		if begun++; begun < wide {
			p.app(fmt.Sprintf(`INSERT INTO t%d VALUES (1)`, begun+1))
		}
	}))
	if err := p.pass(); err != nil {
		t.Fatal(err)
	}
	if begun != chases+1 {
		t.Errorf("the pass was begun %d times", begun)
	}
	p.equal()
}

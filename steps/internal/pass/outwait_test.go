package pass

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// A6: a pass that meets somebody's lock on the target is not made until that is gone: no snapshot of ours holds the source's
// vacuum back, it is said who is in the way, and the wait takes nothing of the pass's patience.
func TestA6PassesOutwaitLocksOnTheTarget(t *testing.T) {
	for name, tt := range map[string]struct {
		ddl, lock string
		pass      func(p *pair) error
	}{
		"an exact pass": {plainTable, "t", func(p *pair) error { _, err := p.passer.Exact(p.ctx, Options{}); return err }},
		"a partition": {
			`CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (100)`, "t_1",
			func(p *pair) error { _, err := p.passer.Exact(p.ctx, Options{}); return err },
		},
		"pieces": {plainTable, "t", func(p *pair) error {
			_, err := p.passer.Drain(p.ctx, DrainOptions{PieceRows: 1, Patience: time.Millisecond, Until: time.Minute, Stable: 1})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, tt.ddl)
			p.app(`INSERT INTO t VALUES (1, 'a')`)
			p.synced()
			told := make(chan engine.Event, 1000)
			p.passer.cfg.Emit = func(e engine.Event) { told <- e }
			holder := p.connect(p.target)
			if err := run(p.ctx, holder, "BEGIN; LOCK TABLE "+tt.lock+" IN SHARE MODE"); err != nil {
				t.Fatal(err)
			}
			p.app(`UPDATE t SET v = 'b'; INSERT INTO t VALUES (2, 'b'), (3, 'b')`)
			passed := make(chan error, 1)
			go func() { passed <- tt.pass(p) }()
			pid := fmt.Sprintf("pid %d ", holder.PgConn().PID())
			if e := p.waitingFor(told, passed, pid); !strings.Contains(e.Hint, "on the target: SELECT pg_terminate_backend(") {
				t.Errorf("to type there is %q", e.Hint)
			}
			if n := p.one(p.source, `SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook%' AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)`); n != "0" {
				t.Errorf("%s transactions of ours are open on the source", n)
			}
			p.app(`SET lock_timeout = '10s'; TRUNCATE t; INSERT INTO t VALUES (4, 'c')`)
			if err := run(p.ctx, holder, "ROLLBACK"); err != nil {
				t.Fatal(err)
			}
			if err := <-passed; err != nil {
				t.Fatal(err)
			}
			p.passer.cfg.Emit = func(engine.Event) {}
			p.synced()
		})
	}
}

// waitingFor gives the event that names who is in the way.
func (p *pair) waitingFor(told <-chan engine.Event, passed <-chan error, pid string) engine.Event {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	for {
		select {
		case e := <-told:
			if e.Kind == engine.EventWaiting && slices.ContainsFunc(e.Blockers, func(b string) bool { return strings.HasPrefix(b, pid) }) {
				return e
			}
		case err := <-passed:
			p.t.Fatalf("the pass did not wait: %v", err)
		case <-ctx.Done():
			p.t.Fatalf("nobody was told of %s", pid)
		}
	}
}

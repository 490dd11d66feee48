package load

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// A6: while somebody's lock on the target keeps a chunk waiting, nothing of ours is locked on the source, it is said who that is,
// and no try counts as a failure.
func TestA6NoLockIsHeldWhileAChunkWaitsForTheTarget(t *testing.T) {
	const parts = `CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (500); CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (500) TO (5000);`
	const rows = `INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) g`
	for name, tt := range map[string]struct {
		ddl, fill, lock string
		keyed           bool
	}{
		"a table":                       {oneTable, rows, "t", false},
		"a partition":                   {parts, rows, "t_2", false},
		"a table with its keys":         {oneTable, rows, "t", true},
		"a table whose rows are images": {`CREATE TABLE t (n int, v text)`, rows, "t", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, tt.ddl, chunks(8<<10))
			p.beforeCapture(tt.fill)
			if tt.keyed {
				p.exec(p.target, strings.Join(append(p.builder.keys["t"], p.builder.unique...), ";"))
				p.builder.unique = nil
			}
			p.outwaited(tt.lock)
			p.synced()
		})
	}
}

// outwaited loads while a session on the target has a table locked, and looks at the source meanwhile.
func (p *pair) outwaited(lock string) {
	p.t.Helper()
	l := New(p.cfg)
	if err := l.Prepare(p.ctx); err != nil {
		p.t.Fatal(err)
	}
	holder := p.connect(p.target)
	if _, err := holder.Exec(p.ctx, "BEGIN; LOCK TABLE "+lock+" IN SHARE MODE"); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(p.ctx) }()
	for p.one(p.target, `SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = '`+lock+`'::regclass`) == "0" {
		if p.ctx.Err() != nil {
			p.t.Fatal("no chunk waited")
		}
	}
	p.exec(p.source, "BEGIN; SET LOCAL lock_timeout = '10s'; LOCK TABLE t; COMMIT")
	for pid := fmt.Sprintf("pid %d ", holder.PgConn().PID()); !p.told(pid); {
		if p.ctx.Err() != nil {
			p.t.Fatalf("nobody was told of %s: %s", pid, p.messages())
		}
	}
	if _, err := holder.Exec(p.ctx, "ROLLBACK"); err != nil {
		p.t.Fatal(err)
	}
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e.Kind == engine.EventRetry {
			p.t.Errorf("a wait was a failure: %s", e.Message)
		}
	}
}

// told reports whether an event names a session that is in the way.
func (p *pair) told(pid string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e.Kind == engine.EventWaiting && strings.HasPrefix(strings.Join(e.Blockers, ""), pid) && strings.Contains(e.Hint, "on the target: SELECT pg_terminate_backend(") {
			return true
		}
	}
	return false
}

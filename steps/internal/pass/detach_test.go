package pass

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
)

const (
	twoPartitions = `CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100); CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (100) TO (200)`
	detach = `ALTER TABLE r DETACH PARTITION r1`
	attach = `ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (100)`
)

// detachedAround makes a pass over rows of a partition that is detached after the snapshot was taken and
// before the rows are read, by itself: in one transaction with the ATTACH it is harmless. It is
// attached again when the pass is over. detached is closed once the partition is.
func (p *pair) detachedAround(detached chan struct{}) (waited bool, err error) {
	p.t.Helper()
	p.app(`UPDATE r SET v = v || 'w' WHERE id < 10`)
	conn := p.connect(p.source)
	gone := make(chan error, 1)
	err = p.afterSnapshot(func() {
		go func() { defer close(detached); gone <- run(p.ctx, conn, detach) }()
		p.settled(conn)
		waited = p.one(p.source, `SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = 'r'::regclass AND pid = `+strconv.Itoa(int(conn.PgConn().PID()))) == "1"
	})
	if e := <-gone; e != nil {
		p.t.Fatalf("%s: %v", detach, e)
	}
	p.app(attach)
	return waited, err
}

// D3: a partition that is detached while a pass reads is missing from the root: the pass would delete its rows, forget
// their keys, and nobody would bring them back when it is attached again. The lock makes the DETACH wait until the rows
// are read; here there is no fingerprint, which would find it afterwards.
func TestD3DetachBetweenSnapshotAndRead(t *testing.T) {
	p := newPair(t, twoPartitions)
	p.app(`INSERT INTO r SELECT g, 'v' FROM generate_series(1, 150) g`)
	p.synced()
	p.passer.cfg.Check = nil
	waited, err := p.detachedAround(make(chan struct{}))
	if err != nil {
		t.Fatalf("the pass failed: %v", err)
	}
	if !waited {
		t.Error("the DETACH did not wait for the pass")
	}
	p.equal()
	p.synced()
}

// D3: the fingerprint is compared once more after the last read, and tells a partition that was attached again from one
// that never left. The pass that it refuses has forgotten nothing.
func TestD3DetachIsNamedAfterTheRead(t *testing.T) {
	p := newPair(t, twoPartitions)
	p.app(`INSERT INTO r SELECT g, 'v' FROM generate_series(1, 150) g`)
	p.synced()
	detached := make(chan struct{})
	found := func(ctx context.Context, conn *pgx.Conn) error {
		changes, err := capture.Check(ctx, conn, testRun, p.tables)
		if err == nil && len(changes) > 0 {
			err = errors.New(changes[0].Text)
		}
		return err
	}
	calls := 0
	p.passer.cfg.Check = func(ctx context.Context, conn *pgx.Conn) error {
		if calls++; calls > 1 { // before the snapshot there was nothing to find
			<-detached
		}
		return found(ctx, conn)
	}
	if _, err := p.detachedAround(detached); err == nil || !strings.Contains(err.Error(), `"r1" was detached or dropped`) || calls != 2 {
		t.Fatalf("the pass says %v, after %d looks", err, calls)
	}
	if n := p.deltaRows(); n != 9 {
		t.Errorf("%d keys are left of the pass that was refused, want 9", n)
	}
	p.passer.cfg.Check = found
	if _, err := p.passer.Exact(p.ctx, Options{}); err == nil || !strings.Contains(err.Error(), `"r1" was detached and attached again`) {
		t.Errorf("the next pass says %v", err)
	}
	p.passer.cfg.Check = nil
	p.synced()
}

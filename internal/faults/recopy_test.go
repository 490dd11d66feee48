package faults_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// rewrite changes every row of a table in a way that no trigger sees.
const rewrite = "ALTER TABLE app.item ALTER COLUMN filler TYPE varchar USING filler || '!'; ALTER TABLE app.item ALTER COLUMN filler TYPE text USING filler || '?'"

// TestF01DeathAfterRewrite rewrites a table while its chunks are copied, and dies when it has started
// over: the next run must find out for itself that rows of before are on the target.
func TestF01DeathAfterRewrite(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.start("load.following@1:sleep=3s;load.scrubbed@1:sleep=3s;load.again@1:kill", applyArgs...)
	if !p.passed("load.committed", 10) {
		t.Fatal("the runner copied nothing")
	}
	r.sql(r.source, rewrite)
	if o := p.end(); o.signal == 0 {
		t.Fatalf("the runner did not start the table over: %s\n%s", o, o.text)
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF01DeathInConcurrentBuild dies in, and right after, the build of an index that is made beside
// writers: what such a death leaves is invalid, and a name that is taken.
func TestF01DeathInConcurrentBuild(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.sql(r.source, `CREATE TABLE app.large (id int PRIMARY KEY, code text NOT NULL, filler text);
		ALTER TABLE app.large ALTER filler SET STORAGE PLAIN;
		INSERT INTO app.large SELECT g, md5(g::text), repeat('x', 7000) FROM generate_series(1, 9000) g; CREATE UNIQUE INDEX large_code ON app.large (code); ANALYZE app.large`)
	r.finally("apply", "--auto-approve", "--until", "catch_up")
	reader, err := pgx.Connect(t.Context(), r.target)
	r.must(err)
	defer func() { _ = reader.Close(context.WithoutCancel(t.Context())) }()
	_, err = reader.Exec(t.Context(), "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1") // the build waits for old snapshots
	r.must(err)
	p := r.start("", applyArgs...)
	for p.state() != "Z" && r.number(r.target, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE UNIQUE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'") == 0 {
		time.Sleep(50 * time.Millisecond)
	}
	p.signal(syscall.SIGKILL)
	if o := p.end(); o.signal == 0 {
		t.Fatalf("the runner did not die: %s", o)
	}
	// Its session would go on without it, and finish.
	r.sql(r.target, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE UNIQUE INDEX CONCURRENTLY%' AND pid <> pg_backend_pid()")
	const invalid = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('app.large_code') AND NOT indisvalid"
	if r.number(r.target, invalid) != 1 {
		t.Error("the death left no invalid index: this proves nothing")
	}
	_, err = reader.Exec(t.Context(), "COMMIT")
	r.must(err)
	r.die(walk{args: applyArgs, names: []string{"dump.concurrently"}})
	if r.number(r.target, "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('app.large_code') AND indisvalid AND indisunique") != 1 {
		t.Error("the index is not there as it should be")
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

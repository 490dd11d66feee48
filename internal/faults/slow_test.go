package faults_test

import (
	"context"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestF22CheckpointStorm moves to a target that writes to its disk for real, has room for two segments of WAL, and makes one
// checkpoint after the other; while rows are loaded and passes begin, the processes that write for others stand still. The
// run takes its time, and needs no second attempt.
func TestF22CheckpointStorm(t *testing.T) {
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	sourceMajor, targetMajor := majors(t)
	target := testpg.StartT(t, testpg.Options{Major: targetMajor, Fsync: true, Settings: map[string]string{
		"max_wal_size": "32MB", "min_wal_size": "32MB", "shared_buffers": "1MB", "checkpoint_warning": "1h",
	}})
	r := newRigOn(t, testpg.NewDB(t, testpg.Shared(t, sourceMajor)), testpg.NewDB(t, target))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var made atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := pgx.Connect(ctx, target.ConnString())
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		for ctx.Err() == nil {
			if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil && ctx.Err() == nil {
				t.Errorf("a checkpoint: %v", err)
				return
			}
			made.Add(1)
		}
	}()
	var pids []int // asked for at once: beside processes that stand still even a new session may wait
	for _, kind := range []string{"checkpointer", "walwriter", "background writer"} {
		pids = append(pids, r.number(r.target, "SELECT pid FROM pg_stat_activity WHERE backend_type = '"+kind+"'"))
	}
	stand := func(how syscall.Signal) {
		for _, pid := range pids {
			r.must(syscall.Kill(pid, how))
		}
	}
	p := r.start("load.claimed@2:sleep=500ms", applyArgs...)
	if !p.passed("load.claimed", 2) {
		t.Fatal("the runner loaded nothing")
	}
	behind := func() bool { // a pass is made while nothing is written for others
		stand(syscall.SIGSTOP)
		before := made.Load()
		_, count := p.hits()
		if !r.commits(r.target) || !p.within("pass.committed", count["pass.committed"]+1, 30*time.Second) {
			t.Logf("stopped with a lock: %s", r.waitsFor(r.target))
			return false
		}
		if now := made.Load(); now > before+1 {
			t.Errorf("%d checkpoints were made by a checkpointer that stands still", now-before)
		}
		return true
	}
	// A process that is stopped keeps its locks, and may have one that the pass needs: then it is stopped elsewhere.
	for n := 1; !behind(); n++ {
		if stand(syscall.SIGCONT); n == 10 {
			t.Fatal("behind a checkpointer that stands still the runner made no pass")
		}
	}
	stand(syscall.SIGCONT)
	if o := p.end(); o.code != 0 {
		t.Errorf("on a slow target: %s\n%s", o, o.text)
	}
	cancel()
	<-done
	if made.Load() < 10 {
		t.Errorf("only %d checkpoints were made", made.Load())
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// commits says whether a transaction that writes WAL gets through within seconds.
func (r *rig) commits(url string) bool {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, "SELECT pg_logical_emit_message(true, 'pgrunbook', 'a commit')")
	return err == nil
}

// waitsFor says what the program's sessions on a server wait for, where a session can be had.
func (r *rig) waitsFor(url string) string {
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var list string
	if err := conn.QueryRow(ctx, `SELECT coalesce(string_agg(format('%s: %s %s, %s', application_name, wait_event_type, wait_event, left(query, 80)), '; '), 'nobody')
		FROM pg_stat_activity WHERE application_name LIKE 'pgrunbook%' AND state <> 'idle'`).Scan(&list); err != nil {
		return err.Error()
	}
	return list
}

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
	sourceMajor, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
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
	stand := func(how syscall.Signal) {
		for _, kind := range []string{"checkpointer", "walwriter", "background writer"} {
			r.must(syscall.Kill(r.number(r.target, "SELECT pid FROM pg_stat_activity WHERE backend_type = '"+kind+"'"), how))
		}
	}
	p := r.start("load.claimed@2:sleep=500ms", applyArgs...)
	if !p.passed("load.claimed", 2) {
		t.Fatal("the runner loaded nothing")
	}
	stand(syscall.SIGSTOP)
	for n := 0; !r.commits(r.target); n++ { // one of them stands still with a lock that every commit needs
		if n == 50 {
			t.Fatal("no commit gets past processes that stand still")
		}
		stand(syscall.SIGCONT)
		stand(syscall.SIGSTOP)
	}
	before := made.Load()
	if !p.passed("pass.committed", 1) {
		t.Error("behind a checkpointer that stands still the runner made no pass")
	}
	if now := made.Load(); now > before+1 {
		t.Errorf("%d checkpoints were made by a checkpointer that stands still", now-before)
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

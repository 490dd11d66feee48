package testpg

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// LoseStandbyT makes every durable commit of a cluster wait for a synchronous standby that is not there, until the
// returned function lets them all go. All sessions know of it when it returns.
func LoseStandbyT(t TB, c *Cluster) (back func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	set := func(names string) {
		if err := c.Exec(context.Background(), "postgres", "ALTER SYSTEM SET synchronous_standby_names = '"+names+"'", "SELECT pg_reload_conf()"); err != nil {
			t.Errorf("%v", err)
		}
	}
	conn := func() *pgx.Conn {
		conn, err := pgx.Connect(ctx, c.ConnString())
		if err != nil {
			t.Fatalf("%v", err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return conn
	}
	probe, look, done := conn(), conn(), make(chan error, 1)
	back = sync.OnceFunc(func() {
		set("")
		if err := <-done; err != nil {
			t.Errorf("the probe's commit: %v", err)
		}
	})
	t.Cleanup(back)
	set("nobody")
	held := fmt.Sprintf("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = %d)", probe.PgConn().PID())
	for { // until the checkpointer has told the others of the setting
		go func() {
			_, err := probe.Exec(ctx, "SELECT pg_logical_emit_message(true, 'probe', '')")
			done <- err
		}()
		for waits := false; len(done) == 0; {
			if err := look.QueryRow(ctx, held).Scan(&waits); err != nil {
				t.Fatalf("%v", err)
			}
			if waits {
				return back
			}
		}
		if err := <-done; err != nil {
			done <- err // back says it
			t.Fatalf("the probe's commit: %v", err)
		}
	}
}

// AwaitStandbyT waits until a session of which where is true in pg_stat_activity waits for a synchronous standby. What it
// belongs to must not end before.
func AwaitStandbyT(t TB, url, where string, ended <-chan error) (pid int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	for pid == 0 {
		select {
		case err := <-ended:
			t.Fatalf("it ended before a session with %s waited for a standby: %v", where, err)
		default:
		}
		err := conn.QueryRow(ctx, "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep' AND "+where).Scan(&pid)
		if err != nil {
			t.Fatalf("waiting for a session with %s that waits for a standby: %v", where, err)
		}
	}
	return pid
}

// CancelStandbyT is AwaitStandbyT, and cancels the wait.
func CancelStandbyT(t TB, url, where string, ended <-chan error) {
	t.Helper()
	pid := AwaitStandbyT(t, url, where, ended)
	conn, err := pgx.Connect(context.Background(), url)
	if err == nil {
		_, err = conn.Exec(context.Background(), "SELECT pg_cancel_backend($1)", pid)
		_ = conn.Close(context.Background())
	}
	if err != nil {
		t.Fatalf("cancelling the wait of %d: %v", pid, err)
	}
}

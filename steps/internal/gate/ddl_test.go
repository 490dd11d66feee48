package gate

import (
	"context"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A table that DDL holds is looked at again: to have been in its way says nothing about its gate.
func TestVerifyWaitsOutDDL(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	if err := Install(d.ctx, d.srv, testRun, tables(), nil); err != nil {
		t.Fatal(err)
	}
	ours, err := d.srv.Connect(d.ctx, pg.Use{Name: "test", LockTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ours.Close(context.Background()) }()
	ddl := d.connect("postgres")
	d.run(ddl, "BEGIN")
	d.run(ddl, "ALTER TABLE plain ADD COLUMN new int")
	looked := make(chan error, 1)
	go func() { looked <- Verify(d.ctx, ours, testRun, tables()) }()
	refused := "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'"
	for waits := 0; waits == 0; time.Sleep(5 * time.Millisecond) {
		if err := d.ours.QueryRow(d.ctx, refused, ours.PgConn().PID()).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-looked:
			t.Fatalf("it did not meet the DDL: %v", err)
		default:
		}
	}
	time.Sleep(200 * time.Millisecond) // its lock_timeout has ended the first look
	d.run(ddl, "COMMIT")
	if err := <-looked; err != nil {
		t.Error(err)
	}
}

package gate

import (
	"context"
	"strings"
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

// A gate that was off for a moment, on whatever table, is another one; so is a function that somebody replaced.
func TestMarksTellWhoWasTouched(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	d.install()
	for _, c := range []struct{ sql, want string }{
		{"SELECT 1", ""},
		{`BEGIN; ALTER TABLE public.nodata DISABLE TRIGGER ALL; ALTER TABLE public.nodata ENABLE ALWAYS TRIGGER "!pgrunbook_gate"; COMMIT`, "public.nodata"},
		{`DROP TRIGGER "!pgrunbook_gate" ON public.part_2a`, "public.part_2a"},
		{"ALTER FUNCTION pgrunbook.gate() SET lock_timeout = 1", "function pgrunbook.gate()"},
	} {
		was, err := ReadMarks(d.ctx, d.ours)
		if err != nil {
			t.Fatal(err)
		}
		d.run(d.ours, c.sql)
		touched, err := was.Changed(d.ctx, d.ours)
		if err != nil || strings.Join(touched, " ") != c.want {
			t.Errorf("after %s these were touched: %q, %v, want %q", c.sql, touched, err, c.want)
		}
	}
}

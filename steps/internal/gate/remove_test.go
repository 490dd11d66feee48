package gate

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// Removing needs ACCESS EXCLUSIVE. Behind an open reader the application is free at once, a closed gate
// included, and nobody queues behind us; our trigger goes when the reader does.
func TestR25RemoveBesideAReader(t *testing.T) {
	d := newDB(t, testpg.Shared(t, 15))
	d.install()
	d.set(CloseNow)
	reader, app := d.connect("app"), d.connect("app")
	d.run(reader, "BEGIN; SELECT count(*) FROM plain")
	if got := d.try(app, "UPDATE plain SET v = 'no'"); got != "25006" {
		t.Errorf("before: %q", got)
	}
	waits, removed := make(chan pg.LockWait, 1000), make(chan error, 1)
	go func() { removed <- Remove(d.ctx, d.srv, testRun, func(w pg.LockWait) { waits <- w }) }()
	for range 3 {
		select {
		case w := <-waits:
			if w.Object != `"public"."plain"` || len(w.Blockers) != 1 || w.Blockers[0].PID != int32(reader.PgConn().PID()) {
				t.Errorf("in the way of %s: %v", w.Object, w.Blockers)
			}
		case err := <-removed:
			t.Fatalf("it ended beside a reader: %v", err)
		case <-time.After(30 * time.Second):
			t.Fatal("it waits, and names nobody")
		}
		for _, sql := range []string{"UPDATE plain SET v = 'free'", "INSERT INTO part VALUES (1, 11)", "SELECT count(*) FROM plain"} {
			if got := d.try(app, sql); got != "" {
				t.Errorf("%s: %q", sql, got)
			}
		}
	}
	// A freeze that came now would hold nobody: it must see that.
	if err := Verify(d.ctx, d.ours, testRun, tables()); !errors.Is(err, ErrUngated) || !strings.Contains(err.Error(), "lets everybody pass") {
		t.Errorf("with a gate that lets everybody pass, a look says %v", err)
	}
	d.run(reader, "COMMIT")
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
	d.want(Absent)
}

package testpg_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestSidesShowHalfATransaction plants what no transaction leaves, for less than a second, on the side that takes
// writes. The other one, to which a pass may be bringing rows, may show anything.
func TestSidesShowHalfATransaction(t *testing.T) {
	const (
		pay   = "UPDATE ledger.account SET balance = balance - 7 WHERE id = 3"
		back  = "UPDATE ledger.account SET balance = balance + 7 WHERE id = 3"
		entry = "INSERT INTO ledger.entry VALUES ('planted', 1, 4, 5, 7)"
		gone  = "DELETE FROM ledger.entry WHERE client = 'planted'"
		probe = "CREATE TABLE probe (n int); INSERT INTO probe VALUES (0)"
		gate  = `CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'closed' USING ERRCODE = '25006'; END $$;
			CREATE TRIGGER gate BEFORE UPDATE ON probe EXECUTE FUNCTION gate()`
	)
	for _, tc := range []struct {
		name   string
		side   int
		plant  string
		undo   string
		closed bool // the target refuses writes
		want   string
	}{
		{"half a payment", 0, pay, back, true, "side 0 showed"},
		{"an entry alone", 0, entry, gone, true, "2 of them unlike their entries"},
		{"on a target that is closed", 1, pay, back, true, ""},
		{"on a target that was opened", 1, pay, back, false, "side 1 showed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := testContext(t)
			c := testpg.Shared(t, 18)
			urls := [2]string{testpg.NewDB(t, c), testpg.NewDB(t, c)}
			run := func(side int, sql string) {
				t.Helper()
				conn, err := testpg.Connect(ctx, urls[side])
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close(ctx) }()
				if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
					t.Fatal(err)
				}
			}
			l := newLedger(t, urls[0])
			if err := l.Setup(ctx, urls[1]); err != nil {
				t.Fatal(err)
			}
			run(0, probe)
			run(1, probe+";"+gate)
			s := &testpg.Sides{URLs: urls, Probe: "UPDATE probe SET n = n + 1", Torn: l.Torn()}
			sampling, stop := context.WithCancel(ctx)
			ended := make(chan struct{})
			go func() { s.Run(sampling); close(ended) }()
			looks := func(side, more int) {
				t.Helper()
				for before := s.Looked()[side]; s.Looked()[side] < before+more; time.Sleep(5 * time.Millisecond) {
					if err := ctx.Err(); err != nil {
						t.Fatalf("side %d is not looked at: %v", side, err)
					}
				}
			}
			looks(0, 4) // by then the target has refused a write
			if !tc.closed {
				run(0, gate)
				run(1, "DROP TRIGGER gate ON probe")
				looks(1, 2)
			}
			if err := s.Err(); err != nil {
				t.Fatalf("before anything was planted: %v", err)
			}
			run(tc.side, tc.plant)
			looks(writable(tc.closed), 3)
			run(tc.side, tc.undo)
			stop()
			<-ended
			switch err := s.Err(); {
			case tc.want == "" && err != nil:
				t.Errorf("a side that takes no writes was looked at: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// writable is the side that takes writes.
func writable(targetClosed bool) int {
	if targetClosed {
		return 0
	}
	return 1
}

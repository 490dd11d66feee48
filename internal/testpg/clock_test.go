package testpg_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// The clock of a server jumps while sessions are open, for them and for new ones, and stays over a restart; what is
// measured by a monotonic clock goes on.
func TestClusterHasItsOwnClock(t *testing.T) {
	for _, major := range testpg.Some(18, 15, 12) {
		ctx := testContext(t)
		c := testpg.StartT(t, testpg.Options{Major: major, Clock: true})
		conn, err := pgx.Connect(ctx, c.ConnString())
		if err != nil {
			t.Fatal(err)
		}
		ahead := func(conn *pgx.Conn) time.Duration {
			t.Helper()
			var at time.Time
			if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&at); err != nil {
				t.Fatal(err)
			}
			return time.Until(at).Round(time.Minute)
		}
		for _, want := range []time.Duration{0, time.Hour, -time.Hour, 26 * time.Hour} {
			if err := c.SetClock(want); err != nil {
				t.Fatal(err)
			}
			fresh, err := pgx.Connect(ctx, c.ConnString())
			if err != nil {
				t.Fatal(err)
			}
			if a, b := ahead(conn), ahead(fresh); a != want || b != want {
				t.Errorf("PostgreSQL %d: the clock is %s ahead in an old session, %s in a new one, want %s", major, a, b, want)
			}
			_ = fresh.Close(ctx)
		}
		_ = conn.Close(ctx)
		if err := c.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		if conn, err = pgx.Connect(ctx, c.ConnString()); err != nil {
			t.Fatal(err)
		}
		if a := ahead(conn); a != 26*time.Hour {
			t.Errorf("PostgreSQL %d: the clock is %s ahead after a restart", major, a)
		}
		_ = conn.Close(ctx)
	}
	if err := testpg.Shared(t, 18).SetClock(time.Hour); err == nil {
		t.Error("the clock of a server that has none of its own was set")
	}
}

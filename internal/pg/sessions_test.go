package pg

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// Sessions that a role may not end, or see in full, are told from others: to try would be an error, and
// to overlook them would leave them there.
func TestR21ClientsThatMayNotBeEnded(t *testing.T) {
	c := testpg.Shared(t, testMajor)
	url := testpg.NewDB(t, c)
	admin := connect(t, newServer(t, Config{URL: url}), Use{})
	db := show(t, admin, "SELECT current_database()::text")
	for _, role := range []string{"_mover", "_app"} {
		run(t, admin, "CREATE ROLE "+db+role+" LOGIN")
		t.Cleanup(func() {
			if _, err := admin.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+db+role); err != nil {
				t.Error(err)
			}
		})
	}
	open := func(role, name string, sql ...string) {
		conn, err := pgx.Connect(testContext(t), c.URL(db, role)+"&application_name="+name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		run(t, conn, sql...)
	}
	old := []string{"BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"}
	open(db+"_app", "idle")
	open(db+"_app", "old", old...)
	open(c.Superuser, "theirs", old...)
	run(t, admin, "SET application_name = 'pgrunbook test'")
	mover := connect(t, newServer(t, Config{URL: c.URL(db, db+"_mover")}), Use{})
	for i, tt := range []struct {
		grant       string
		which       Clients
		ended, left []string
	}{
		{"", OldSnapshots, nil, []string{"old", "theirs"}},
		{"", AllClients, nil, []string{"idle", "old", "theirs"}},
		{"pg_read_all_stats", OldSnapshots, nil, []string{"old", "theirs"}},
		{"pg_signal_backend", NoClients, nil, nil},
		{"pg_signal_backend", OldSnapshots, []string{"old"}, []string{"theirs"}},
		{"", AllClients, []string{"idle"}, []string{"theirs"}},
	} {
		if tt.grant != "" {
			run(t, admin, fmt.Sprintf("GRANT %s TO %s_mover", tt.grant, db))
		}
		names := func(list []Session) (out []string) {
			for _, s := range list {
				out = append(out, s.Application)
			}
			slices.Sort(out)
			return out
		}
		before, err := Unendable(testContext(t), mover, tt.which)
		if err != nil || !slices.Equal(names(before), tt.left) {
			t.Errorf("%d: not to be ended %v, %v, want %v", i, before, err, tt.left)
		}
		ended, left, err := EndClients(testContext(t), mover, tt.which)
		if err != nil || !slices.Equal(names(ended), tt.ended) || !slices.Equal(names(left), tt.left) {
			t.Errorf("%d: ended %v, left %v, %v; want %v and %v", i, ended, left, err, tt.ended, tt.left)
		}
		for wait := testContext(t); len(tt.ended) > 0; {
			if show(t, admin, "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1", tt.ended[0]) == "0" {
				break
			}
			if wait.Err() != nil {
				t.Fatal("it does not end")
			}
		}
	}
}

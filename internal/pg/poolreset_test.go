package pg

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A pool in session mode that does not reset its sessions is refused before one of ours has set
// anything that an application would get; one that does is fine.
func TestPoolerThatDoesNotReset(t *testing.T) {
	c := testpg.Shared(t, testMajor)
	for _, tt := range []struct {
		reset string
		leaks bool
	}{{"DISCARD ALL", false}, {"RESET ALL", false}, {"DEALLOCATE ALL", true}, {"", true}} {
		b := testpg.StartBouncerT(t, testpg.BouncerOptions{
			Databases: map[string]string{"db": testpg.NewDB(t, c)}, PoolMode: "session", Settings: map[string]string{"server_reset_query": tt.reset},
		})
		url := b.URL("db", "postgres")
		s := newServer(t, Config{URL: url, Mark: "m"})
		for range 2 { // the second time it knows the pooler
			conn, err := s.Connect(testContext(t), Use{Marked: true, Replica: true})
			var refused *PoolerError
			switch {
			case !tt.leaks && err != nil:
				t.Errorf("server_reset_query %q: %v", tt.reset, err)
			case tt.leaks && (!errors.As(err, &refused) || !refused.Leaks || !strings.Contains(refused.Fix(), "server_reset_query")):
				t.Errorf("server_reset_query %q: %v", tt.reset, err)
			}
			if err == nil {
				closeQuietly(t.Context(), conn)
			}
		}
		for _, left := range sessionsOf(t, url, 4) {
			if left != "origin//" {
				t.Errorf("server_reset_query %q: an application's session is %s", tt.reset, left)
			}
		}
	}
}

// What an earlier run left in a pool is found even where the pooler was asked before.
func TestPoolerWithSessionsOfAnEarlierRun(t *testing.T) {
	b := testpg.StartBouncerT(t, testpg.BouncerOptions{
		Databases: map[string]string{"db": testpg.NewDB(t, testpg.Shared(t, testMajor))}, PoolMode: "session", Settings: map[string]string{"server_reset_query": ""},
	})
	url := b.URL("db", "postgres")
	s := newServer(t, Config{URL: url, Mark: "m"})
	s.proxy.find(true, true)
	conn, err := s.Connect(testContext(t), Use{Marked: true})
	if err != nil {
		t.Fatal(err)
	}
	closeQuietly(t.Context(), conn)
	var refused *PoolerError
	for range 5 { // the pooler need not have noticed the end of the first one yet
		if conn, err = s.Connect(testContext(t), Use{}); err != nil {
			break
		}
		defer closeQuietly(t.Context(), conn)
	}
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "the mark of a run") {
		t.Errorf("Connect: %v", err)
	}
}

// Where there is no room for one more session, nothing shows that the pooler or server does not reset them, and
// every later one is looked at.
func TestPoolerWithoutRoom(t *testing.T) {
	c := testpg.Shared(t, testMajor)
	db := testpg.NewDB(t, c)
	admin := connect(t, newServer(t, Config{URL: db}), Use{})
	run(t, admin, "CREATE ROLE alone LOGIN CONNECTION LIMIT 1")
	t.Cleanup(func() { run(t, admin, "DROP ROLE alone") })
	full := func(settings map[string]string, size int) string {
		b := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"db": db}, PoolMode: "session", PoolSize: size, Settings: settings})
		return b.URL("db", "postgres")
	}
	alone, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	alone.User = url.User("alone")
	for name, at := range map[string]string{
		"clients":  full(map[string]string{"max_client_conn": "1"}, 0),
		"sessions": full(map[string]string{"query_wait_timeout": "1"}, 1),
		"role":     alone.String(),
	} {
		s := newServer(t, Config{URL: at})
		var only *pgx.Conn
		err := Retry(testContext(t), "opening the only session", func(ctx context.Context) (err error) { // the pooler's own start may have left a client
			if only, err = s.open(ctx, Use{}); err == nil {
				_, err = backendPID(ctx, only) // a pool gives it its session now
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.probeReset(testContext(t), only); err != nil {
			t.Errorf("no room for %s: %v", name, err)
		}
		closeQuietly(t.Context(), only)
	}
}

// sessionsOf opens n sessions as an application does and gives what is set in them.
func sessionsOf(t *testing.T, url string, n int) []string {
	t.Helper()
	var out []string
	for range n {
		conn, err := pgx.Connect(testContext(t), url+"&default_query_exec_mode=simple_protocol")
		if err != nil {
			t.Fatal(err)
		}
		defer closeQuietly(t.Context(), conn)
		out = append(out, show(t, conn, "SELECT current_setting('session_replication_role') || '/' || coalesce(current_setting('pgrunbook.mark', true), '') || '/' || coalesce(current_setting('pgrunbook.probe', true), '')"))
	}
	return out
}

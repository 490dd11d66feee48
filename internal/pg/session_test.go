package pg

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestEverySettingIsPinnedOnEveryMajor(t *testing.T) {
	for major := 10; major <= 18; major++ {
		if !testpg.Full() && !slices.Contains([]int{10, 15, 18}, major) {
			continue
		}
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			c := testpg.StartT(t, testpg.Options{Major: major})
			url := testpg.NewDB(t, c)
			admin := connect(t, newServer(t, Config{URL: url}), Use{})
			want := map[string]string{
				"client_encoding": "UTF8", "default_transaction_read_only": "off", "lock_timeout": "300",
				"synchronous_commit": "on", "session_replication_role": "replica",
			}
			for _, p := range pinned {
				want[strings.ToLower(p[0])] = p[1]
			}
			makeHostile(t, admin, want)
			s := newServer(t, Config{URL: url, Mark: "m", RunID: "r1"})
			conn := connect(t, s, Use{Name: "pass", Marked: true, Replica: true, LockTimeout: 300 * time.Millisecond})
			rows, err := conn.Query(testContext(t), "SELECT lower(name), setting FROM pg_settings")
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for rows.Next() {
				var name, value string
				if err := rows.Scan(&name, &value); err != nil {
					t.Fatal(err)
				}
				got[name] = value
			}
			if rows.Err() != nil {
				t.Fatal(rows.Err())
			}
			for name, value := range want {
				if is, known := got[name]; known && is != value {
					t.Errorf("%s is %q, want %q", name, is, value)
				}
			}
			if mark := show(t, conn, "SELECT current_setting('pgrunbook.mark')"); mark != "m" {
				t.Errorf("mark is %q", mark)
			}
			name := show(t, conn, "SELECT current_setting('application_name')")
			if !strings.HasPrefix(name, "pgrunbook r1 pass ~") {
				t.Errorf("application_name is %q", name)
			}
			checkIdentity(t, s, major)
		})
	}
}

func checkIdentity(t *testing.T, s *Server, major int) {
	t.Helper()
	conn := connect(t, s, Use{ReadOnly: true, AsyncCommit: true})
	id, err := s.Identity(testContext(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	if id.Major != major || id.SystemIdentifier == "" || id.Timeline != 1 || id.InRecovery || id.DatabaseOID == 0 || id.StartedAt.IsZero() || id.Address != s.Address() {
		t.Errorf("identity is %+v", id)
	}
	if got := show(t, conn, "SHOW synchronous_commit"); got != "off" {
		t.Errorf("synchronous_commit is %s", got)
	}
	if _, err := conn.Exec(testContext(t), "CREATE TABLE public.t (i int)"); SQLState(err) != "25006" {
		t.Errorf("a read-only session wrote: %v", err)
	}
	num, err := Version(testContext(t), conn)
	if err != nil || num/10000 != major {
		t.Errorf("version %d, %v", num, err)
	}
}

func TestIdentityWithoutRights(t *testing.T) {
	c := testpg.StartT(t, testpg.Options{Major: testMajor})
	admin := connect(t, newServer(t, Config{URL: c.ConnString()}), Use{})
	run(t, admin, "CREATE ROLE plain LOGIN", "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public",
		"REVOKE EXECUTE ON FUNCTION pg_control_checkpoint() FROM public", "REVOKE EXECUTE ON FUNCTION pg_walfile_name(pg_lsn) FROM public")
	s := newServer(t, Config{URL: c.URL("postgres", "plain")})
	id, err := s.Identity(testContext(t), connect(t, s, Use{}))
	if err != nil {
		t.Fatal(err)
	}
	if id.SystemIdentifier != "" || id.Timeline != 0 || id.DatabaseOID == 0 {
		t.Errorf("identity is %+v", id)
	}
}

func TestReplicaRoleFunction(t *testing.T) {
	c := testpg.Shared(t, testMajor)
	url := testpg.NewDB(t, c)
	admin := connect(t, newServer(t, Config{URL: url}), Use{})
	run(t, admin, "DROP ROLE IF EXISTS loader", "CREATE ROLE loader LOGIN",
		`CREATE FUNCTION public."Become"(text) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'SELECT pg_catalog.set_config(''session_replication_role'', $1, false)'`,
		"CREATE FUNCTION public.useless(text) RETURNS void LANGUAGE sql AS ''")
	db := show(t, admin, "SELECT current_database()::text")
	as := func(fn string) *Server {
		return newServer(t, Config{URL: c.URL(db, "loader"), ReplicaRoleFunction: fn})
	}
	if _, err := as("").Connect(testContext(t), Use{Replica: true}); SQLState(err) != "42501" {
		t.Errorf("without the function: %v", err)
	}
	if got := show(t, connect(t, as(`public."Become"`), Use{Replica: true}), "SHOW session_replication_role"); got != "replica" {
		t.Errorf("session_replication_role is %s", got)
	}
	if _, err := as("public.useless").Connect(testContext(t), Use{Replica: true}); err == nil || !strings.Contains(err.Error(), "left session_replication_role at origin") {
		t.Errorf("a function that does nothing: %v", err)
	}
	if _, err := newServer(t, Config{URL: url}).Connect(testContext(t), Use{Marked: true}); err == nil {
		t.Error("a marked session without a mark was opened")
	}
}

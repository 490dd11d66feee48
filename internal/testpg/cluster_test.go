package testpg_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// queryOne runs a query that returns one text value.
func queryOne(ctx context.Context, t *testing.T, url, sql string, args ...any) string {
	t.Helper()
	conn, err := testpg.Connect(ctx, url)
	if err != nil {
		t.Fatalf("connecting: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	var s string
	if err := conn.QueryRow(ctx, sql, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

func TestClustersOfSeveralMajors(t *testing.T) {
	for _, major := range []int{12, 15, 18} {
		ctx := testContext(t)
		start := time.Now()
		c := testpg.StartT(t, testpg.Options{Major: major})
		t.Logf("PostgreSQL %s of %s took %s to start", c.Version, c.BinDir, time.Since(start).Round(time.Millisecond))
		got := queryOne(ctx, t, c.ConnString(), "SHOW server_version_num")
		if !strings.HasPrefix(got, c.Version[:2]) || c.Major != major {
			t.Errorf("major %d: server says %s, Install says %s", major, got, c.Version)
		}
		if err := c.Exec(ctx, "postgres", "CREATE TABLE kept (a int)", "INSERT INTO kept VALUES (42)"); err != nil {
			t.Fatal(err)
		}
		if err := c.KillPostmaster(); err != nil {
			t.Fatal(err)
		}
		if c.Running() {
			t.Error("runs after KillPostmaster")
		}
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		if err := c.Stop(ctx, testpg.Immediate); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if got := queryOne(ctx, t, c.ConnString(), "SELECT a::text FROM kept"); got != "42" {
			t.Errorf("major %d: kept row is %q after kill, restart and immediate stop", major, got)
		}
	}
}

func TestCopiedClustersHaveTheirOwnIdentity(t *testing.T) {
	ctx := testContext(t)
	const query = "SELECT system_identifier::text FROM pg_control_system()"
	a, b := testpg.StartT(t, testpg.Options{Major: 18}), testpg.StartT(t, testpg.Options{Major: 18})
	if x, y := queryOne(ctx, t, a.ConnString(), query), queryOne(ctx, t, b.ConnString(), query); x == y {
		t.Errorf("both clusters have system identifier %s", x)
	}
}

func TestPauseKeepsConnectionsSilent(t *testing.T) {
	ctx := testContext(t)
	c := testpg.StartT(t, testpg.Options{Major: 18})
	conn, err := pgx.Connect(ctx, c.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if err := c.Pause(); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "SELECT 1")
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("a paused server answered: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("after Resume: %v", err)
	}
}

func TestScramAsksForThePassword(t *testing.T) {
	ctx := testContext(t)
	c := testpg.StartT(t, testpg.Options{Major: 18, Auth: "scram", Password: "open sesame"})
	if got := queryOne(ctx, t, c.ConnString(), "SELECT current_user::text"); got != "postgres" {
		t.Errorf("connected as %q", got)
	}
	_, err := pgx.Connect(ctx, strings.Replace(c.ConnString(), "sesame", "wheat", 1))
	if err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("a wrong password gave %v, want SQLSTATE 28P01", err)
	}
}

func TestSettingsReachTheServer(t *testing.T) {
	ctx := testContext(t)
	c := testpg.StartT(t, testpg.Options{Major: 15, Settings: map[string]string{"wal_level": "logical"}, Fsync: true, Dir: testpg.TempDir(t)})
	if got := queryOne(ctx, t, c.ConnString(), "SELECT current_setting('wal_level') || current_setting('fsync')"); got != "logicalon" {
		t.Errorf("wal_level and fsync are %q", got)
	}
	if err := c.Configure(ctx, map[string]string{"log_min_duration_statement": "123ms"}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for queryOne(ctx, t, c.ConnString(), "SHOW log_min_duration_statement") != "123ms" {
		if time.Now().After(deadline) {
			t.Fatal("the changed setting never arrived")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// recorder keeps what would fail a test.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func TestNewDBIsDroppedThoughInUse(t *testing.T) {
	ctx := testContext(t)
	for _, major := range []int{12, 18} {
		c := testpg.Shared(t, major)
		var conn *pgx.Conn
		r := &recorder{}
		t.Run("inner", func(t *testing.T) {
			r.TB = t
			url := testpg.NewDB(r, c)
			var err error
			if conn, err = pgx.Connect(ctx, url); err != nil {
				t.Fatal(err)
			}
			for _, sql := range []string{"CREATE TABLE p (a int)", "BEGIN", "INSERT INTO p VALUES (1)", "PREPARE TRANSACTION 'left''over'"} {
				if _, err := conn.Exec(ctx, sql); err != nil {
					t.Fatal(err)
				}
			}
		})
		if len(r.said) != 1 || !strings.Contains(r.said[0], "prepared transaction left'over") {
			t.Errorf("major %d: of what was left it said %q", major, r.said)
		}
		if _, err := conn.Exec(ctx, "SELECT 1"); err == nil {
			t.Error("the session outlived its database")
		}
		if got := queryOne(ctx, t, c.ConnString(), "SELECT count(*)::text FROM pg_database WHERE datname LIKE 't%inner'"); got != "0" {
			t.Errorf("major %d: %s test databases are left", major, got)
		}
	}
}

func TestStartNamesWhatIsMissing(t *testing.T) {
	_, err := testpg.Start(testContext(t), testpg.Options{Major: 7})
	if err == nil || !strings.Contains(err.Error(), "PGRUNBOOK_PG_BIN_DIRS") {
		t.Errorf("Start of major 7 gave %v, want a hint at PGRUNBOOK_PG_BIN_DIRS", err)
	}
	if errors.Is(err, context.Canceled) {
		t.Error("canceled")
	}
}

func TestStandbyFollowsAndIsPromoted(t *testing.T) {
	for _, major := range []int{12, 15, 18} {
		ctx := testContext(t)
		c := testpg.StartT(t, testpg.Options{Major: major})
		if err := c.Exec(ctx, "postgres", "CREATE TABLE followed (a int)"); err != nil {
			t.Fatal(err)
		}
		s, err := c.Standby(ctx, "other")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Remove(); err != nil {
				t.Error(err)
			}
		})
		if err := c.Exec(ctx, "postgres", "INSERT INTO followed VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(30 * time.Second)
		for queryOne(ctx, t, s.ConnString(), "SELECT count(*)::text FROM followed") != "1" {
			if time.Now().After(deadline) {
				t.Fatalf("major %d: the row never arrived:\n%s", major, s.Log())
			}
			time.Sleep(10 * time.Millisecond)
		}
		if got := queryOne(ctx, t, s.ConnString(), "SELECT pg_is_in_recovery()::text"); got != "true" {
			t.Errorf("major %d: the standby is not in recovery", major)
		}
		if err := s.Promote(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.Exec(ctx, "postgres", "INSERT INTO followed VALUES (2)"); err != nil {
			t.Errorf("major %d: a promoted standby takes no writes: %v", major, err)
		}
	}
}

package testpg_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// proxied is a connection through a proxy, a way around it, and a table t.
func proxied(t *testing.T) (p *testpg.Proxy, conn *pgx.Conn, directURL string) {
	t.Helper()
	ctx := testContext(t)
	c := testpg.Shared(t, 18)
	directURL = testpg.NewDB(t, c)
	p = testpg.ListenT(t, c)
	conn, err := pgx.Connect(ctx, p.URL(directURL))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	if _, err := conn.Exec(ctx, "CREATE TABLE t (a int)"); err != nil {
		t.Fatal(err)
	}
	return p, conn, directURL
}

func fired(t *testing.T, p *testpg.Proxy, f testpg.Fault) {
	t.Helper()
	if p.Fired(f) == 0 {
		t.Errorf("fault %q never fired", f)
	}
}

// answers says whether the server answers within the time.
func answers(ctx context.Context, conn *pgx.Conn, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err := conn.Exec(ctx, "SELECT 1")
	return err
}

func TestProxyReset(t *testing.T) {
	ctx := testContext(t)
	p, conn, direct := proxied(t)
	if n := p.Reset(); n != 1 {
		t.Errorf("reset %d connections, want 1", n)
	}
	if _, err := conn.Exec(ctx, "INSERT INTO t VALUES (1)"); err == nil {
		t.Error("a reset connection works")
	}
	fired(t, p, testpg.FaultReset)
	if got := queryOne(ctx, t, p.URL(direct), "SELECT 'new'"); got != "new" {
		t.Error("a new connection does not work")
	}
}

func TestProxyRefuse(t *testing.T) {
	ctx := testContext(t)
	p, conn, direct := proxied(t)
	p.Refuse(true)
	if c, err := pgx.Connect(ctx, p.URL(direct)); err == nil {
		_ = c.Close(ctx)
		t.Error("connected")
	}
	fired(t, p, testpg.FaultRefuse)
	if err := answers(ctx, conn, 10*time.Second); err != nil {
		t.Errorf("the old connection: %v", err)
	}
}

func TestProxyLosesCancelRequests(t *testing.T) {
	ctx := testContext(t)
	p, conn, direct := proxied(t)
	slept := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "SELECT pg_sleep(60)")
		slept <- err
	}()
	sleeping := func() string {
		return queryOne(ctx, t, direct, "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'")
	}
	for sleeping() != "1" {
		time.Sleep(time.Millisecond)
	}
	p.LoseCancels(true)
	_ = conn.PgConn().CancelRequest(ctx)
	if fired(t, p, testpg.FaultCancel); sleeping() != "1" {
		t.Error("the request came through")
	}
	p.Heal()
	_ = conn.PgConn().CancelRequest(ctx)
	var pgErr *pgconn.PgError
	if err := <-slept; !errors.As(err, &pgErr) || pgErr.Code != "57014" {
		t.Errorf("healed, the query ends with %v", err)
	}
}

func TestProxyBlackHoleHeals(t *testing.T) {
	ctx := testContext(t)
	p, conn, _ := proxied(t)
	p.BlackHole(true)
	done := make(chan error, 1)
	go func() { done <- answers(ctx, conn, time.Minute) }()
	select {
	case err := <-done:
		t.Errorf("an answer came out of a black hole: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	fired(t, p, testpg.FaultBlackHole)
	p.BlackHole(false)
	if err := <-done; err != nil {
		t.Errorf("after healing: %v", err)
	}
}

func TestProxyHalfOpenLetsRequestsThrough(t *testing.T) {
	ctx := testContext(t)
	p, conn, direct := proxied(t)
	p.HalfOpen(testpg.ToClient, true)
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := conn.Exec(short, "INSERT INTO t VALUES (1)"); err == nil {
		t.Error("an answer came through the dropped direction")
	}
	fired(t, p, testpg.FaultHalfOpen)
	if got := queryOne(ctx, t, direct, "SELECT count(*)::text FROM t"); got != "1" {
		t.Errorf("%s rows: the request did not reach the server", got)
	}
}

func TestProxyHalfOpenStopsRequests(t *testing.T) {
	ctx := testContext(t)
	p, conn, direct := proxied(t)
	p.HalfOpen(testpg.ToServer, true)
	if err := answers(ctx, conn, 200*time.Millisecond); err == nil {
		t.Error("answered")
	}
	fired(t, p, testpg.FaultHalfOpen)
	if got := queryOne(ctx, t, direct, "SELECT 'up'"); got != "up" {
		t.Error("the server is not reachable around the proxy")
	}
}

func TestProxySlowness(t *testing.T) {
	ctx := testContext(t)
	p, conn, _ := proxied(t)
	p.Latency(60 * time.Millisecond)
	start := time.Now()
	if err := answers(ctx, conn, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 120*time.Millisecond {
		t.Errorf("a round trip took %s with 60 ms each way", took)
	}
	fired(t, p, testpg.FaultLatency)
	p.Heal()
	p.Bandwidth(100_000)
	start = time.Now()
	if _, err := conn.Exec(ctx, "SELECT repeat('x', 100000)"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 500*time.Millisecond { // the last piece is not waited for
		t.Errorf("100 kB took %s at 100 kB/s", took)
	}
	fired(t, p, testpg.FaultBandwidth)
}

// A slow line gives a little all the time.
func TestProxyTrickles(t *testing.T) {
	ctx := testContext(t)
	p, conn, _ := proxied(t)
	p.Bandwidth(10_000)
	before := p.Fired(testpg.FaultBandwidth)
	if _, err := conn.Exec(ctx, "SELECT repeat('x', 20000)"); err != nil { // less than the proxy reads at once
		t.Fatal(err)
	}
	if n := p.Fired(testpg.FaultBandwidth) - before; n < 10 {
		t.Errorf("20 kB at 10 kB/s came in %d drops", n)
	}
}

func TestProxyCutsEverySoManyBytes(t *testing.T) {
	ctx := testContext(t)
	p, conn, direct := proxied(t)
	drawn := 0
	p.CutEvery(func() int64 { drawn++; return 50_000 })
	for range 2 { // the connection that was open, and a new one
		if _, err := conn.Exec(ctx, "SELECT repeat('x', 20000)"); err != nil {
			t.Fatalf("20 kB of 50: %v", err)
		}
		if _, err := conn.Exec(ctx, "SELECT repeat('x', 20000)"); err != nil {
			t.Fatalf("40 kB of 50: %v", err)
		}
		if _, err := conn.Exec(ctx, "SELECT repeat('x', 20000)"); err == nil {
			t.Error("60 kB of 50 came through")
		}
		var err error
		if conn, err = pgx.Connect(ctx, p.URL(direct)); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.Fired(testpg.FaultCutEvery); n != 2 || drawn < 3 { // what asks to cancel draws as well
		t.Errorf("fired %d times of %d draws, want 2 of 3 or more", n, drawn)
	}
	p.CutEvery(nil)
	if _, err := conn.Exec(ctx, "SELECT repeat('x', 100000)"); err != nil {
		t.Errorf("after it was lifted: %v", err)
	}
}

func TestProxyCutsInTheMiddleOfACopy(t *testing.T) {
	ctx := testContext(t)
	p, conn, direct := proxied(t)
	p.CutAfter(testpg.ToServer, 50_000)
	_, err := conn.PgConn().CopyFrom(ctx, strings.NewReader(strings.Repeat("1\n", 100_000)), "COPY t FROM STDIN")
	if err == nil {
		t.Error("the COPY got through")
	}
	if n := p.Fired(testpg.FaultCutBytes); n != 1 {
		t.Errorf("fired %d times, want once", n)
	}
	if got := queryOne(ctx, t, direct, "SELECT count(*)::text FROM t"); got != "0" {
		t.Errorf("%s rows of half a COPY are there", got)
	}
	p2, conn2, _ := proxied(t)
	p2.CutAfter(testpg.ToClient, 50_000)
	if _, err := conn2.Exec(ctx, "SELECT repeat('x', 1000000)"); err == nil {
		t.Error("a megabyte came through")
	}
	fired(t, p2, testpg.FaultCutBytes)
}

func TestProxyCutsCommits(t *testing.T) {
	cases := []struct {
		name string
		how  testpg.CommitCut
		want string
	}{
		{"not sent", testpg.CommitNotSent, "1"},
		{"unanswered", testpg.CommitUnanswered, "2"},
		{"silent", testpg.CommitSilent, "2"},
	}
	for _, tc := range cases {
		for _, extended := range []bool{false, true} {
			ctx := testContext(t)
			p, conn, direct := proxied(t)
			p.CutCommit(tc.how, 1) // the first commit passes
			commit := func(ctx context.Context) error {
				if extended {
					return conn.PgConn().ExecParams(ctx, " commit", nil, nil, nil, nil).Read().Err
				}
				_, err := conn.Exec(ctx, "COMMIT")
				return err
			}
			for _, sql := range []string{"BEGIN", "INSERT INTO t VALUES (1)", "COMMIT", "BEGIN", "INSERT INTO t VALUES (2)"} {
				if _, err := conn.Exec(ctx, sql); err != nil {
					t.Fatalf("%s: %s: %v", tc.name, sql, err)
				}
			}
			short, cancel := context.WithTimeout(ctx, 2*time.Second)
			err := commit(short)
			cancel()
			var pgErr *pgconn.PgError
			if err == nil || errors.As(err, &pgErr) {
				t.Errorf("%s, extended %t: the commit gave %v, want a broken connection", tc.name, extended, err)
			}
			if n := p.Fired(testpg.FaultCommit); n != 1 {
				t.Errorf("%s, extended %t: fired %d times, want once", tc.name, extended, n)
			}
			if got := queryOne(ctx, t, direct, "SELECT count(*)::text FROM t"); got != tc.want {
				t.Errorf("%s, extended %t: %s rows, want %s", tc.name, extended, got, tc.want)
			}
		}
	}
}

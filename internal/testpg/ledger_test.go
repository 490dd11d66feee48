package testpg_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func newLedger(t *testing.T, url string) *testpg.Ledger {
	t.Helper()
	l := testpg.NewLedger(testpg.LedgerOptions{TxTimeout: 2 * time.Second})
	if err := l.Setup(testContext(t), url); err != nil {
		t.Fatal(err)
	}
	return l
}

// runLedger starts writers and returns a function that ends them.
func runLedger(t *testing.T, l *testpg.Ledger, clients int, urls ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, urls, clients) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// acknowledgedReaches waits for commits.
func acknowledgedReaches(t *testing.T, l *testpg.Ledger, server, n int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		s := l.Stats()
		if len(s.ByServer) > server && s.ByServer[server] >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("server %d never acknowledged %d commits: %+v", server, n, s)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func check(t *testing.T, l *testpg.Ledger, url string) testpg.Report {
	t.Helper()
	r, err := l.Check(testContext(t), url)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLedgerIsCleanWithoutFaults(t *testing.T) {
	url := testpg.NewDB(t, testpg.Shared(t, 18))
	l := newLedger(t, url)
	stop := runLedger(t, l, 4, url)
	acknowledgedReaches(t, l, 0, 200)
	stop()
	r := check(t, l, url)
	if !r.OK() || r.Unknown != 0 || r.Refused == 0 || r.Acknowledged < 200 || r.LongestGap == 0 {
		t.Errorf("report: %s", r)
	}
}

func TestLedgerFindsPlantedDamage(t *testing.T) {
	cases := []struct {
		name, sql string
		found     func(testpg.Report) bool
	}{
		{"a lost commit", "DELETE FROM ledger.entry WHERE ctid = (SELECT min(ctid) FROM ledger.entry)", func(r testpg.Report) bool { return r.LostCount == 1 && len(r.Lost) == 1 && len(r.Unbalanced) > 0 }},
		{"a phantom", "INSERT INTO ledger.entry SELECT client, 9, 1, 1, 1 FROM ledger.entry LIMIT 1", func(r testpg.Report) bool { return r.PhantomCount == 1 && len(r.Phantom) == 1 }},
		{"a stranger", "INSERT INTO ledger.entry VALUES ('nobody', 0, 1, 1, 1)", func(r testpg.Report) bool { return r.PhantomCount == 1 }},
		{"half a transaction", "UPDATE ledger.account SET balance = balance + 5 WHERE id = 7", func(r testpg.Report) bool { return r.Sum == r.WantSum+5 && len(r.Unbalanced) == 1 }},
		{"a shifted balance", "UPDATE ledger.account SET balance = balance + CASE id WHEN 7 THEN 5 ELSE -5 END WHERE id IN (7, 8)", func(r testpg.Report) bool { return r.Sum == r.WantSum && len(r.Unbalanced) == 2 }},
		{"a row twice", "ALTER TABLE ledger.entry DROP CONSTRAINT entry_pkey; INSERT INTO ledger.entry SELECT client, seq, 1, 1, 1 FROM ledger.entry LIMIT 1", func(r testpg.Report) bool { return r.DoubledCount == 1 }},
	}
	url := testpg.NewDB(t, testpg.Shared(t, 18))
	l := newLedger(t, url)
	stop := runLedger(t, l, 2, url)
	acknowledgedReaches(t, l, 0, 50)
	stop()
	ctx := testContext(t)
	for _, tc := range cases {
		copied := testpg.NewDB(t, testpg.Shared(t, 18))
		if err := copyLedger(ctx, l, url, copied); err != nil {
			t.Fatal(err)
		}
		if r := check(t, l, copied); !r.OK() {
			t.Fatalf("%s: the copy is damaged: %s", tc.name, r)
		}
		execAll(ctx, t, copied, tc.sql)
		if r := check(t, l, copied); r.OK() || !tc.found(r) {
			t.Errorf("%s: not found: %s", tc.name, r)
		}
	}
}

// copyLedger moves both tables through this process.
func copyLedger(ctx context.Context, l *testpg.Ledger, from, to string) error {
	if err := l.Setup(ctx, to); err != nil {
		return err
	}
	src, err := pgx.Connect(ctx, from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close(ctx) }()
	dst, err := pgx.Connect(ctx, to)
	if err != nil {
		return err
	}
	defer func() { _ = dst.Close(ctx) }()
	if _, err := dst.Exec(ctx, "TRUNCATE ledger.account, ledger.entry"); err != nil {
		return err
	}
	for _, table := range []string{"ledger.account", "ledger.entry"} {
		var b strings.Builder
		if _, err := src.PgConn().CopyTo(ctx, &b, "COPY "+table+" TO STDOUT"); err != nil {
			return err
		}
		if _, err := dst.PgConn().CopyFrom(ctx, strings.NewReader(b.String()), "COPY "+table+" FROM STDIN"); err != nil {
			return err
		}
	}
	return nil
}

// execAll runs SQL text, several statements at once if need be.
func execAll(ctx context.Context, t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestLedgerCountsCutCommitsAsUnknown(t *testing.T) {
	c := testpg.Shared(t, 18)
	url := testpg.NewDB(t, c)
	p := testpg.ListenT(t, c)
	l := newLedger(t, url)
	stop := runLedger(t, l, 3, p.URL(url))
	acknowledgedReaches(t, l, 0, 30)
	p.CutCommit(testpg.CommitUnanswered, 0)
	acknowledgedReaches(t, l, 0, 60)
	p.CutCommit(testpg.CommitNotSent, 0)
	acknowledgedReaches(t, l, 0, 90)
	stop()
	if n := p.Fired(testpg.FaultCommit); n != 2 {
		t.Errorf("commits cut: %d, want 2", n)
	}
	if r := check(t, l, url); !r.OK() || r.Unknown != 2 || r.UnknownPresent != 1 {
		t.Errorf("want 2 unknown, 1 of them there: %s", r)
	}
}

func TestLedgerMovesToTheOtherServer(t *testing.T) {
	ctx := testContext(t)
	a, b := testpg.StartT(t, testpg.Options{Major: 15}), testpg.Shared(t, 18)
	first, second := testpg.NewDB(t, a), testpg.NewDB(t, b)
	l := newLedger(t, first)
	if err := l.Setup(ctx, second); err != nil {
		t.Fatal(err)
	}
	stop := runLedger(t, l, 4, first, second)
	acknowledgedReaches(t, l, 0, 20)
	if err := a.Exec(ctx, "postgres", "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	acknowledgedReaches(t, l, 1, 20)
	stop()
	s := l.Stats()
	if s.Errors["25006"] == 0 {
		t.Errorf("no client was refused with 25006: %v", s.Errors)
	}
	if r := check(t, l, second); r.LostCount < 20 {
		t.Errorf("commits on the first server are not missed on the second: %s", r)
	}
	acked := l.Stats().ByServer[1]
	stop = runLedger(t, l, 4, second, first)
	if err := a.Stop(ctx, testpg.Fast); err != nil {
		t.Fatal(err)
	}
	acknowledgedReaches(t, l, 0, acked+20)
	stop()
}

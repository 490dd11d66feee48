package demo

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestMain(m *testing.M) { testpg.Main(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestCompareNamesWhatDiffers: a row that is another one on the target, and a table that only the
// target has, fail the demo by name, whatever the clients write there meanwhile.
func TestCompareNamesWhatDiffers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cluster := testpg.Shared(t, 15)
	var out bytes.Buffer
	s := &stage{o: Options{Out: &out}, sourceURL: testpg.NewDB(t, cluster), targetURL: testpg.NewDB(t, cluster)}
	must(t, script(ctx, s.sourceURL, `CREATE TABLE item (id int PRIMARY KEY, net int); INSERT INTO item VALUES (1, 10), (2, 20);
		DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`))
	must(t, script(ctx, s.targetURL, "CREATE TABLE item (id int PRIMARY KEY, net int); INSERT INTO item VALUES (1, 10), (2, 21); CREATE TABLE extra AS SELECT 7 AS n"))
	var err error
	s.turnstile, err = testpg.NewTurnstile(s.targetURL, s.sourceURL, "UPDATE item SET net = net WHERE id = 1", false)
	must(t, err)
	defer s.turnstile.Close()
	client, err := pgx.Connect(ctx, s.turnstile.URL()) // the first one that gets through is behind the snapshot
	must(t, err)
	defer func() { _ = client.Close(context.Background()) }()
	_, err = client.Exec(ctx, "INSERT INTO item VALUES (3, 30)")
	must(t, err)

	result, err := s.compare(ctx)
	must(t, err)
	result, err = s.verdict(result, testpg.Report{})
	if !errors.Is(err, ErrDifferent) || !strings.HasPrefix(result.String(), "demo: failed,") {
		t.Errorf("the verdict is %v, %s", err, result)
	}
	for _, want := range []string{"differs: public.item: ", "21", "differs: public.extra"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not said:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "30") {
		t.Errorf("what a client wrote later counts as a difference:\n%s", out.String())
	}
}

func TestVerdictOnTheLedger(t *testing.T) {
	for name, c := range map[string]struct {
		report testpg.Report
		said   string // "": all is well
	}{
		"all there": {testpg.Report{}, ""},
		"lost":      {testpg.Report{LostCount: 1, Lost: []string{"c1/17"}}, "c1/17"},
		"invented":  {testpg.Report{PhantomCount: 1, Phantom: []string{"c2/9"}}, "c2/9"},
		"torn":      {testpg.Report{Sum: 1}, "1"},
	} {
		var out bytes.Buffer
		_, err := (&stage{o: Options{Out: &out}}).verdict(Result{}, c.report)
		if errors.Is(err, ErrDifferent) != (c.said != "") || !strings.Contains(out.String(), c.said) {
			t.Errorf("%s: %v\n%s", name, err, out.String())
		}
	}
}

func TestLookAroundSaysHow(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	var out bytes.Buffer
	(&stage{o: Options{Out: &out}, dir: "/tmp/d", sourceURL: "postgres://s/shop", targetURL: "postgres://t/shop"}).lookAround(ended, Result{Acknowledged: 7})
	for _, want := range []string{"demo: ok, 7 acknowledged transactions, 0 lost", "until you press Ctrl-C", "psql 'postgres://s/shop'", "psql 'postgres://t/shop'", "TARGET_URL='postgres://t/shop' SOURCE_URL='postgres://s/shop' pgrunbook status /tmp/d/demo.runbook.hcl"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not said:\n%s", want, out.String())
		}
	}
}

package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// F14: a program's connection has our keepalives too, or a silent network would keep a dump waiting
// for the two hours that the system grants. The kernel's own table tells when it asks next.
func TestF14ProgramsNoticeASilentNetwork(t *testing.T) {
	tl := tools(t, 15, 18)
	src := server(t, 15, "source")
	app, eyes := connect(t, src), connect(t, src)
	run(t, app, "CREATE TABLE public.t (id int)")
	run(t, app, "BEGIN; LOCK TABLE public.t")
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := Dump(ctx, tl, src, Options{Scope: &scope.Scope{}})
		done <- err
	}()
	const dumping = `SELECT coalesce(max(client_port), 0) FROM pg_catalog.pg_stat_activity
		WHERE datname = current_database() AND application_name LIKE '%dump%' AND wait_event_type = 'Lock'`
	var port int
	var next time.Duration
	for next == 0 {
		select {
		case err := <-done:
			t.Fatalf("the dump ended: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if err := eyes.QueryRow(ctx, dumping).Scan(&port); err != nil {
			t.Fatal(err)
		}
		if port != 0 {
			next = nextKeepalive(t, port, testpg.Shared(t, 15).Port)
		}
	}
	if next > 10*time.Second {
		t.Errorf("the dump's connection asks whether the server is there after %s", next)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the dump ended with %v", err)
	}
	run(t, app, "ROLLBACK")
}

// nextKeepalive reads a connection's timer (proc(5), /proc/net/tcp); 0 where it runs for something else.
func nextKeepalive(t *testing.T, local, remote int) time.Duration {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const perSecond = 100 // USER_HZ
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", local)) || !strings.HasSuffix(f[2], fmt.Sprintf(":%04X", remote)) {
			continue
		}
		kind, when, _ := strings.Cut(f[5], ":")
		ticks, err := strconv.ParseInt(when, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		if kind == "02" {
			return time.Duration(ticks) * time.Second / perSecond
		}
	}
	return 0
}

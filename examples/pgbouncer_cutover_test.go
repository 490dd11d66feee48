package examples_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// throughPooler is pgbench's TPC-B behind the pooler, until end; its alarm is how -T ends it.
func throughPooler(t *testing.T, url string) (end func()) {
	t.Helper()
	path, err := testpg.PgbenchPath(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, "-n", "-c", "4", "-T", "1800", "-l", url)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		time.Sleep(time.Second)
		if err := cmd.Process.Signal(syscall.SIGALRM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "number of failed transactions: 0 (0.000%)") || strings.Contains(out.String(), "aborted") {
			t.Fatalf("pgbench: %v\n%s", err, &out)
		}
		t.Logf("no transaction failed, longest latency %s", longestLatency(t, dir))
	}
}

// longestLatency reads pgbench's log of single transactions: the third field is in microseconds.
func longestLatency(t *testing.T, dir string) (longest time.Duration) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "pgbench_log.*"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("pgbench left no log: %v", err)
	}
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			us, err := strconv.ParseInt(strings.Fields(line)[2], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			longest = max(longest, time.Duration(us)*time.Microsecond)
		}
	}
	return longest
}

// TestPgbouncerCutover walks the example's commands with pgbench at full speed behind the pooler,
// there and back: the writes are where they must be, and not one transaction fails.
func TestPgbouncerCutover(t *testing.T) {
	from, to, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	source, target := testpg.StartT(t, testpg.Options{Major: from}), testpg.StartT(t, testpg.Options{Major: to})
	for _, c := range []*testpg.Cluster{source, target} {
		script(t, c.ConnString(), "CREATE DATABASE bank")
	}
	sourceURL, targetURL := testpg.Adopt(t, source, "bank"), testpg.Adopt(t, target, "bank")
	initPgbench(t, sourceURL, "1")
	script(t, sourceURL, "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY")
	bouncer := testpg.StartBouncerT(t, testpg.BouncerOptions{Databases: map[string]string{"bank": sourceURL}})
	place, err := testpg.BouncerEntry("", targetURL)
	if err != nil {
		t.Fatal(err)
	}
	p := newProgram(t, "pgbouncer-cutover", "SOURCE_URL="+sourceURL, "TARGET_URL="+targetURL, "POOLER_ADMIN="+bouncer.Console(testpg.BouncerAdmin))
	vars := []string{"--var", "pooler_file=" + bouncer.DatabasesFile, "--var", "new_place=" + strings.TrimPrefix(place, " = ")}
	run := func(args ...string) string {
		t.Helper()
		return p.want(0, append(append(args, "RUNBOOK"), vars...)...)
	}
	run("plan")
	run("apply", "--auto-approve", "--until", "arm")
	end := throughPooler(t, bouncer.URL("bank", "postgres"))
	run("rehearse")
	run("apply")
	const history = "SELECT count(*)::text FROM pgbench_history"
	closed := query(t, sourceURL, history)
	end()
	if now := query(t, sourceURL, history); now != closed || query(t, targetURL, history) == closed || closed == "0" {
		t.Errorf("%s transactions at the old server when it was closed, %s now, %s at the new one", closed, now, query(t, targetURL, history))
	}
	refused(t, sourceURL, "UPDATE pgbench_tellers SET tbalance = 0")
	if out := run("status", "--certificate"); !strings.Contains(strings.Join(strings.Fields(out), " "), "poolers their clients waited ") {
		t.Errorf("the certificate does not speak of the poolers:\n%s", out)
	}

	end = throughPooler(t, bouncer.URL("bank", "postgres"))
	run("rollback", "--auto-approve")
	end()
	refused(t, targetURL, "UPDATE pgbench_tellers SET tbalance = 0")
	run("apply")
	same(t, sourceURL, targetURL)
	balanced := "SELECT ((SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history))::text"
	if query(t, targetURL, balanced) != "true" {
		t.Error("accounts and history disagree: a transaction was torn")
	}
	run("finish", "--auto-approve", "--now")
}

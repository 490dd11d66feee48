package docs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// begin starts the program; a process that the test leaves is killed.
func (p *pair) begin(points string, args ...string) (cmd *exec.Cmd, said func() string) {
	p.t.Helper()
	out, err := os.CreateTemp(p.dir, "said")
	if err != nil {
		p.t.Fatal(err)
	}
	cmd = exec.Command(p.program, args...)
	cmd.Dir, cmd.Env = p.dir, append(p.env, "PGRUNBOOK_FAILPOINTS="+points)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = out.Close()
		p.endGuardians() // they would wait for servers that are gone
	})
	return cmd, func() string { return read(p.t, out.Name()) }
}

// endGuardians ends the processes that run in the pair's folder.
func (p *pair) endGuardians() {
	p.t.Helper()
	folders, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		p.t.Error(err)
	}
	for _, folder := range folders {
		if at, err := os.Readlink(folder); err != nil || at != p.dir { // it may have ended
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(folder)))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			p.t.Error(err)
		}
	}
}

// until waits for something.
func (p *pair) until(what string, is func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// stopped leaves a runner that stands still in the hold: it has lost that, and keeps its other sessions.
func stopped(t *testing.T, p *pair, l *lines) {
	const sessions = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook%'"
	trace := filepath.Join(p.dir, "trace")
	p.env = append(p.env, "PGRUNBOOK_FAILPOINT_TRACE="+trace)
	p.begin("freeze.held@1:stop", "apply", p.file)
	p.env = p.env[:len(p.env)-1]
	p.until("the runner holds writes", func() bool {
		text, err := os.ReadFile(trace)
		return err == nil && strings.Contains(string(text), "freeze.held")
	})
	if got := p.list(p.sourceURL, sessions); slices.Equal(got, []string{"0"}) {
		t.Error("the runner that stands still has no session on the source")
	}
	p.psql(p.sourceURL, l.of(t, "end-runner"))
	p.psql(p.targetURL, l.of(t, "end-runner"))
	p.until("the runner's sessions are gone", func() bool { return slices.Equal(p.list(p.sourceURL, sessions), []string{"0"}) })
	p.endGuardians() // this one would end a later flip of the same run whose own guardian dies
}

// standby lets the first COMMIT of the second cutover wait for a standby that is not there.
func standby(t *testing.T, p *pair, l *lines) {
	decided := filepath.Join(p.dir, "decided")
	cmd, said := p.begin("freeze.decided@1:wait="+decided, "apply", p.file, "--auto-approve", "--approve", "go", "--by", "anna")
	p.until("the flip is decided", func() bool { _, err := os.Stat(decided + ".here"); return err == nil })
	for _, sql := range []string{"ALTER SYSTEM SET synchronous_standby_names = 'gone'", "SELECT pg_reload_conf()"} {
		p.sql(p.sourceURL, sql)
	}
	p.until("the setting is there", func() bool {
		return slices.Equal(p.list(p.sourceURL, "SHOW synchronous_standby_names"), []string{"gone"})
	})
	if err := os.WriteFile(decided, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.until("the runner says that it does not know", func() bool { return strings.Contains(said(), "looking at both gates") })
	p.refuses(p.targetURL, "25006", "while the COMMIT waits, target")
	p.psql(p.sourceURL, l.of(t, "no-standby"))
	if err := cmd.Wait(); err != nil {
		t.Errorf("apply ended with %v once no COMMIT waited any more:\n%s", err, said())
	}
}

// again dies between the COMMITs of later cutovers: a rollback has left the target read-only by default.
func again(t *testing.T, p *pair, l *lines) {
	for _, name := range []string{"finish-flip", "finish-flip-alone"} {
		if got := p.list(p.targetURL, "SHOW default_transaction_read_only"); !slices.Equal(got, []string{"on"}) {
			t.Errorf("after a rollback the target's default_transaction_read_only is %s", got)
		}
		p.psql(p.targetURL, l.of(t, "pause"))
		p.want(0, "unpause", p.file)
		p.psql(p.targetURL, l.of(t, "approve"))
		p.dies("freeze.between@1:kill;freeze.resolving@1:kill", "--auto-approve")
		p.gates(l, "closed", "closed")
		opens := l.of(t, name)
		if name == "finish-flip" { // whoever types it does not own the database
			opens, _, _ = strings.Cut(opens, "DO $$")
		}
		p.psql(p.targetURL, opens)
		p.gates(l, "closed", "open")
		if name != "finish-flip" {
			p.takes(p.targetURL, "opened by "+name+" in a later cutover")
		}
		p.want(0, "apply", p.file)
		p.takes(p.targetURL, "after "+name+" and apply in a later cutover")
		if got := p.list(p.targetURL, "SELECT count(*)::text FROM pgrunbook.side WHERE closed IS NOT NULL"); !slices.Equal(got, []string{"0"}) {
			t.Errorf("after %s and apply the target's gate says that a flip closed it", name)
		}
		p.want(0, "rollback", p.file, "--auto-approve")
	}
}

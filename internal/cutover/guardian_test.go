package cutover_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A boundary of the freeze and the side that takes writes when the runner ends there.
var boundaries = []struct {
	point string
	moved bool // the first COMMIT has happened
	short bool // in the short form too: TestEveryBoundary kills at each
}{
	{"freeze.prepared", false, false},
	{"freeze.held", false, true},
	{"freeze.passed", false, false},
	{"freeze.decided", false, false},
	{"freeze.between", true, true},
	{"freeze.flipped", true, true},
	{"freeze.owned", true, false},
}

// TestF02KilledInTheFreeze kills the runner at each boundary, there and back. No second command is
// given: the application writes on, on exactly one side. Then the same command finishes.
func TestF02KilledInTheFreeze(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.want(0, "apply", "-y", "--until", "arm")
	for _, b := range boundaries {
		if !soak() && !b.short {
			continue
		}
		for _, way := range []struct {
			args     []string
			from, to int
		}{{[]string{"apply", "-y"}, onSource, onTarget}, {[]string{"rollback", "-y"}, onTarget, onSource}} {
			r.killed(b.point, way.args, way.from, way.to, b.moved)
			if b.point == "freeze.between" {
				r.endedByAnother()
			}
			r.want(0, way.args...)
			r.writing(way.to)
			r.same()
		}
	}
	r.nap("freeze.decided", onTarget, "apply", "-y")
	r.nap("freeze.between", onSource, "rollback", "-y")
	r.unheard("apply", "-y")
	r.same()
	r.shut()
	r.balance(r.target)
}

// shut closes the side that a cutover opened, by hand and before its step is done: the same command does not
// open it again.
func (r *rig) shut() {
	r.t.Helper()
	r.want(0, "rollback", "-y")
	p := r.start("freeze.after@1:kill", "apply", "-y")
	if o := p.end(); o.signal != syscall.SIGKILL {
		r.t.Fatalf("apply did not die after the flip: exit code %d\n%s", o.code, o.text)
	}
	r.writing(onTarget)
	const flag = "SET default_transaction_read_only = off; BEGIN; SELECT pg_advisory_xact_lock(gate_key) FROM pgrunbook.side; ALTER SEQUENCE pgrunbook.gate_flag RESTART %d; COMMIT"
	r.sql(r.target, fmt.Sprintf(flag, 1))
	r.says(r.want(15, "apply", "-y"), "somebody closed it by hand", "open the target and no other")
	r.refused(r.target, "25006")
	r.sql(r.target, fmt.Sprintf(flag, 0))
	r.want(0, "apply", "-y")
	r.writing(onTarget)
}

// endedByAnother demands a certificate with all times of a flip that its runner did not live to see.
func (r *rig) endedByAnother() {
	r.t.Helper()
	var cert struct {
		Began, Flipped time.Time
		Blocked        float64 `json:"write_block_seconds"`
		Decided        float64 `json:"decided_seconds"`
		ByAnother      bool    `json:"ended_by_another_process"`
	}
	r.must(json.Unmarshal([]byte(r.stdout("status", "--certificate", "--json")), &cert))
	if !cert.ByAnother || cert.Decided <= 0 || cert.Blocked <= cert.Decided || cert.Flipped.Before(cert.Began) {
		r.t.Errorf("the certificate of a flip that the guardian ended: %+v", cert)
	}
	r.says(r.want(0, "status", "--certificate"), "flipped 20", "by another process", "write block ")
}

// nap stops the runner for a moment, long enough for its guardian to look: it wakes up to find its hold
// still there, or the flip ended, and brings the command to its end.
func (r *rig) nap(point string, to int, args ...string) {
	r.t.Helper()
	p := r.start(point+"@1:stop", args...)
	r.eventually("stopped at "+point, func() bool { return p.state() == "T" })
	time.Sleep(500 * time.Millisecond)
	p.signal(syscall.SIGCONT)
	if o := p.end(); o.code != 0 || p.passed(point) == 0 {
		r.t.Errorf("%s, stopped for a moment at %s, ended with %d %v\n%s", args[0], point, o.code, o.signal, o.text)
	}
	r.t.Logf("%s, stopped for a moment at %s: the guardian opened a side %d times", args[0], point, p.passed("freeze.resolved"))
	r.writing(to)
}

// unheard kills the runner between the COMMITs when nobody reads what it and its guardian say, as when
// a connection to its machine breaks: the guardian acts all the same.
func (r *rig) unheard(args ...string) {
	r.t.Helper()
	gone := filepath.Join(r.dir, "unheard")
	p := r.prepare("freeze.between@1:wait="+gone, args...)
	terminal, err := os.CreateTemp(r.dir, "terminal")
	r.must(err)
	read, write, err := os.Pipe()
	r.must(err)
	p.cmd.Stderr = write
	r.must(p.cmd.Start())
	r.must(write.Close())
	go func() { _, _ = io.Copy(terminal, read); _ = terminal.Close() }()
	r.eventually("arrived between the COMMITs", func() bool { _, err := os.Stat(gone + ".here"); return err == nil })
	r.must(read.Close())
	p.signal(syscall.SIGKILL)
	_ = p.cmd.Wait()
	r.writing(onTarget)
	if p.passed("freeze.resolved") != 1 {
		r.t.Error("the guardian opened nothing, and yet somebody did")
	}
	r.want(0, args...)
}

func cond(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

// killed runs a command that dies at a boundary, and looks where the application goes on.
func (r *rig) killed(point string, args []string, from, to int, moved bool) {
	r.t.Helper()
	p := r.start(point+"@1:kill", args...)
	if o := p.end(); o.signal != syscall.SIGKILL || p.passed(point) != 1 {
		r.t.Fatalf("%s did not die at %s: exit code %d, %v\n%s", args[0], point, o.code, o.signal, o.text)
	}
	side := from
	if moved {
		side = to
	}
	r.writing(side)
	r.eventually("the guardian's word", func() bool { return strings.Contains(p.said(), "run the same command again") })
	if point == "freeze.between" && p.passed("freeze.resolving") == 0 {
		r.t.Errorf("%s killed at %s: the guardian opened nothing, and yet somebody did", args[0], point)
	}
	r.says(p.said(), "guardian: the runner has died", fmt.Sprintf("guardian: the %s takes writes", cond(side == onSource, "source", "target")))
}

// state is a process's letter in /proc: T is stopped.
func (p *process) state() string { return stateOf(p.cmd.Process.Pid) }

func stateOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "Z"
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return rest[:1]
}

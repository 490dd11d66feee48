package cutover_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// A boundary of the freeze and the side that takes writes when the runner ends there.
var boundaries = []struct {
	point string
	moved bool // the first COMMIT has happened
}{
	{"freeze.prepared", false},
	{"freeze.held", false},
	{"freeze.passed", false},
	{"freeze.decided", false},
	{"freeze.between", true},
	{"freeze.flipped", true},
	{"freeze.owned", true},
}

// TestF02KilledInTheFreeze kills the runner at each boundary, there and back. No second command is
// given: the application writes on, on exactly one side. Then the same command finishes.
func TestF02KilledInTheFreeze(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.want(0, "apply", "-y", "--until", "arm")
	for _, way := range []struct {
		args     []string
		from, to int
	}{{[]string{"apply", "-y"}, onSource, onTarget}, {[]string{"rollback", "-y"}, onTarget, onSource}} {
		for _, b := range boundaries {
			r.killed(b.point, way.args, way.from, way.to, b.moved)
			r.want(0, way.args...)
			r.writing(way.to)
			r.same()
			if b != boundaries[len(boundaries)-1] || way.from == onTarget {
				r.want(0, cond(way.from == onSource, "rollback", "apply"), "-y")
				r.writing(way.from)
			}
		}
	}
	r.balance(r.target)
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

// TestStoppedInTheFreeze stops the runner between the two COMMITs, and with the hold in hand: the
// application writes on, on one side. The runner wakes up later and does no harm.
func TestStoppedInTheFreeze(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.want(0, "apply", "-y", "--until", "arm")
	for _, point := range []string{"freeze.held", "freeze.decided", "freeze.between"} {
		p := r.start(point+"@1:stop", "apply", "-y")
		r.eventually("stopped at "+point, func() bool { return p.passed(point) == 1 && p.state() == "T" })
		side := onSource
		if point == "freeze.between" {
			side = onTarget
		}
		r.writing(side)
		r.eventually("the guardian's word", func() bool { return strings.Contains(p.said(), "run the same command again") })
		r.says(p.said(), "guardian: the runner has fallen silent")
		if opened := p.passed("freeze.resolving"); (side == onTarget) != (opened == 1) {
			t.Errorf("stopped at %s: the guardian opened a side %d times", point, opened)
		}
		if p.state() != "T" {
			t.Fatal("the runner woke up by itself")
		}
		r.writing(side)
		p.signal(syscall.SIGCONT)
		o := p.end()
		if o.signal != 0 || o.code != 0 && o.code != 1 && o.code != 16 {
			t.Errorf("woken up at %s it ended with %d\n%s", point, o.code, o.text)
		}
		t.Logf("woken up at %s it ended with %d", point, o.code)
		r.want(0, "apply", "-y")
		r.writing(onTarget)
		r.same()
		r.want(0, "rollback", "-y")
		r.writing(onSource)
	}
	r.balance(r.source)
}

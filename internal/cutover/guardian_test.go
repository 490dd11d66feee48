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
			r.want(0, way.args...)
			r.writing(way.to)
			r.same()
		}
	}
	r.balance(r.source)
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

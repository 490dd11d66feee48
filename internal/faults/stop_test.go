package faults_test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stops are where a runner is stopped like a machine that hangs: its sessions stay open, its
// backends wait, and one day it goes on.
var stops = []string{"load.marked@5", "pass.marked", "freeze.held", "freeze.passed", "freeze.decided", "freeze.between", "freeze.flipped"}

// TestF03StoppedRunner stops the runner at a boundary. The application writes on meanwhile, a second
// runner is refused with the name of the first, but for one in its switch, and takes over where it is told to. The zombie
// that wakes up does no harm.
func TestF03StoppedRunner(t *testing.T) {
	for _, point := range stops {
		if !soak() && point != "pass.marked" && point != "freeze.decided" && point != "freeze.between" {
			continue
		}
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			zombie := r.start(point+":stop", applyArgs...)
			name, _, _ := strings.Cut(point, "@")
			zombie.passed(name, 1)
			r.stopped(zombie)
			time.Sleep(cond(soak(), 10*time.Second, 5*time.Second))
			r.writing(cond(name == "freeze.between" || name == "freeze.flipped", 1, 0)) // nobody is blocked by a runner that hangs
			// In its switch its guardian has taken the run from it, to undo that.
			if name != "freeze.decided" {
				r.refused(zombie)
			}
			if o := r.run("", "apply", "--auto-approve", "--steal-lock"); o.code != 0 {
				r.acceptable(o)
				r.finally(applyArgs...)
			}
			zombie.signal(syscall.SIGCONT)
			if o := zombie.end(); o.signal != 0 || o.code == 0 && name != "freeze.flipped" {
				t.Errorf("the runner that was replaced: %s\n%s", o, o.text)
			}
			r.moved(0, 1)
			r.writing(1)
			r.balance(r.target)
		})
	}
}

// TestF03StealFromALiveRunner takes the run from a runner that is at work, loading, in a pass or with writes held: that
// one ends by itself, and the thief gets the migration done. Nobody is killed or stopped before.
func TestF03StealFromALiveRunner(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, c := range []struct {
		point string
		thief []string
	}{
		{"load.claimed@3", untilCopy},
		{"pass.staged@1", untilCatchUp},
		{"freeze.held@1", applyArgs},
	} {
		name, n, _ := strings.Cut(c.point, "@")
		hits, err := strconv.Atoi(n)
		r.must(err)
		first := r.start(c.point+":sleep=3s", applyArgs...)
		if !first.passed(name, hits) {
			t.Fatalf("the first runner did not pass %s", c.point)
		}
		if s := first.state(); s == "Z" || s == "T" {
			t.Fatalf("the first runner is not at work: state %s", s)
		}
		thief := r.start("", slices.Concat(c.thief, []string{"--steal-lock"})...)
		o := first.end()
		if stolen := thief.end(); stolen.code != 0 {
			t.Errorf("the thief at %s: %s\n%s", c.point, stolen, stolen.text)
		}
		if o.signal != 0 || o.code != 1 && o.code != 11 {
			t.Errorf("the runner that was replaced at %s: %s, want 1 or 11\n%s", c.point, o, o.text)
		}
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// stopped waits until the kernel says so: the fault has fired.
func (r *rig) stopped(p *process) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); p.state() != "T"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) || p.state() == "Z" {
			r.t.Fatalf("the runner did not stop: state %s", p.state())
		}
	}
}

// refused: a second runner must end with 11 and name the first.
func (r *rig) refused(first *process) {
	r.t.Helper()
	o := r.run("", applyArgs...)
	host, err := os.Hostname()
	r.must(err)
	if o.code != 11 || !strings.Contains(o.text, strconv.Itoa(first.cmd.Process.Pid)) || !strings.Contains(o.text, host) {
		r.t.Fatalf("a second runner: %s, want 11 and the name of process %d on %s\n%s", o, first.cmd.Process.Pid, host, o.text)
	}
}

// TestF04TwoRunners starts a second runner while the first works, of the same run and of abort.
func TestF04TwoRunners(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.start("load.claimed@4:sleep=3s;pass.staged@1:sleep=3s", applyArgs...)
	for _, at := range []string{"load.claimed", "pass.staged"} {
		if !first.passed(at, cond(at == "load.claimed", 4, 1)) {
			t.Fatalf("the first runner did not pass %s", at)
		}
		r.refused(first)
		if o := r.run("", abortArgs...); o.code != 11 {
			t.Errorf("abort beside a runner: %s, want 11\n%s", o, o.text)
		}
	}
	if o := first.end(); o.code != 0 {
		t.Fatalf("the first runner was disturbed: %s\n%s", o, o.text)
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF05Signals: a signal stops the runner at a safe point, and the same command continues.
func TestF05Signals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const patience = 5 * time.Second // the promise; the watchdog in main ends the process then
	for i, at := range []string{"schema.restored", "capture.triggers", "load.claimed", "load.scrubbing", "pass.staged", "dump.unvalidated", "compare.opened", "gate.armed", "freeze.held", "freeze.passed"} {
		sig, code := syscall.SIGINT, 130
		if i%2 == 1 {
			sig, code = syscall.SIGTERM, 143
		}
		p := r.start(at+"@1:sleep=300ms", applyArgs...)
		if !p.passed(at, 1) {
			t.Fatalf("the runner did not pass %s", at)
		}
		p.signal(sig)
		sent := time.Now()
		o := p.end()
		if took := time.Since(sent); o.code != code || took > patience+time.Second {
			t.Errorf("%s at %s: %s after %s, want %d\n%s", sig, at, o, took, code, o.text)
		}
		if !strings.Contains(o.text, ": finishing the piece at hand, then stopping") {
			t.Errorf("%s at %s: nobody is told what happens now\n%s", sig, at, o.text)
		}
		r.writing(0)
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

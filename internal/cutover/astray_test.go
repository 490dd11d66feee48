package cutover_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pointed sends clients by a file, as a script for DNS or a load balancer does.
const pointed = `
verify { enabled = false }
cutover {
  max_write_block = "10s"
  attempts        = 1
  switch {
    step "exec" "point" {
      command = ["./point.sh", "target"]
      undo    = ["./point.sh", "source"]
      env     = { LIKE = "this" }
      timeout = "5s"
    }
    step "sql" "mark" {
      on        = "target"
      statement = "CREATE TABLE public.pointed ()"
      undo      = "DROP TABLE IF EXISTS public.pointed"
      timeout   = "2s"
    }
  }
}
`

const pointSh = `#!/bin/sh
set -e
test "$LIKE" = this
test "$PGRUNBOOK_RUNBOOK" = move
test ! -e broken
if test "$1" = target -a -e hang; then rm hang; echo $$ > hanging; while test ! -e release; do sleep 0.1; done; fi
if test "$1" = target -a -e slow; then echo > working; sh -c 'sleep 4; echo target > points'; fi
echo "$1" > points
`

// TestGuardianUndoesTheSwitch: a runner dies, or stands still, when its switch steps have sent the clients over and
// before its flip. Nobody types anything; its guardian sends them back, once. The next command
// goes on; a runner that wakes up after that one touches nothing. An undo that fails stays on record. A guardian
// that stands still itself is ended by force.
func TestGuardianUndoesTheSwitch(t *testing.T) {
	t.Parallel()
	r := newRig(t, pointed)
	r.must(os.WriteFile(filepath.Join(r.dir, "point.sh"), []byte(pointSh), 0o700))
	points := filepath.Join(r.dir, "points")
	at := func() string {
		text, err := os.ReadFile(points)
		r.must(err)
		return strings.TrimSpace(string(text))
	}
	marked := func() string { return r.ask(r.target, "SELECT (to_regclass('public.pointed') IS NOT NULL)::text") }
	r.must(os.WriteFile(points, []byte("source\n"), 0o600))
	r.want(0, "apply", "-y", "--until", "arm")
	for _, way := range []struct {
		args     []string
		from, to int
		was, is  string
		marks    string // once it is done
	}{
		{[]string{"apply", "-y"}, onSource, onTarget, "source", "target", "true"},
		{[]string{"rollback", "-y"}, onTarget, onSource, "target", "source", "false"},
	} {
		p := r.start("freeze.switched@2:kill", way.args...)
		if o := p.end(); o.signal != syscall.SIGKILL {
			t.Fatalf("%s did not die: exit code %d\n%s", way.args, o.code, o.text)
		}
		r.eventually("the guardian's last word", func() bool { return strings.Contains(p.said(), "run the same command again") })
		if at() != way.was || marked() == way.marks {
			t.Errorf("%s killed in its switch: clients are led to the %s, marked %s\n%s", way.args, at(), marked(), p.said())
		}
		r.writing(way.from)

		p = r.start("freeze.switched@2:stop", way.args...)
		r.eventually("stopped in the switch", func() bool { return p.state() == "T" || p.state() == "Z" })
		r.eventually("the guardian's last word", func() bool { return strings.Contains(p.said(), "run the same command again") })
		if at() != way.was || marked() == way.marks {
			t.Errorf("%s stopped in its switch: clients are led to the %s, marked %s\n%s", way.args, at(), marked(), p.said())
		}
		r.writing(way.from)
		r.want(0, way.args...)
		p.signal(syscall.SIGCONT)
		if o := p.end(); o.code == 0 || o.signal != 0 {
			t.Errorf("%s woke up after its successor had flipped, and ended with %d %v\n%s", way.args, o.code, o.signal, o.text)
		}
		r.writing(way.to)
		if at() != way.is || marked() != way.marks {
			t.Errorf("%s woke up after its successor had flipped: clients are led to the %s, marked %s", way.args, at(), marked())
		}
	}

	// A command that is still at work when its runner dies or stands still is ended before it is undone.
	slow, working := filepath.Join(r.dir, "slow"), filepath.Join(r.dir, "working")
	r.must(os.WriteFile(slow, nil, 0o600))
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		p := r.start("", "apply", "-y")
		r.eventually("the switch step's command is at work", func() bool { _, err := os.Stat(working); return err == nil })
		p.signal(s)
		r.eventually("the guardian's last word", func() bool { return strings.Contains(p.said(), "run the same command again") })
		r.writing(onSource)
		time.Sleep(5 * time.Second) // it would have ended by now
		if at() != "source" {
			t.Errorf("after %v in the midst of a switch step's command clients are led to the %s\n%s", s, at(), p.said())
		}
		p.signal(syscall.SIGKILL)
		p.end()
		r.must(os.Remove(working))
	}
	r.must(os.Remove(slow))

	broken := filepath.Join(r.dir, "broken")
	never := filepath.Join(r.dir, "never")
	p := r.start("freeze.switched@2:wait="+never, "apply", "-y")
	r.eventually("waits in the switch", func() bool { _, err := os.Stat(never + ".here"); return err == nil })
	r.must(os.WriteFile(broken, nil, 0o600))
	p.signal(syscall.SIGKILL)
	p.end()
	r.eventually("the guardian says what it cannot undo", func() bool { return strings.Contains(p.said(), "see to it that this step points there") })
	r.writing(onSource)
	r.must(os.Remove(broken))
	r.says(r.want(0, "apply", "-y"), "undid exec point")
	r.writing(onTarget)
	if at() != "target" {
		t.Errorf("after the cutover clients are led to the %s", at())
	}
	r.same()
	r.takenFromItsGuardian(at)
	r.same()
	r.balance(r.source)
}

// takenFromItsGuardian: a guardian that stands still in the midst of an undo is ended by force, on both sides, and
// so is the command that it had at work, which would come after the flip of who took its place.
func (r *rig) takenFromItsGuardian(at func() string) {
	r.t.Helper()
	file := func(name string) string { return filepath.Join(r.dir, name) }
	r.must(os.WriteFile(file("hang"), nil, 0o600))
	p := r.start("freeze.switched@2:kill", "rollback", "-y")
	if o := p.end(); o.signal != syscall.SIGKILL {
		r.t.Fatalf("rollback did not die: exit code %d\n%s", o.code, o.text)
	}
	command := 0
	r.eventually("the guardian's undo is at work", func() bool {
		command, _ = strconv.Atoi(strings.TrimSpace(r.read("hanging")))
		return command > 0
	})
	guardian, err := strconv.Atoi(r.ask(r.target, "SELECT pid::text FROM pgrunbook.holder WHERE released IS NULL AND application LIKE '% guardian%'"))
	r.must(err)
	r.must(syscall.Kill(guardian, syscall.SIGSTOP))
	r.eventually("the guardian stands still", func() bool { return stateOf(guardian) == "T" })
	if stateOf(command) == "Z" {
		r.t.Fatal("its undo had ended before")
	}
	r.want(0, "rollback", "-y", "--steal-lock")
	if state := stateOf(command); state != "Z" {
		r.t.Errorf("the command of the guardian that was replaced lives on: %s", state)
	}
	r.must(os.WriteFile(file("release"), nil, 0o600))
	r.must(syscall.Kill(guardian, syscall.SIGCONT))
	r.eventually("the guardian finds its place taken", func() bool { return strings.Contains(p.said(), "another runner has taken over") })
	r.eventually("the guardian has gone", func() bool { return stateOf(guardian) == "Z" })
	r.writing(onSource)
	if at() != "source" {
		r.t.Errorf("clients are led to the %s", at())
	}
}

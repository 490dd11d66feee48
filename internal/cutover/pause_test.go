package cutover_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPauseIsHeard says pause from another process while a step is at work, not between steps: while rows are
// copied and caught up, in the midst of the comparison of one table that does not end, between two tables
// that get their gate, and while rows are carried back. It prints how soon it was heard.
func TestPauseIsHeard(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	const points = 4
	var at [points]string
	for i := range at {
		at[i] = filepath.Join(r.dir, "here", string(rune('a'+i)))
	}
	r.must(os.Mkdir(filepath.Join(r.dir, "here"), 0o700))
	copying, passing, comparing, arming := at[0], at[1], at[2], at[3]
	p := r.start("load.claimed@2:wait="+copying+";pass.begun@2:wait="+passing+";compare.opened@1:wait="+comparing+";gate.armed@14:wait="+arming, "apply", "-y", "--until", "arm")
	r.paused(p, "copy", copying, nil)
	r.paused(p, "catch_up", passing, nil)

	reader := r.connect(r.target)
	locked := func() { // while the step stands behind its pass and before its first read
		_, err := reader.Exec(context.Background(), "BEGIN; LOCK TABLE app.item IN ACCESS EXCLUSIVE MODE")
		r.must(err)
	}
	r.paused(p, "verify", comparing, locked, func() {
		if strings.Contains(p.said(), "app.item: ") {
			t.Error("the table was compared before the pause was heard")
		}
		_, err := reader.Exec(context.Background(), "ROLLBACK")
		r.must(err)
	})
	r.paused(p, "arm", arming, func() {
		time.Sleep(1100 * time.Millisecond) // it asks once a second
	}, func() {
		if n := p.passed("gate.armed"); n > 15 {
			t.Errorf("%d tables were gated before the pause was heard", n)
		}
	})
	if o := p.end(); o.code != 0 {
		t.Fatalf("apply ended with %d\n%s", o.code, o.text)
	}
	r.want(0, "apply", "-y")
	r.writing(onTarget)
	r.same()

	follow := r.start("", "follow")
	r.eventually("it follows", func() bool { return strings.Contains(follow.said(), "reverse pass of") })
	r.paused(follow, "follow", "", nil, func() {
		r.sql(r.target, "INSERT INTO app.item (name, net) VALUES ('later', 1)")
		time.Sleep(2 * time.Second)
		if n := r.ask(r.source, "SELECT count(*)::text FROM app.item WHERE name = 'later'"); n != "0" {
			t.Error("rows were carried back during a pause")
		}
	})
	r.eventually("the row comes back", func() bool {
		return r.ask(r.source, "SELECT count(*)::text FROM app.item WHERE name = 'later'") == "1"
	})
	follow.signal(syscall.SIGINT)
	follow.end()
	r.balance(r.target)
}

// paused says pause while a process stands at a place, lets it go on from there, and waits until it says that
// it pauses. first is done before it goes on, then what is true while it pauses.
func (r *rig) paused(p *process, step, at string, first func(), then ...func()) {
	r.t.Helper()
	heard := func() int { return strings.Count(p.said(), "paused by") }
	if at != "" {
		r.eventually("arrived in "+step, func() bool { _, err := os.Stat(at + ".here"); return err == nil })
	}
	before := heard()
	asked := r.want(0, "pause")
	if step == "verify" || step == "arm" { // while rows are copied and caught up, limits are looked at beside it
		r.says(asked, "not heard yet: process ")
		r.says(r.want(0, "status"), "the pause is not heard yet")
	}
	if first != nil {
		first()
	}
	began := time.Now()
	if at != "" {
		r.must(os.WriteFile(at, nil, 0o600))
	}
	r.eventually(step+" hears the pause", func() bool { return heard() > before })
	r.t.Logf("pause was heard in %s after %s", step, time.Since(began).Round(10*time.Millisecond))
	r.says(r.want(0, "status"), "paused by ")
	r.eventually("the journal has that it was heard in "+step, func() bool {
		return strings.Contains(r.want(0, "pause"), "in step "+step+": it stands still")
	})
	for _, do := range then {
		do()
	}
	r.want(0, "unpause")
}

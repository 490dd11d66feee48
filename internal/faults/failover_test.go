package faults_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// site is one side with a standby, behind an address that moves with a failover.
type site struct {
	primary, standby *testpg.Cluster
	address          *testpg.Proxy
	url              string
}

// ownSite starts a server with a standby and makes a database there.
func ownSite(t *testing.T, major int) *site {
	t.Helper()
	s := &site{primary: testpg.StartT(t, testpg.Options{Major: major})}
	direct := testpg.NewDB(t, s.primary)
	s.address = testpg.ListenT(t, s.primary)
	s.url = s.address.URL(direct)
	var err error
	if s.standby, err = s.primary.Standby(t.Context(), "second"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.standby.Remove(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// lag lets the standby get nothing from now on.
func (s *site) lag(t *testing.T) {
	t.Helper()
	if err := s.standby.Configure(t.Context(), map[string]string{"primary_conninfo": "host=127.0.0.1 port=1"}); err != nil {
		t.Fatal(err)
	}
}

// fail kills the primary and lets the standby take its address.
func (s *site) fail(t *testing.T) {
	t.Helper()
	if err := s.primary.KillPostmaster(); err != nil {
		t.Fatal(err)
	}
	if err := s.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.address.Retarget(s.standby.Addr())
}

// distrusted: apply must not go on after a promotion, and say what to type.
func (r *rig) distrusted(side string) {
	r.t.Helper()
	o := r.run("", applyArgs...)
	if o.code != 15 || !strings.Contains(o.text, "timeline 2") || !strings.Contains(o.text, "pgrunbook verify") || !strings.Contains(o.text, side) {
		r.t.Fatalf("after the promotion of the %s: %s, want 15 with the timelines\n%s", side, o, o.text)
	}
}

// TestF12F13Failover promotes standbys at the address of a side that died. One that lagged has lost
// commits: of the source, which the target holds by then, or of the target, whose keys the source
// has forgotten. That is never trusted. One that had everything is trusted after a comparison.
func TestF12F13Failover(t *testing.T) {
	source, target := majors(t)
	for _, c := range []struct {
		name    string
		side    string
		lagging bool
	}{
		{"F12 the source's standby lagged", "source", true},
		{"F12 the source's standby had everything", "source", false},
		{"F13 the target's standby lagged", "target", true},
	} {
		if !c.lagging && !testpg.Full() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			t.Cleanup(func() { <-slots })
			major := cond(c.side == "source", source, target)
			s := ownSite(t, major)
			var r *rig
			if c.side == "source" {
				r = newRigOn(t, s.url, testpg.NewDB(t, testpg.Shared(t, target)))
			} else {
				r = newRigOn(t, testpg.NewDB(t, testpg.Shared(t, source)), s.url)
			}
			r.finally("apply", "--auto-approve", "--until", "catch_up")
			if c.lagging {
				s.lag(t)
			} else {
				r.must(s.primary.Configure(context.Background(), map[string]string{"synchronous_standby_names": "second"}))
			}
			r.writing(0)
			// The pass is committed on the target when the primary dies; what it read is lost with it.
			p := r.start("pass.committed@2:sleep=3s", "apply", "--auto-approve", "--until", "catch_up")
			if !p.passed("pass.committed", 2) {
				t.Fatal("the runner made no pass")
			}
			s.fail(t)
			if o := p.end(); o.code != 1 && o.code != 15 {
				t.Fatalf("the runner beside a failover: %s\n%s", o, o.text)
			}
			r.distrusted(c.side)
			r.writing(0) // it holds nothing
			want := cond(c.lagging, 12, 0)
			if o := r.run("", "verify"); o.code != want {
				t.Fatalf("verify after the failover: %s, want %d\n%s", o, want, o.text)
			}
			if c.lagging {
				r.distrusted(c.side) // a comparison that found something proves nothing
				r.finally(abortArgs...)
			}
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			if c.lagging && c.side == "source" {
				r.stop() // the lost tail is the failover's own loss: the ledger would name it
				r.oneSide()
				return
			}
			r.balance(r.target)
		})
	}
}

// TestF12StandbyAtTheAddress leads the source's address to its standby, which nobody has promoted, while the target follows and
// between the two COMMITs. It proves nothing about the source: every command says what it is, and none changes anything.
func TestF12StandbyAtTheAddress(t *testing.T) {
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	source, target := majors(t)
	s := ownSite(t, source)
	r := newRigOn(t, s.url, testpg.NewDB(t, testpg.Shared(t, target)))
	astray := func(commands ...[]string) {
		t.Helper()
		s.address.Retarget(s.standby.Addr())
		for _, args := range commands {
			o := r.run("", args...)
			if r.acceptable(o); o.code == 0 || !strings.Contains(o.text, "in recovery") || !strings.Contains(o.text, "Promote it, or point the runbook at the primary") {
				t.Fatalf("%s beside a standby: %s, want what it is and what to do\n%s", args, o, o.text)
			}
			if !testpg.Refuses(t.Context(), r.target, probeSQL) {
				t.Fatalf("%s opened the target", args)
			}
		}
		s.address.Retarget(s.primary.Addr())
	}
	r.finally("apply", "--auto-approve", "--until", "catch_up")
	astray(applyArgs, []string{"verify"}, abortArgs)
	r.writing(0)
	r.fallen(applyArgs...)
	astray(applyArgs, abortArgs, rollbackArgs)
	if !testpg.Refuses(t.Context(), r.source, probeSQL) {
		t.Fatal("the source was opened")
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF13FailoverAfterTheFlip promotes a standby at the target's address once the target takes writes.
func TestF13FailoverAfterTheFlip(t *testing.T) {
	source, target := majors(t)
	begin := func(t *testing.T, until ...string) (*rig, *site) {
		t.Parallel()
		slots <- struct{}{}
		t.Cleanup(func() { <-slots })
		s := ownSite(t, target)
		r := newRigOn(t, testpg.NewDB(t, testpg.Shared(t, source)), s.url)
		r.finally(append(applyArgs, until...)...)
		s.lag(t)
		return r, s
	}
	refuses := func(r *rig, url string) {
		r.t.Helper()
		if !testpg.Refuses(r.t.Context(), url, probeSQL) {
			r.t.Fatal("a side takes writes that must not")
		}
	}

	// It lacks the flip with all that came after it. The source is closed, and knows of it: neither side takes writes, and
	// every command leads to the one that ends that.
	t.Run("F13 the target's standby lacks the flip", func(t *testing.T) {
		r, s := begin(t, "--until", "catch_up")
		r.writing(0)
		r.finally(applyArgs...)
		r.writing(1)
		s.fail(t)
		refuses(r, r.source)
		refuses(r, r.target)
		for _, args := range [][]string{applyArgs, {"verify"}, {"follow"}, {"rollback", "--auto-approve"}, {"finish", "--auto-approve", "--now"}, abortArgs} {
			if o := r.run("", args...); o.code != 15 || !strings.Contains(o.text, "pgrunbook rollback --without-target") {
				t.Fatalf("%s: %s, want 15 with what to type\n%s", args, o, o.text)
			}
		}
		if o := r.run("", "status"); !strings.Contains(o.text, "neither side takes writes") || !strings.Contains(o.text, "Next: pgrunbook rollback --without-target --check") {
			t.Fatalf("status: %s\n%s", o, o.text)
		}
		// A person may say that it lost nothing; that it lacks the flip is found all the same.
		r.finally("approve", "target-timeline-2", "--by", "anna")
		if o := r.run("", applyArgs...); o.code != 15 || !strings.Contains(o.text, "pgrunbook rollback --without-target") {
			t.Fatalf("apply, approved: %s, want 15\n%s", o, o.text)
		}
		refuses(r, r.source)
		refuses(r, r.target)
		r.finally("rollback", "--without-target", "--auto-approve", "--accept-loss")
		r.writing(0)
		refuses(r, r.target)
		r.stop() // what was written to the target alone is the failover's own loss: the ledger would name it
		r.oneSide()
	})

	// It has the flip, and has lost what came later: that is the failover's own loss. It takes writes, the source stays
	// closed, nothing trusts it without a person's word, and finish ends the run.
	t.Run("F13 the target's standby lost its last writes", func(t *testing.T) {
		r, s := begin(t)
		r.writing(1)
		s.fail(t)
		r.writing(1)
		refuses(r, r.source)
		for _, args := range [][]string{applyArgs, {"follow"}, {"rollback", "--auto-approve"}} {
			if o := r.run("", args...); o.code != 15 || !strings.Contains(o.text, "timeline 2") || !strings.Contains(o.text, "pgrunbook finish") {
				t.Fatalf("%s: %s, want 15 with what to type\n%s", args, o, o.text)
			}
		}
		if o := r.run("", "rollback", "--without-target", "--check"); o.code != 1 || !strings.Contains(o.text, "takes writes") {
			t.Fatalf("giving up a target that takes writes: %s\n%s", o, o.text)
		}
		refuses(r, r.source)
		r.finally("finish", "--auto-approve", "--now")
		r.writing(1)
		refuses(r, r.source)
		r.stop()
		r.oneSide()
		if torn := r.number(r.target, "SELECT count(*) FROM ("+r.ledger.Torn()+") t"); torn != 0 {
			t.Error("a transaction is there in part")
		}
	})
}

// TestF22ReplicaLag: a replica of the target that falls behind makes the load wait, and passes go on.
func TestF22ReplicaLag(t *testing.T) {
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	sourceMajor, targetMajor := majors(t)
	s := ownSite(t, targetMajor)
	r := newRigOn(t, testpg.NewDB(t, testpg.Shared(t, sourceMajor)), s.url)
	r.must(s.standby.Configure(t.Context(), map[string]string{"recovery_min_apply_delay": "4s"}))
	r.edit("copy {", "limit \"replica_lag\" {\n  max  = \"1s\"\n  then = \"pause\"\n}\n\ncopy {")
	p := r.start("load.claimed:sleep=300ms", applyArgs...)
	const lag = "SELECT count(*) FROM pg_stat_replication WHERE replay_lag > interval '1 s'"
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(p.said(), "limit replica_lag is over"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) || p.state() == "Z" {
			t.Fatalf("the load did not wait; replicas behind: %d\n%s", r.number(r.target, lag), p.end().text)
		}
	}
	r.writing(0)
	r.must(s.standby.Configure(t.Context(), map[string]string{"recovery_min_apply_delay": "0"}))
	if o := p.end(); o.code != 0 {
		r.acceptable(o)
		r.finally(applyArgs...)
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

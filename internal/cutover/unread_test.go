package cutover_test

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
)

// full is a cutover whose switch step says more than a pipe holds.
const full = `
cutover {
  max_write_block = "9s"
  attempts        = 20
  retry_every     = "300ms"
  sequence_margin = 100

  switch {
    step "exec" "talks" {
      command = ["/bin/sh", "-c", "seq 1 40000"]
      undo    = ["/bin/sh", "-c", "seq 1 40000"]
      timeout = "5s"
    }
  }
}
rollback { keep_for = "1h" }
`

// unread starts a command whose outputs nobody reads.
func (r *rig) unread(points string, args ...string) *process {
	r.t.Helper()
	p := r.prepare(points, args...)
	read, write, err := os.Pipe()
	r.must(err)
	r.t.Cleanup(func() { _ = read.Close() })
	p.cmd.Stdout, p.cmd.Stderr = write, write
	r.must(p.cmd.Start())
	r.must(write.Close())
	go func() { p.ended <- p.cmd.Wait() }()
	return p
}

// TestOutputThatNobodyReads: a pipe that is full within the hold keeps the application from nothing, and neither the
// runner nor its guardian from their work; and a signal is heard.
func TestOutputThatNobodyReads(t *testing.T) {
	t.Parallel()
	r := newRig(t, full)
	r.want(0, "apply", "-y", "--until", "arm")
	p := r.unread("", "apply", "-y", "--json")
	r.writing(onTarget)
	if o := p.end(); o.code != 1 { // all is done but for the output
		t.Errorf("it ended with %d, want 1", o.code)
	}
	r.same()

	// The guardian's word gets out no better.
	p = r.unread("freeze.between@1:kill", "rollback", "-y")
	if o := p.end(); o.signal != syscall.SIGKILL || p.passed("freeze.between") != 1 {
		t.Fatalf("it did not die between the COMMITs: exit code %d", o.code)
	}
	r.writing(onSource)
	if p.passed("freeze.resolved") != 1 {
		t.Error("the guardian opened nothing, and yet somebody did")
	}
	r.want(0, "rollback", "-y")
	r.same()
	r.balance(r.source)
}

// TestSignalWithOutputThatNobodyReads: the first signal stops a run whose output is stuck; nothing has to be killed.
func TestSignalWithOutputThatNobodyReads(t *testing.T) {
	t.Parallel()
	r := newRig(t, full)
	r.write(strings.Replace(full, "seq 1 40000\"]\n", "seq 1 40000; touch $HERE; sleep 60\"]\n      env     = { HERE = \""+r.dir+"/here\" }\n", 1))
	r.want(0, "apply", "-y", "--until", "arm")
	p := r.unread("", "apply", "-y")
	r.eventually("in the switch step", func() bool { _, err := os.Stat(r.dir + "/here"); return err == nil })
	p.signal(syscall.SIGTERM)
	if o := p.end(); o.code != 143 {
		t.Errorf("it ended with %d, want 143", o.code)
	}
	r.writing(onSource)
	r.refused(r.target, "25006")
}

// TestPoolerThatStandsStillInTheSwitch: a pooler that answers nothing to RELOAD, nor to what takes that back, holds
// up the writers who do not come through it no longer than the budget.
func TestPoolerThatStandsStillInTheSwitch(t *testing.T) {
	t.Parallel()
	p := newPooled(t)
	text, err := os.ReadFile(p.dir + "/move.runbook.hcl")
	p.must(err)
	text = bytes.Replace(text, []byte(`max_write_block = "20s"`), []byte(`max_write_block = "6s"`), 1)
	text = bytes.Replace(text, []byte(`timeout = "9s"`), []byte(`timeout = "1s"`), 1)
	p.must(os.WriteFile(p.dir+"/move.runbook.hcl", text, 0o600))
	p.begin(p.source, p.target)
	p.want(0, "apply", "-y", "--until", "arm")
	run := p.start("freeze.sequences@1:sleep=1500ms", "apply", "-y")
	p.eventually("in the hold", func() bool { return run.passed("freeze.sequences") > 0 })
	p.must(p.bouncers[0].Signal(syscall.SIGSTOP))
	before := p.ask(p.source, entries)
	p.eventually("the application writes on at the source", func() bool { return p.ask(p.source, entries) != before })
	if run.passed("freeze.letgo") > 0 {
		t.Errorf("the pooler was given up before that:\n%s", run.said())
	}
	p.must(p.bouncers[0].Signal(syscall.SIGCONT))
	o := run.end()
	p.says(o.text, "the write block reached its budget of 6s")
	if o.code != 0 {
		p.want(0, "apply", "-y")
	}
	p.leads(p.target)
	p.balance(p.target)
}

package cutover_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/schematest"
)

const asking = `
cutover {
  max_write_block = "5s"
  attempts        = 40
  retry_every     = "300ms"

  before {
    step "approve" "go" {
      message = "Batch jobs stopped?"
      expires = "EXPIRES"
    }
  }
}
rollback { keep_for = "1h" }
`

// waitingForGate counts who waits for the gate's key: the hold, behind writers in flight.
const waitingForGate = "SELECT count(*)::text FROM pg_locks, pgrunbook.side WHERE locktype = 'advisory' AND objsubid = 1 AND NOT granted AND mode = 'ExclusiveLock' AND ((classid::int8 << 32) | objid::int8) = gate_key"

// TestRehearse makes the freeze and lets it go: phases are printed, the source takes writes, nothing
// has moved, and a certificate is there only after the cutover.
func TestRehearse(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	r.says(r.want(0, "apply", "-y", "--until", "schema"), "predicted: writes wait in the cutover for", "of 5s")
	r.says(r.want(1, "rehearse"), "the source has no gate yet", "pgrunbook apply --until arm")
	r.says(r.want(0, "finish", "--check"), "NOT READY", "writes are on the source: there is nothing to finish")
	r.says(r.want(0, "pause"), "no command works on the run now")
	r.want(0, "unpause")
	r.want(0, "apply", "-y", "--until", "arm")
	r.says(r.want(0, "status"), "freeze predicted: writes wait in the cutover for", "of 5s", "for the last pass", "rollback not possible: there was no cutover yet")
	p := r.start("", "rehearse")
	if o := p.end(); o.code != 0 || p.passed("freeze.sequences") != 1 || p.passed("freeze.decided") != 0 {
		t.Errorf("rehearse ended with %d\n%s", o.code, o.text)
	}
	r.says(p.said(), "hold ", "proof ", "pass ", "sequences ", "undo ", "writes were blocked for", "of 5s", "of the cutover: predicted write block ", "for the last drain")
	r.writing(onSource)
	r.refused(r.target, "25006")
	r.says(r.want(1, "status", "--certificate"), "there is none")
	r.says(r.want(0, "status"), "freeze predicted: writes wait in the cutover for", "for the last drain")

	type predicted struct {
		Of    string
		Block float64 `json:"write_block_seconds"`
		Why   string
		Parts []struct{ Seconds float64 }
	}
	var rehearsal struct {
		Block float64 `json:"write_block_seconds"`
		Marks []struct {
			Name  string
			After float64 `json:"after_seconds"`
		}
		Predicted predicted
	}
	r.must(json.Unmarshal([]byte(r.stdout("rehearse", "--json")), &rehearsal))
	if rehearsal.Block <= 0 || len(rehearsal.Marks) < 5 || rehearsal.Marks[len(rehearsal.Marks)-1].After < rehearsal.Block {
		t.Errorf("rehearse --json says %+v", rehearsal)
	}
	var st struct{ Predicted predicted }
	r.must(json.Unmarshal([]byte(r.stdout("status", "--json")), &st))
	for _, p := range []predicted{rehearsal.Predicted, st.Predicted} {
		sum := 0.0
		for _, part := range p.Parts {
			sum += part.Seconds
		}
		if p.Of != "cutover" || p.Block < rehearsal.Block || math.Abs(sum-p.Block) > 1e-6 || !strings.Contains(p.Why, "for the last drain") {
			t.Errorf("a rehearsal of %gs, and then status, predict %+v and %+v", rehearsal.Block, rehearsal.Predicted, st.Predicted)
		}
	}
	r.says(r.want(0, "plan"), "predicted: writes wait in the cutover for", "for the last drain")
	r.writing(onSource)

	// A writer that is in flight when the hold begins is drained, and named.
	late := r.connect(r.source)
	_, err := late.Exec(context.Background(), "SET application_name = 'late order'")
	r.must(err)
	run := r.start("freeze.prepared@1:stop", "apply", "-y")
	r.eventually("stopped before the hold", func() bool { return run.passed("freeze.prepared") == 1 && run.state() == "T" })
	_, err = late.Exec(context.Background(), "BEGIN; UPDATE app.item SET net = 8 WHERE id = 8")
	r.must(err)
	run.signal(syscall.SIGCONT)
	// Its transaction is open until the freeze has looked who is there.
	r.eventually("the hold waits for it, or gave this attempt up", func() bool {
		return r.ask(r.source, waitingForGate) != "0" || strings.Contains(run.said(), "attempt 1:")
	})
	_, err = late.Exec(context.Background(), "COMMIT")
	r.must(err)
	if o := run.end(); o.code != 0 {
		t.Fatalf("apply ended with %d\n%s", o.code, o.text)
	}
	r.writing(onTarget)
	r.same()
	if over := r.want(0, "status"); strings.Contains(over, "in the cutover for") {
		t.Errorf("the cutover is over, and status says:\n%s", over)
	}
	r.says(r.want(0, "status", "--certificate"),
		"position snapshot ", "until the gate was held, for ", "writers in flight",
		"flip from source to target", "write block", "drain", "proof pg_locks shows no transaction that wrote", "final pass", "left over 0 changes", "gated 8 tables", "sequences 2", "compared")
	var cert struct {
		From, To string
		Pending  int64
		Tables   int
		Proof    struct{ Looks int }
		Pass     struct{ ID, Position string }
		Drained  []struct{ Application string }
		Marks    []struct{ Name string }
	}
	r.must(json.Unmarshal([]byte(r.stdout("status", "--certificate", "--json")), &cert))
	if cert.From != "source" || cert.To != "target" || cert.Pending != 0 || cert.Tables != 8 || cert.Proof.Looks < 1 || cert.Pass.ID == "" || cert.Pass.Position == "" || len(cert.Marks) < 5 {
		t.Errorf("the certificate as JSON: %+v", cert)
	}
	if !strings.Contains(run.said(), "attempt 1:") && !slices.ContainsFunc(cert.Drained, func(d struct{ Application string }) bool { return d.Application == "late order" }) {
		t.Errorf("the certificate does not name who was drained: %+v", cert.Drained)
	}
	if on := r.ask(r.target, "SELECT pass::text FROM pgrunbook.watermark WHERE from_side = 'source'"); on != cert.Pass.ID {
		t.Errorf("the certificate names pass %s, the target's watermark %s", cert.Pass.ID, on)
	}
	r.says(r.want(1, "rehearse"), "gate is closed already")
	r.want(0, "rollback", "-y")
	r.says(r.want(0, "status", "--certificate"), "flip from target to source", "write block", "drain", "proof pg_locks", "position snapshot", "of the target, at 20", "left over 0 changes", "compared")
	r.balance(r.source)
}

// stdout runs a command that must be done, and gives what it wrote there; what is for machines fits
// the published schema.
func (r *rig) stdout(args ...string) string {
	r.t.Helper()
	p := r.prepare("", args...)
	p.cmd.Stdout = nil
	out, err := p.cmd.Output()
	if err != nil {
		r.t.Fatalf("pgrunbook %s: %v\n%s", strings.Join(args, " "), err, p.said())
	}
	if slices.Contains(args, "--json") {
		_, err := schematest.Lines(string(out))
		r.must(err)
	}
	return string(out)
}

// TestApproval: without a terminal apply stops with 14 and prints the next job's command; the word
// may come from elsewhere, runs out, holds for the plan that it was given for, and is asked for again
// for a second cutover.
func TestApproval(t *testing.T) {
	t.Parallel()
	r := newRig(t, strings.Replace(asking, "EXPIRES", "1s", 1))
	r.want(0, "apply", "-y", "--until", "verify")
	r.want(0, "approve", "go", "--by", "Ada")
	r.ask(r.source, "SELECT pg_sleep(1.2)::text")
	r.says(r.want(14, "apply", "-y"), "expired")
	r.writing(onSource)

	// A changed runbook is another plan: what was said of the old one does not count either.
	r.write(strings.NewReplacer("EXPIRES", "1h", "stopped?", "stopped, and reports too?").Replace(asking))
	r.want(0, "apply", "-y", "--until", "verify")
	r.want(0, "approve", "go", "--by", "Ada")
	r.write(strings.NewReplacer("EXPIRES", "1h", "stopped?", "and reports stopped, and the mail held?").Replace(asking))
	r.says(r.want(14, "apply", "-y"), "and the mail held?")
	r.writing(onSource)

	r.write(strings.Replace(asking, "EXPIRES", "1h", 1))
	r.says(r.want(14, "apply", "-y"), "Batch jobs stopped? [predicted write block ", "of 5s", "pgrunbook approve go --by WHO")
	r.writing(onSource)
	r.says(r.want(0, "status"), "Next: pgrunbook approve go --by")
	r.want(14, "apply", "-y")
	r.says(r.want(4, "approve", "reports", "--by", "me"), "The runbook asks for: go.")
	r.want(4, "approve", "go")
	r.want(0, "approve", "go", "--by", "Ada")
	r.says(r.want(0, "apply", "-y"), "go approved by Ada; predicted write block ")
	r.writing(onTarget)
	r.same()

	r.want(0, "rollback", "-y")
	r.says(r.want(14, "apply", "-y"), "Batch jobs stopped?") // yesterday's word is no word
	r.writing(onSource)
	r.says(r.want(0, "apply", "-y", "--approve", "go", "--by", "Bob"), "go approved by Bob")
	r.writing(onTarget)
	r.balance(r.target)
}

// TestUntilEachStep: one run, and one that stops after every step, end alike.
func TestUntilEachStep(t *testing.T) {
	t.Parallel()
	r := newRig(t, plain)
	steps := []string{"schema", "capture", "copy", "catch_up", "constraints", "verify", "reverse", "arm", "freeze"}
	if !soak() {
		steps = []string{"schema", "copy", "verify", "arm", "freeze"}
	}
	for i, step := range steps {
		r.says(r.want(0, "apply", "-y", "--until", step), cond(i == len(steps)-1, "every step is done", "stopped after "+step+", as asked"))
		r.writing(i / (len(steps) - 1)) // the last one is the flip
	}
	r.same()
	r.want(0, "apply", "-y")
	r.want(0, "finish", "-y", "--now")
	r.balance(r.target)
	apart, err := os.ReadFile(filepath.Join(r.dir, "move.runbook.hcl"))
	r.must(err)

	whole := newRig(t, strings.TrimPrefix(string(apart), runbookHCL))
	whole.want(0, "apply", "-y")
	whole.want(0, "finish", "-y", "--now")
	whole.balance(whole.target)
	if a, b := r.dump(r.target), whole.dump(whole.target); a != b {
		t.Errorf("the targets differ:\n%s", firstDifference(a, b))
	}
}

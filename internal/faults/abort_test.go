package faults_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// dump is every definition of a database.
func (r *rig) dump(url string) string {
	r.t.Helper()
	text, err := testpg.SchemaDump(r.t.Context(), url)
	r.must(err)
	return text
}

func firstDifference(a, b string) string {
	one, two := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(one), len(two)) {
		if one[i] != two[i] {
			return "- " + one[i] + "\n+ " + two[i]
		}
	}
	return "one is longer: " + strings.Join(one[min(len(one), len(two)):], "\n") + strings.Join(two[min(len(one), len(two)):], "\n")
}

// abortAfter are deaths in every step before the flip.
var abortAfter = []string{
	"journal.found", "schema.begun", "schema.restored", "schema.gated", "capture.objects", "capture.triggers@7", "load.claimed@5",
	"load.marked@9", "load.scrubbing", "load.keyed", "pass.marked", "pass.committed", "dump.unvalidated", "compare.opened",
	"reverse.captured", "gate.armed@20", "freeze.held", "freeze.passed", "freeze.decided",
}

// TestF85AbortAfterDeath: wherever the runner died before the flip, abort leaves the source as it was
// found, and the target so that the next run can begin.
func TestF85AbortAfterDeath(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	before := r.dump(r.source)
	for i, name := range abortAfter {
		if !soak() && i%3 != 2 && name != "freeze.decided" && name != "schema.begun" {
			continue
		}
		if !r.killed(name, applyArgs...) {
			t.Fatalf("the runner did not die at %s", name)
		}
		r.finally(abortArgs...)
		if after := r.dump(r.source); after != before {
			t.Fatalf("abort after a death at %s left the source different:\n%s", name, firstDifference(before, after))
		}
		r.writing(0)
	}
	r.finally(applyArgs...) // a new run has a clean way
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// TestF02SettledByAnyCommand: runner and guardian die between the two COMMITs, when neither side takes
// writes. Whatever is typed next ends that: abort says that it is too late, rollback goes back.
func TestF02SettledByAnyCommand(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fallen(applyArgs...)
	r.firstWrite("abort", func() {
		if o := r.run("", abortArgs...); o.code != 1 {
			t.Fatalf("abort after the flip: %s, want 1\n%s", o, o.text)
		}
	})
	r.moved(0, 1)
	r.writing(1)
	r.turn(1)
	r.fallen(rollbackArgs...)
	r.firstWrite("rollback", func() { r.finally(rollbackArgs...) })
	r.moved(1, 0)
	r.writing(0)
	before := r.dump(r.source)
	r.finally(abortArgs...)
	if after := r.dump(r.source); after == before || strings.Contains(after, "pgrunbook") {
		t.Errorf("abort after the way back left something of ours on the source")
	}
	r.balance(r.source)
}

// firstWrite prints how long after a command was typed the application could write again.
func (r *rig) firstWrite(command string, run func()) {
	r.t.Helper()
	began, before := time.Now(), r.ledger.Stats().Acknowledged
	wrote := make(chan time.Duration, 1)
	go func() {
		for r.ledger.Stats().Acknowledged == before && time.Since(began) < time.Minute {
			time.Sleep(5 * time.Millisecond)
		}
		wrote <- time.Since(began)
	}()
	run()
	r.t.Logf("%s typed between the COMMITs: the first write after %s", command, (<-wrote).Round(time.Millisecond))
}

package steps

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestAbortUndoesTheSwitch: a process died after it had sent clients to the target. Their gate is not
// taken away before they are sent back.
func TestAbortUndoesTheSwitch(t *testing.T) {
	undone := filepath.Join(t.TempDir(), "undone")
	r := newRig(t, fmt.Sprintf(`cutover {
  switch {
    step "exec" "dns" {
      command = ["true"]
      undo    = ["touch", %q]
      timeout = "1s"
    }
  }
}`, undone))
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	step := newFreeze(r.env, nil)
	_, err := r.env.Journal.Begin(t.Context(), step)
	r.must(err)
	r.must(r.env.Journal.Checkpoint(step.ID(), r.env.Sink).Save(t.Context(), nil, freezeCursor{Begun: 1}))
	r.must(Abort(t.Context(), r.env, AbortOptions{}))
	if _, err := os.Stat(undone); err != nil {
		t.Errorf("the switch was not undone: %v", err)
	}
}

// TestFinishUndoesTheSwitchBack: a rollback died after it had sent clients to the closed source, and
// somebody decides to stay.
func TestFinishUndoesTheSwitchBack(t *testing.T) {
	undone := filepath.Join(t.TempDir(), "undone")
	r := moved(t, fmt.Sprintf(`cutover {
  switch {
    step "exec" "dns" {
      command = ["touch", %q]
      undo    = ["true"]
      timeout = "1s"
    }
  }
}`, undone))
	step := newRollback(r.env, nil)
	_, err := r.env.Journal.Begin(t.Context(), step)
	r.must(err)
	r.must(r.env.Journal.Checkpoint(step.ID(), r.env.Sink).Save(t.Context(), nil, freezeCursor{Begun: 1}))
	r.must(r.walk(t.Context(), newFinish(r.env, FinishOptions{Now: true})))
	if _, err := os.Stat(undone); err != nil {
		t.Errorf("the clients were not sent back to the target: %v", err)
	}
}

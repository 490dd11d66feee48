package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// dnsSwitch is a cutover with one switch step.
func dnsSwitch(command, undo string) string {
	return fmt.Sprintf(`cutover {
  switch {
    step "exec" "dns" {
      command = [%s]
      undo    = [%s]
      timeout = "1s"
    }
  }
}`, command, undo)
}

func touch(path string) string { return fmt.Sprintf(`"touch", %q`, path) }

// diesIn leaves a freeze as a process does that dies after its first switch step.
func (r *rig) diesIn(step engine.Step) {
	r.t.Helper()
	_, err := r.env.Journal.Begin(r.t.Context(), step)
	r.must(err)
	r.must(r.env.Journal.Checkpoint(step.ID(), r.env.Sink).Save(r.t.Context(), nil, freezeCursor{Begun: 1}))
}

// TestAnyCommandUndoesTheSwitch: whatever is typed next, the clients are sent back before it does anything.
func TestAnyCommandUndoesTheSwitch(t *testing.T) {
	undone := filepath.Join(t.TempDir(), "undone")
	r := newRig(t, dnsSwitch(`"true"`, touch(undone)))
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newArm(r.env)))
	r.diesIn(newFreeze(r.env, nil))
	r.env.Journal.Close(t.Context())
	r.open()
	if _, err := os.Stat(undone); err != nil {
		t.Errorf("the switch was not undone: %v", err)
	}
}

// TestAbortMissesTheSwitch: the step that had begun is not in the runbook any more. The target's gate stays until somebody
// says how to take it back; another step's undo is not run for it.
func TestAbortMissesTheSwitch(t *testing.T) {
	undone := filepath.Join(t.TempDir(), "undone")
	r := newRig(t, dnsSwitch(`"true"`, touch(undone)))
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newArm(r.env)))
	step := newFreeze(r.env, nil)
	r.diesIn(step)
	r.must(r.env.Journal.Checkpoint(step.ID(), r.env.Sink).Save(t.Context(), nil, freezeCursor{Begun: 1, Steps: []engine.StepID{"cutover.switch.exec.old"}}))
	if err := Abort(t.Context(), r.env, AbortOptions{}); err == nil || !strings.Contains(err.Error(), "cutover.switch.exec.old: the runbook does not have it any more") || !strings.Contains(engine.HintOf(err), "Put that step back") {
		t.Errorf("a step that is gone from the runbook: %v", err)
	}
	if _, err := os.Stat(undone); err == nil {
		t.Error("the undo of another step was run")
	}
	r.want(r.target, "SELECT (last_value <> 0)::text FROM pgrunbook.gate_flag", "true")
}

// TestBegunSteps: those that the runbook has are found, whatever became of the others, which are named.
func TestBegunSteps(t *testing.T) {
	steps := []freeze.SwitchStep{{ID: "a"}, {ID: "b"}, {ID: "c"}}
	for _, c := range []struct {
		cursor      freezeCursor
		want        []engine.StepID
		wantMissing string
	}{
		{freezeCursor{Begun: 2, Steps: []engine.StepID{"a", "c"}}, []engine.StepID{"a", "c"}, ""},
		{freezeCursor{Begun: 3, Steps: []engine.StepID{"old", "b", "older"}}, []engine.StepID{"b"}, "old, older"},
		{freezeCursor{Begun: 1, Steps: []engine.StepID{"old"}}, nil, "old"},
		{freezeCursor{Begun: 2}, []engine.StepID{"a", "b"}, ""},
	} {
		found, err := c.cursor.begun(steps)
		missing := ""
		var e *engine.Error
		if errors.As(err, &e) {
			missing = e.Object
		}
		if !slices.Equal(stepIDs(found), c.want) || missing != c.wantMissing {
			t.Errorf("%+v: found %v, missing %q (%v)", c.cursor, stepIDs(found), missing, err)
		}
	}
}

// TestAbortUndoesTheSwitch: a process died after it had sent clients to the target, with a pooler that
// is gone since. Their gate is not taken away before all are sent back, or the pooler is given up.
func TestAbortUndoesTheSwitch(t *testing.T) {
	dir := t.TempDir()
	undone, file := filepath.Join(dir, "undone"), filepath.Join(dir, "databases.ini")
	write(t, file, "[databases]\nshop = host=127.0.0.1 port=1 dbname=shop\n")
	gone := fmt.Sprintf(`cutover {
  pooler "pgbouncer" "front" {
    admin       = "host=127.0.0.1 port=1 dbname=pgbouncer user=admin"
    database    = "shop"
    config_file = %q
    connect     = "host=127.0.0.1 port=2"
    timeout     = "1s"
  }
`, file)
	r := newRig(t, strings.Replace(dnsSwitch(`"true"`, touch(undone)), "cutover {\n", gone, 1))
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newArm(r.env)))
	group, err := poolerGroup(r.env)
	r.must(err)
	defer group.Close()
	changes, err := group.Plan()
	r.must(err)
	step := newFreeze(r.env, nil)
	r.diesIn(step)
	r.must(r.env.Journal.Checkpoint(step.ID(), r.env.Sink).Save(t.Context(), nil, freezeCursor{Begun: 1, Paused: true, Changes: changes}))

	err = Abort(t.Context(), r.env, AbortOptions{})
	if err == nil || !strings.Contains(err.Error(), "front") || !strings.Contains(engine.HintOf(err), "pgrunbook abort --without-poolers") {
		t.Fatalf("abort with a pooler that leads to the target: %v, hint %q", err, engine.HintOf(err))
	}
	if err := try(t, r.target, "UPDATE shop.customer SET name = 'too early'"); err == nil {
		t.Error("the target's gate went although clients may be led there")
	}
	var said []string
	r.env.Sink = engine.SinkFunc(func(e engine.Event) { said = append(said, e.Message) })
	r.must(Abort(t.Context(), r.env, AbortOptions{WithoutPoolers: true}))
	r.aborted()
	if text := strings.Join(said, "\n"); !strings.Contains(text, "pooler front") || !strings.Contains(text, "whoever still gets there writes there") {
		t.Errorf("abort does not name the pooler:\n%s", text)
	}
	if _, err := os.Stat(undone); err != nil {
		t.Errorf("the switch was not undone: %v", err)
	}
}

// TestUndoThatFails: a switch step is begun, fails, and cannot be taken back: clients may be at the target.
// No other attempt is made, and the target's gate stays until the step is undone, by whatever command.
func TestUndoThatFails(t *testing.T) {
	back := filepath.Join(t.TempDir(), "back")
	r := newRig(t, dnsSwitch(`"false"`, fmt.Sprintf(`"test", "-e", %q`, back)))
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	step, err := freezeFrom(r.env, engine.Source)
	r.must(err)
	err = r.walk(t.Context(), step)
	if engine.ClassOf(err) != engine.ClassFailed || !strings.Contains(err.Error(), "undoing the switch step exec dns") || !strings.Contains(engine.HintOf(err), "see to it that this step points there") {
		t.Fatalf("the freeze ended with %v, hint %q", err, engine.HintOf(err))
	}
	var cursor freezeCursor
	if _, err := r.env.Journal.Checkpoint(step.ID(), r.env.Sink).Load(t.Context(), &cursor); err != nil || cursor.Begun != 1 || cursor.Epoch != r.env.Run.Epoch {
		t.Errorf("on record is %+v in epoch %d (%v)", cursor, r.env.Run.Epoch, err)
	}
	r.exec(r.source, "UPDATE shop.customer SET name = 'the source takes writes' WHERE id = 1")
	if err := Abort(t.Context(), r.env, AbortOptions{}); err == nil || !strings.Contains(err.Error(), "dns") {
		t.Errorf("abort while clients may be at the target: %v", err)
	}
	if err := try(t, r.target, "UPDATE shop.customer SET name = 'too early'"); err == nil {
		t.Error("the target's gate went although clients may be there")
	}
	write(t, back, "")
	r.must(Abort(t.Context(), r.env, AbortOptions{}))
	r.aborted()
}

// TestFinishUndoesTheSwitchBack: a rollback died after it had sent clients to the closed source, and
// somebody decides to stay.
func TestFinishUndoesTheSwitchBack(t *testing.T) {
	undone := filepath.Join(t.TempDir(), "undone")
	r := moved(t, dnsSwitch(touch(undone), `"true"`))
	step := newRollback(r.env, nil)
	r.diesIn(step)
	r.must(r.walk(t.Context(), newFinish(r.env, FinishOptions{Now: true})))
	if _, err := os.Stat(undone); err != nil {
		t.Errorf("the clients were not sent back to the target: %v", err)
	}
}

// TestF15SwitchAfterLostCommit: the COMMIT that would have closed the source never arrived, which the
// runner finds out by a look. The clients are sent back to the source, and not before it is known.
func TestF15SwitchAfterLostCommit(t *testing.T) {
	major, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	cluster := testpg.Shared(t, major)
	way := testpg.ListenT(t, cluster)
	r := newRigOn(t, way.URL(testpg.NewDB(t, cluster)), testpg.NewDB(t, testpg.Shared(t, targetMajor)), shopSetup, patient)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	points := engine.Source
	step := newFreeze(r.env, []freeze.SwitchStep{{
		Name: "dns", Timeout: 10 * time.Second,
		Do: func(context.Context) error {
			points = engine.Target
			way.CutCommit(testpg.CommitNotSent, 0)
			return nil
		},
		Undo: func(context.Context) error { points = engine.Source; return nil },
	}})
	err = r.walk(t.Context(), step)
	if way.Fired(testpg.FaultCommit) != 1 || engine.ClassOf(err) != engine.ClassNoCutover || !strings.Contains(err.Error(), freeze.ErrUnknown.Error()) {
		t.Fatalf("the freeze ended with %v; want one that did not know how its COMMIT ended", err)
	}
	if points != engine.Source {
		t.Error("the clients are left at the closed target")
	}
	r.exec(r.source, "UPDATE shop.customer SET name = 'the source takes writes' WHERE id = 1")
	way.Heal()
	step.(*freezeStep).repoint[0].Do = func(context.Context) error { points = engine.Target; return nil }
	r.must(r.walk(t.Context(), step))
	if points != engine.Target {
		t.Error("the second freeze did not send the clients over")
	}
	r.same("shop.customer")
}

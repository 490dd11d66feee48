package steps

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// TestLargeObjectInMidRun: one that is made after the plan stops the next pass and the freeze, which would
// leave it behind; a runbook that ignores them goes on.
func TestLargeObjectInMidRun(t *testing.T) {
	r := newRig(t, "")
	stops := func(step engine.Step) {
		t.Helper()
		r.exec(r.source, "SELECT lo_create(4711)")
		err := r.walk(t.Context(), step)
		if !errors.Is(err, errLargeObjects) || engine.ClassOf(err) != engine.ClassPreflight {
			t.Errorf("with a large object %T ends with: %v", step, err)
		}
	}
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env)))
	stops(newCatchUp(r.env))
	r.exec(r.source, "SELECT lo_unlink(4711)")
	r.must(r.walk(t.Context(), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	stops(newFreeze(r.env, nil))
	r.exec(r.source, "UPDATE shop.customer SET name = 'writes go on' WHERE id = 1")
	r.env.Runbook.Cutover.LargeObjects = "ignore"
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	r.same("shop.customer")

	way := func() Back {
		t.Helper()
		back, err := WayBack(t.Context(), r.env)
		r.must(err)
		return back
	}
	r.exec(r.target, "SELECT lo_create(4712)")
	if back := way(); !back.Possible {
		t.Errorf("a runbook that ignores large objects has no way back: %+v", back)
	}
	r.env.Runbook.Cutover.LargeObjects = "refuse"
	if back := way(); back.Possible || !strings.HasPrefix(back.Why, "large object 4712 of the target: ") || !strings.Contains(back.Hint, "lo_unlink") {
		t.Errorf("the way back with a large object on the target: %+v", back)
	}
	if err := FollowBack(t.Context(), r.env, r.env.Sink); err == nil || !strings.Contains(err.Error(), "large object 4712 of the target") {
		t.Errorf("following with a large object on the target ends with: %v", err)
	}
	r.exec(r.target, "SELECT lo_unlink(4712)")
	if back := way(); !back.Possible {
		t.Errorf("the way back without large objects: %+v", back)
	}
}

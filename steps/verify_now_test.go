package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// TestVerifyAfterTheFlip: verify follows the direction of writes. After the flip it carries the
// target's changes back and finds both sides equal; where the source took writes of its own, which
// no pass may write over anything, it names them and leaves every row as it is.
func TestVerifyAfterTheFlip(t *testing.T) {
	r := newRig(t, "cutover {\n  max_write_block = \"60s\"\n}")
	r.exec(r.source, "INSERT INTO shop.customer VALUES (901, 'carried'), (902, 'both')")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	if err := VerifyNow(t.Context(), r.env, r.env.Sink); err == nil || !strings.Contains(err.Error(), "it is not loaded to its end") {
		t.Errorf("before the load verify says %v", err)
	}
	r.must(r.walk(t.Context(), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	r.must(VerifyNow(t.Context(), r.env, r.env.Sink))
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))

	r.exec(r.target, "UPDATE shop.customer SET name = 'on the target' WHERE id = 901; INSERT INTO shop.customer VALUES (903, 'new')")
	r.must(VerifyNow(t.Context(), r.env, r.env.Sink))
	r.want(r.source, "SELECT count(*)::text FROM shop.customer WHERE (id, name) IN ((901, 'on the target'), (903, 'new'))", "2")

	// What belongs before the cutover is not made up for after it.
	for _, s := range []engine.Step{newReverse(r.env), newArm(r.env)} {
		if err := s.Apply(t.Context(), engine.StepPlan{}, r.env.Journal.Checkpoint("test", r.env.Sink)); engine.ClassOf(err) != engine.ClassStale {
			t.Errorf("%s after the flip says %v", s.ID(), err)
		}
	}

	// Somebody opens the source, writes there, and closes it again.
	r.exec(r.source, `BEGIN READ WRITE; ALTER SEQUENCE pgrunbook.gate_flag RESTART 0;
		UPDATE shop.customer SET name = 'on the source' WHERE id = 902; ALTER SEQUENCE pgrunbook.gate_flag RESTART 1; COMMIT`)
	r.exec(r.target, "UPDATE shop.customer SET name = 'newer' WHERE id = 902")
	err := VerifyNow(t.Context(), r.env, r.env.Sink)
	if engine.ClassOf(err) != engine.ClassDifferences || !strings.Contains(err.Error(), "shop.customer differs") || !r.heard("the source took 1 change after the flip") {
		t.Errorf("verify says %v", err)
	}
	err = Follow(t.Context(), r.env, journal.NewMemory().Checkpoint(followID, r.env.Sink))
	if engine.ClassOf(err) != engine.ClassAmbiguous || !strings.Contains(err.Error(), "the source took 1 change") {
		t.Errorf("follow says %v", err)
	}
	r.want(r.source, "SELECT name FROM shop.customer WHERE id = 902", "on the source")
	r.want(r.target, "SELECT name FROM shop.customer WHERE id = 902", "newer")
	// A source that is open meanwhile is not written over either.
	r.exec(r.target, "INSERT INTO shop.customer VALUES (904, 'later')")
	r.exec(r.source, "BEGIN READ WRITE; ALTER SEQUENCE pgrunbook.gate_flag RESTART 0; COMMIT")
	back := newPasser(r.env, r.env.Target, r.env.Source, r.env.Journal.Checkpoint("test", r.env.Sink))
	defer func() { _ = back.Close(t.Context()) }()
	if _, err := back.Exact(t.Context(), pass.Options{}); err == nil || !strings.Contains(err.Error(), "two sides may take writes") {
		t.Errorf("a pass to an open source says %v", err)
	}
	r.exec(r.source, "BEGIN READ WRITE; ALTER SEQUENCE pgrunbook.gate_flag RESTART 1; COMMIT")
	// Whoever asks for a pass to the side that takes writes does not get one.
	passer := newPasser(r.env, r.env.Source, r.env.Target, r.env.Journal.Checkpoint("test", r.env.Sink))
	defer func() { _ = passer.Close(t.Context()) }()
	if _, err := passer.Exact(t.Context(), pass.Options{}); err == nil || !strings.Contains(err.Error(), "the target takes writes") {
		t.Errorf("a pass to the target says %v", err)
	}
	r.want(r.target, "SELECT name FROM shop.customer WHERE id = 902", "newer")

	// After a way back it is the target whose own changes no pass may write over, and a cutover that a
	// dead rollback left as done is made again.
	r.must(r.env.Journal.DecideFlip(t.Context(), r.env.Run.Epoch, engine.Target, engine.Source, nil))
	r.must(r.env.Journal.SetOwner(t.Context(), nil, engine.Source))
	err = afterWayBack(t.Context(), r.env, []engine.Step{newFreeze(r.env, nil)})
	if engine.ClassOf(err) != engine.ClassAmbiguous || !strings.Contains(err.Error(), "the target took") {
		t.Errorf("apply after the way back says %v", err)
	}
	r.want(r.target, "SELECT state FROM pgrunbook.step WHERE id = 'freeze'", "failed")
}

package steps

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
)

// Between the steps that make the way back ready and the freeze, somebody alters the target. Capture there is made right and
// both sides are compared again, as a rewrite fires no trigger; another shape ends the attempt. No writer waits for any of it.
func TestTamperingWithTheWayBack(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	oneWay := func(columns ...string) {
		t.Helper()
		err := r.walk(t.Context(), newFreeze(r.env, nil))
		if !errors.Is(err, errOneWay) || engine.HintOf(err) == "" {
			t.Fatalf("with another column on the target: %v, hint %q", err, engine.HintOf(err))
		}
		for _, c := range columns {
			if !strings.Contains(err.Error(), c) {
				t.Errorf("%q is not named: %v", c, err)
			}
		}
		if err := try(t, r.source, "UPDATE shop.customer SET name = name || '!' WHERE id = 7"); err != nil {
			t.Errorf("the source after that: %v", err)
		}
	}
	r.exec(r.target, "ALTER TABLE shop.customer ADD COLUMN extra int")
	oneWay("extra")
	r.exec(r.source, "ALTER TABLE shop.customer DISABLE TRIGGER ALL; ALTER TABLE shop.customer ENABLE TRIGGER ALL")
	r.must(r.catchUp()) // loads the table again, and must not take that column for its own
	r.must(r.walk(t.Context(), newVerify(r.env)))
	oneWay("extra")
	r.exec(r.source, "ALTER TABLE shop.customer ADD COLUMN carried int")
	r.must(r.catchUp()) // nor together with what it carries
	oneWay("extra")
	r.exec(r.target, `ALTER TABLE shop.customer DROP COLUMN extra`)

	mended := func() {
		t.Helper()
		if err := r.walk(t.Context(), newFreeze(r.env, nil)); !errors.Is(err, errMended) || engine.HintOf(err) == "" {
			t.Fatalf("with a touched target: %v, hint %q", err, engine.HintOf(err))
		}
	}
	r.must(r.walk(t.Context(), newVerify(r.env)))
	r.exec(r.target, `DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT DISTINCT tgrelid FROM pg_trigger WHERE tgname LIKE 'pgrunbook\_capture\_%' LOOP
		EXECUTE format('ALTER TABLE %s DISABLE TRIGGER ALL', t); EXECUTE format('ALTER TABLE %s ENABLE TRIGGER ALL', t); END LOOP; END $$`)
	mended() // gates and captures at once
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING upper(name)")
	if err := r.walk(t.Context(), newVerify(r.env)); engine.ClassOf(err) != engine.ClassDifferences {
		t.Fatalf("with other values on the target the comparison says %v", err)
	}
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING lower(name)")
	mended()
	r.must(r.walk(t.Context(), newVerify(r.env)))
	if !r.heard("mending the way back") {
		t.Error("nobody was told of what was touched on the target")
	}

	// What was captured there may be gone altogether.
	r.exec(r.target, "DELETE FROM pgrunbook.captured")
	mended()
	r.must(r.walk(t.Context(), newVerify(r.env), newReverse(r.env)))

	// A touch while poolers are paused already is for the next attempt.
	f, err := newFreeze(r.env, nil).(*freezeStep).build(t.Context(), r.env.Journal.Checkpoint("freeze", r.env.Sink))
	r.must(err)
	r.must(f.readyTo(t.Context()))
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE varchar(99)")
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING name || ''")
	if _, err := f.prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "customer") || forGood(err) {
		t.Fatalf("with a target that is touched after the look: %v", err)
	}
	f.close(t.Context())
	mended()
	r.must(r.walk(t.Context(), newVerify(r.env), newFreeze(r.env, nil)))
	r.exec(r.target, "UPDATE shop.customer SET name = 'on the target' WHERE id = 7")
	back, err := WayBack(t.Context(), r.env)
	r.must(err)
	if !back.Possible || back.Pending == 0 {
		t.Errorf("after the flip the way back is %+v", back)
	}
	r.must(r.walk(t.Context(), newRollback(r.env, nil)))
	r.want(r.source, "SELECT name FROM shop.customer WHERE id = 7", "on the target")
	r.sameTables(t)
}

// What the run itself carries to the target after the way back was made ready costs it nothing.
func TestWayBackOutlivesWhatIsCarried(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	for _, ddl := range []string{
		"ALTER TABLE shop.event DETACH PARTITION shop.event_2026; DROP TABLE shop.event_2026",
		"ALTER TABLE shop.customer ADD COLUMN late int DEFAULT 3",
		"ALTER TABLE shop.customer DISABLE TRIGGER ALL; UPDATE shop.customer SET late = 4 WHERE id = 3; ALTER TABLE shop.customer ENABLE TRIGGER ALL",
		"ALTER TABLE shop.customer ADD COLUMN n int; UPDATE shop.customer SET n = 1; ALTER TABLE shop.customer ALTER n SET NOT NULL", // made on the target after its rows
	} {
		r.exec(r.source, ddl)
		r.must(r.catchUp())
	}
	r.untouchedTarget("what the run carried")
	_, err := Rehearse(t.Context(), r.env, engine.SinkFunc(r.emit))
	r.must(err)
	r.exec(r.target, "ALTER TABLE shop.customer ENABLE TRIGGER pgrunbook_capture_ins") // its gate stays
	if _, err := Rehearse(t.Context(), r.env, engine.SinkFunc(r.emit)); engine.ClassOf(err) != engine.ClassNoCutover || !strings.Contains(engine.HintOf(err), "pgrunbook apply --until arm") {
		t.Errorf("a rehearsal with a touched target: %v, hint %q", err, engine.HintOf(err))
	}
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env)))
	_, err = Rehearse(t.Context(), r.env, engine.SinkFunc(r.emit))
	r.must(err)
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	r.wayBackOpen()
}

// untouchedTarget fails where a table of the target, or a trigger of ours there, looks like touched.
func (r *rig) untouchedTarget(after string) {
	r.t.Helper()
	sides, err := openSides(r.t.Context(), r.env, "verify")
	r.must(err)
	defer sides.close(r.t.Context())
	changes, err := capture.Check(r.t.Context(), sides.target, r.env.Run, captured(r.env))
	r.must(err)
	for _, c := range changes {
		r.t.Errorf("after %s the target looks touched: %s", after, c.Text)
	}
}

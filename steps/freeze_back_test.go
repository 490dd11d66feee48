package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Between the steps that make the way back ready and the freeze, somebody alters the target: that is said before the hold, and
// another shape ends the attempt.
func TestTamperingWithTheWayBack(t *testing.T) {
	r := following(t, "")
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.target, "ALTER TABLE shop.customer ADD COLUMN extra int")
	r.exec(r.source, "ALTER TABLE shop.customer DISABLE TRIGGER ALL; ALTER TABLE shop.customer ENABLE TRIGGER ALL")
	r.must(r.catchUp()) // loads the table again, and must not take that column for its own
	r.must(r.walk(t.Context(), newVerify(r.env)))
	if err := r.walk(t.Context(), newFreeze(r.env, nil)); err == nil || !strings.Contains(err.Error(), "no way back") || !strings.Contains(err.Error(), "extra") || engine.HintOf(err) == "" {
		t.Fatalf("with another column on the target: %v, hint %q", err, engine.HintOf(err))
	}
	if err := try(t, r.source, "UPDATE shop.customer SET name = name || '!' WHERE id = 7"); err != nil {
		t.Errorf("the source after that: %v", err)
	}
	r.exec(r.target, `ALTER TABLE shop.customer DROP COLUMN extra`)
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING upper(name); ALTER TABLE shop.customer ALTER name TYPE text USING lower(name)")
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	if !r.heard("after this cutover there is no way back") {
		t.Error("nobody was told, before the hold, of what was touched on the target")
	}
	back, err := WayBack(t.Context(), r.env)
	r.must(err)
	if back.Possible || !strings.Contains(back.Why, "customer") {
		t.Errorf("after the flip the way back is %+v", back)
	}
}

// What the run itself carries to the target after the way back was made ready costs it nothing.
func TestWayBackOutlivesWhatIsCarried(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	for _, ddl := range []string{
		"ALTER TABLE shop.event DETACH PARTITION shop.event_2026; DROP TABLE shop.event_2026",
		"ALTER TABLE shop.customer ADD COLUMN late int DEFAULT 3",
		"ALTER TABLE shop.customer DISABLE TRIGGER ALL; UPDATE shop.customer SET late = 4 WHERE id = 3; ALTER TABLE shop.customer ENABLE TRIGGER ALL",
	} {
		r.exec(r.source, ddl)
		r.must(r.catchUp())
	}
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newFreeze(r.env, nil)))
	back, err := WayBack(t.Context(), r.env)
	r.must(err)
	if !back.Possible {
		t.Errorf("after the flip the way back is %+v", back)
	}
}

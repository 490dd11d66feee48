package steps

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Between the steps that make the way back ready and the freeze, somebody alters the target. What is about our triggers alone
// is made right before any writer waits, and the first write on the target finds them; another shape ends the attempt.
func TestTamperingWithTheWayBack(t *testing.T) {
	r := following(t, "")
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.target, "ALTER TABLE shop.customer ADD COLUMN extra int")
	if err := r.walk(t.Context(), newFreeze(r.env, nil)); err == nil || !strings.Contains(err.Error(), "no way back") || !strings.Contains(err.Error(), "extra") || engine.HintOf(err) == "" {
		t.Fatalf("with another column on the target: %v, hint %q", err, engine.HintOf(err))
	}
	if err := try(t, r.source, "UPDATE shop.customer SET name = name || '!' WHERE id = 7"); err != nil {
		t.Errorf("the source after that: %v", err)
	}
	r.exec(r.target, `ALTER TABLE shop.customer DROP COLUMN extra`)
	r.exec(r.target, `DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT DISTINCT tgrelid FROM pg_trigger WHERE tgname LIKE 'pgrunbook\_capture\_%' LOOP
		EXECUTE format('ALTER TABLE %s DISABLE TRIGGER ALL', t); EXECUTE format('ALTER TABLE %s ENABLE TRIGGER ALL', t); END LOOP; END $$`)
	mended := func() {
		t.Helper()
		if err := r.walk(t.Context(), newFreeze(r.env, nil)); !errors.Is(err, errMended) {
			t.Fatalf("with a touched target: %v", err)
		}
	}
	mended() // the gate
	r.must(r.walk(t.Context(), newVerify(r.env)))
	mended() // the captures
	r.must(r.walk(t.Context(), newVerify(r.env)))

	// A rewrite fires no trigger and leaves every gate where it is: its rows are compared before the flip.
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING upper(name)")
	mended()
	if err := r.walk(t.Context(), newVerify(r.env)); engine.ClassOf(err) != engine.ClassDifferences {
		t.Fatalf("with other values on the target the comparison says %v", err)
	}
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING lower(name)")
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

package steps

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Where comparisons count rows, rows that somebody may have changed on the target are compared all the same, whoever accepted
// the touch and died, and whatever else was counted since.
func TestTouchedTargetIsComparedByRows(t *testing.T) {
	r := following(t, `verify { mode = "count" }`)
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	freeze := func(want error, text string) {
		t.Helper()
		err := r.walk(t.Context(), newFreeze(r.env, nil))
		if !errors.Is(err, want) || !strings.Contains(err.Error(), text) || engine.HintOf(err) == "" {
			t.Fatalf("with a touched target: %v, hint %q", err, engine.HintOf(err))
		}
	}
	differs := func(when string) {
		t.Helper()
		if err := r.walk(t.Context(), newVerify(r.env)); engine.ClassOf(err) != engine.ClassDifferences {
			t.Fatalf("%s the comparison says %v", when, err)
		}
	}
	equal := func() {
		t.Helper()
		r.must(r.walk(t.Context(), newVerify(r.env)))
	}
	died := func() { // a verify that accepted what it saw and compared nothing
		t.Helper()
		sides, err := openSides(t.Context(), r.env, "verify")
		r.must(err)
		defer sides.close(t.Context())
		r.must(recaptureTarget(t.Context(), r.env, sides.target, r.env.Journal.Checkpoint(verifyID, r.env.Sink)))
	}
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING upper(name)")
	if err := VerifyNow(t.Context(), r.env, r.env.Sink); err != nil {
		t.Fatalf("by numbers both sides are not equal: %v", err)
	}
	freeze(errMended, "customer")
	died()
	differs("after a death")
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING lower(name)")
	freeze(errMended, "customer")
	equal()

	// What is touched between an attempt's look and its mend is accepted with what it saw, and compared all the same.
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING upper(name)")
	died()
	facts := "SELECT count(*)::text FROM pgrunbook.event WHERE data -> 'finding' ->> 'code' = 'CMP004' AND data ->> 'message' LIKE '%customer%' AND data -> 'kept' IS NOT NULL"
	r.want(r.target, facts, "1")
	r.want(r.target, facts+" AND (data -> 'kept')::text LIKE '%customer%'", "0") // no secret is taken from a fact: it holds no text of others
	freeze(errMended, "may have changed")
	differs("after another look")
	r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING lower(name)")
	died()
	equal()

	// Past the gate alone.
	r.exec(r.target, `ALTER TABLE shop.customer DISABLE TRIGGER "!pgrunbook_gate"; UPDATE shop.customer SET name = 'past it' WHERE id = 2`)
	freeze(errMended, "gate")
	differs("after a gate that was off")
	r.exec(r.source, "UPDATE shop.customer SET name = name WHERE id = 2")
	equal()

	// And put back as it was: what was captured there tells of it, until rows were found equal.
	if n := r.waitOnTarget(); n != 0 {
		t.Errorf("%d changes wait on the target after an equal comparison", n)
	}
	r.exec(r.target, `ALTER TABLE shop.customer DISABLE TRIGGER "!pgrunbook_gate"; UPDATE shop.customer SET name = 'past it' WHERE id = 4; ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER "!pgrunbook_gate"`)
	freeze(errMended, "past its gate")
	differs("after a gate that was off and is on again")
	freeze(errMended, "past its gate")
	r.exec(r.source, "UPDATE shop.customer SET name = name WHERE id = 4")
	equal()

	// A column that is made anew is empty, with or without the way back.
	r.exec(r.target, "ALTER TABLE shop.customer DROP COLUMN name; ALTER TABLE shop.customer ADD COLUMN name int")
	freeze(errOneWay, "name")
	differs("with a column that was dropped")
	r.exec(r.target, "ALTER TABLE shop.customer DROP COLUMN name; ALTER TABLE shop.customer ADD COLUMN name text NOT NULL DEFAULT ''; ALTER TABLE shop.customer ALTER name DROP DEFAULT")
	freeze(errMended, "name")
	differs("with a column that was made anew")
	r.exec(r.source, "UPDATE shop.customer SET name = name")
	equal()

	// What inherits on the target alone is written to past its gate.
	r.exec(r.target, "CREATE TABLE public.parent (id int NOT NULL, name text NOT NULL); ALTER TABLE shop.customer INHERIT public.parent; UPDATE public.parent SET name = 'through it' WHERE id = 3")
	freeze(errOneWay, "inherit")
	differs("with a parent on the target")
	r.exec(r.target, "ALTER TABLE shop.customer NO INHERIT public.parent")
	freeze(errMended, "inherit")
	r.exec(r.source, "UPDATE shop.customer SET name = name WHERE id = 3")
	equal()
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	r.wayBackOpen()
	r.sameTables(t)
}

package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

const unvalidatedSetup = `
CREATE DOMAIN shop.small AS int;
CREATE DOMAIN shop.other AS int CONSTRAINT few CHECK (VALUE < 1000);
CREATE TABLE shop.tiny (id int PRIMARY KEY, v shop.small, w shop.other);
INSERT INTO shop.tiny SELECT g, g, g FROM generate_series(1, 20) g`

// A check that the source has not validated holds rows that break it: on their way in a delta, in a table that is
// loaded again or reloaded inside the freeze. So the target gets it at the flip, or once the source has validated it.
func TestUnvalidatedChecksWaitForTheFlip(t *testing.T) {
	r := newRig(t, "schema { on_ddl = \"carry\" }\n"+patient)
	r.exec(r.source, unvalidatedSetup)
	r.replan()
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	checks := `SELECT coalesce(string_agg(conname || ' ' || convalidated, ', ' ORDER BY conname, convalidated), '') FROM pg_constraint WHERE contype = 'c' AND connamespace = 'shop'::regnamespace`

	r.exec(r.source, `UPDATE shop.invoice SET total = total WHERE id > 10; UPDATE shop.tiny SET v = v WHERE id > 10;
		ALTER TABLE shop.invoice ADD CONSTRAINT low CHECK (total < 5) NOT VALID; ALTER TABLE shop.log ADD CONSTRAINT short CHECK (line = '') NOT VALID;
		ALTER DOMAIN shop.small ADD CONSTRAINT few CHECK (VALUE < 5) NOT VALID; ALTER DOMAIN shop.small ADD CONSTRAINT fewer CHECK (VALUE < 4) NOT VALID`)
	r.must(r.catchUp())
	r.sameTables(t)
	for _, table := range []string{"shop.invoice", "shop.tiny"} {
		r.exec(r.source, "ALTER TABLE "+table+" DISABLE TRIGGER ALL; ALTER TABLE "+table+" ENABLE TRIGGER ALL")
	}
	r.must(r.catchUp())
	if !r.heard("invoice") || !r.heard("the table is loaded again") {
		t.Error("no table was loaded again: this proves nothing")
	}
	r.sameTables(t)
	r.want(r.target, checks, "few true")

	r.exec(r.source, `UPDATE shop.tiny SET v = 1 WHERE v > 3; ALTER DOMAIN shop.small VALIDATE CONSTRAINT fewer`)
	r.must(r.catchUp())
	r.want(r.target, checks, "few true, fewer true")
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.want(r.target, checks, "few false, few true, fewer true, low false, short false")
	if r.heard("definitions differ between both sides") {
		t.Error("a check that the flip made is told to differ")
	}
	r.sameTables(t)
	r.sameDefinitions(t)

	// On the way back a reload meets such a check of the source itself: once, and what to do is said.
	err := r.walk(t.Context(), newRollback(r.env, nil))
	if pg.SQLState(err) != "23514" || !strings.Contains(engine.HintOf(err), "Drop on the source") {
		t.Fatalf("a reload against a check: %v, hint %q", err, engine.HintOf(err))
	}
	r.exec(r.source, "BEGIN READ WRITE; ALTER TABLE shop.log DROP CONSTRAINT short; COMMIT")
	r.must(r.walk(t.Context(), newRollback(r.env, nil)))
	r.exec(r.source, "BEGIN READ WRITE; ALTER TABLE shop.log ADD CONSTRAINT short CHECK (line = '') NOT VALID; COMMIT")
	r.sameTables(t)
	r.sameDefinitions(t)
}

// A first cutover leaves such a check on the target. Should rows be read again before the second one, they come, and it is
// made once more at the flip, whatever on_ddl says.
func TestUnvalidatedChecksLetRowsComeAgain(t *testing.T) {
	r := newRig(t, patient)
	r.exec(r.source, "ALTER TABLE shop.invoice ADD CONSTRAINT low CHECK (total < 5) NOT VALID")
	r.replan()
	const there = "SELECT count(*)::text FROM pg_constraint WHERE conname = 'low' AND NOT convalidated"
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.want(r.target, there, "1")
	r.must(r.walk(t.Context(), newRollback(r.env, nil)))
	r.exec(r.source, "BEGIN READ WRITE; ALTER TABLE shop.invoice DISABLE TRIGGER ALL; ALTER TABLE shop.invoice ENABLE TRIGGER ALL; UPDATE shop.customer SET name = 'again' WHERE id = 2; COMMIT")
	r.must(r.catchUp())
	if !r.heard("the table is loaded again") {
		t.Error("no table was loaded again: this proves nothing")
	}
	r.want(r.target, there, "0")
	r.must(r.env.Journal.Reopen(t.Context(), "freeze", true, "it is a test"))
	r.must(r.walk(t.Context(), newVerify(r.env), newFreeze(r.env, nil)))
	r.want(r.target, there, "1")
	r.sameTables(t)
}

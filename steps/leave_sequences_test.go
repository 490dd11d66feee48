package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const sequencesSetup = shopSetup + `
CREATE SEQUENCE shop.spare; CREATE SEQUENCE shop.loose; CREATE SEQUENCE shop.kept; CREATE SEQUENCE shop.taken; CREATE SEQUENCE shop.logged;
ALTER TABLE shop.invoice ALTER customer SET DEFAULT nextval('shop.taken');
ALTER TABLE shop.log ALTER line SET DEFAULT nextval('shop.logged')`

// presentSQL gives the sequences of a side that a test drops.
const presentSQL = "SELECT coalesce(string_agg(relname, ' ' ORDER BY relname), '') FROM pg_class WHERE relkind = 'S' AND relname IN ('spare', 'loose', 'kept', 'taken', 'logged', 'serial_id_seq')"

// A sequence that is dropped on the source goes on the target as a table does, also after catch_up was done: with what
// used it there, which changed with it. One that somebody uses on the target alone stays, named.
func TestF41SequencesDroppedLate(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, sequencesSetup, `schema { on_ddl = "carry" }
cutover { max_write_block = "60s" }`)
	gates := []engine.Step{newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)}
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	for _, s := range []stage{
		{"F41 with a default of a table that is followed, and of one that is not", `ALTER TABLE shop.invoice ALTER customer DROP DEFAULT; ALTER TABLE shop.log ALTER line DROP DEFAULT; DROP SEQUENCE shop.taken, shop.logged`, `"shop"."taken" was dropped on the source: dropped on the target too`},
		{"F41 a new table's", `CREATE TABLE shop.serial (id serial PRIMARY KEY, v text); INSERT INTO shop.serial (v) VALUES ('s')`, `"shop"."serial" is new`},
		{"F41 which becomes an identity's", `ALTER TABLE shop.serial ALTER id DROP DEFAULT; DROP SEQUENCE shop.serial_id_seq; ALTER TABLE shop.serial ALTER id ADD GENERATED ALWAYS AS IDENTITY (START 5)`, ``},
	} {
		t.Run(s.name, func(t *testing.T) { r.carries(t, s) })
	}
	r.want(r.target, presentSQL, "kept loose serial_id_seq spare")
	r.must(r.walk(t.Context(), gates...))
	r.exec(r.source, "DROP SEQUENCE shop.spare")
	err := r.walk(t.Context(), newFreeze(r.env, nil))
	if err == nil || !strings.Contains(err.Error(), `sequence "shop"."spare" was dropped on the source`) || !strings.Contains(engine.HintOf(err), "Run the same command again") {
		t.Fatalf("a sequence that was dropped before the freeze: %v, hint %q", err, engine.HintOf(err))
	}
	r.want(r.target, presentSQL, "kept loose serial_id_seq spare")
	r.must(r.catchUp())
	r.want(r.target, presentSQL, "kept loose serial_id_seq")
	r.exec(r.target, "SET pgrunbook.mark = '"+r.env.Run.Mark+"'; ALTER TABLE shop.lock ADD COLUMN mine bigint DEFAULT nextval('shop.kept')")
	r.exec(r.source, "DROP SEQUENCE shop.kept, shop.loose")
	r.must(r.catchUp())
	r.want(r.target, presentSQL, "kept serial_id_seq")
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	if !r.heard(`sequence "shop"."kept" was dropped on the source and is still on the target`) {
		t.Error("nobody was told of the sequence that stays")
	}
	r.want(r.target, presentSQL, "kept serial_id_seq")
}

// Without "carry" it stops the run with the cause, as a table does, in catch_up and before the freeze.
func TestF41SequenceDroppedWithoutCarry(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, sequencesSetup, `cutover { max_write_block = "60s" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.source, "DROP SEQUENCE shop.spare")
	if err := r.walk(t.Context(), newFreeze(r.env, nil)); err == nil || !strings.Contains(err.Error(), `sequence "shop"."spare" was dropped on the source`) {
		t.Fatalf("before the freeze: %v", err)
	}
	err := r.catchUp()
	if err == nil || !strings.Contains(err.Error(), "this sequence was dropped on the source") || !strings.Contains(engine.HintOf(err), `on_ddl = "carry"`) {
		t.Fatalf("in catch_up: %v, hint %q", err, engine.HintOf(err))
	}
	r.want(r.target, presentSQL, "kept logged loose spare taken")
	r.exec(r.source, "CREATE SEQUENCE shop.spare")
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
}

package steps

import (
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

const modesSetup = `
CREATE FUNCTION shop.audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO shop.log VALUES (TG_NAME); RETURN NULL; END $$;
CREATE TRIGGER was_off AFTER UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.audit();
CREATE TRIGGER was_on AFTER UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.audit();
CREATE TRIGGER was_always AFTER UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.audit();
CREATE TRIGGER in_time AFTER UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.audit();
ALTER TABLE shop.customer DISABLE TRIGGER was_off; ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER was_always;
CREATE RULE rule_on AS ON DELETE TO shop.invoice DO ALSO INSERT INTO shop.log VALUES ('rule');
CREATE POLICY mine ON shop.invoice TO pg_monitor USING (total > 0); CREATE STATISTICS shop.both ON customer, total FROM shop.invoice;`

// Triggers, rules and policies that the target has already are, after the flip, for whom and what they are on the source by
// then: ALTER leaves their definitions alone and changes their modes and roles. Before it nothing of them fires for a pass.
func TestModesAndRolesAreThoseOfTheFlip(t *testing.T) {
	r := newRig(t, "schema { on_ddl = \"carry\" }\n"+patient)
	r.exec(r.source, modesSetup)
	r.replan()
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.source, `ALTER TABLE shop.customer ENABLE TRIGGER was_off; ALTER TABLE shop.customer DISABLE TRIGGER was_on; ALTER TABLE shop.customer ENABLE TRIGGER was_always;
		ALTER TABLE shop.invoice DISABLE RULE rule_on; ALTER POLICY mine ON shop.invoice TO pg_read_all_stats, pg_monitor; ALTER STATISTICS shop.both SET STATISTICS 77`)
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env)))
	r.want(r.target, "SELECT string_agg(r::text, ' ' ORDER BY r::text) FROM pg_policy, unnest(polroles) r (o), LATERAL (SELECT o::regrole) AS n (r) WHERE polname = 'mine'", "pg_monitor pg_read_all_stats")

	later := time.Now().UTC().Add(3 * time.Hour)
	r.env.Runbook.Cutover.Window = later.Format("15:04") + "-" + later.Add(time.Hour).Format("15:04")
	r.onEvent = func(e engine.Event) {
		if e.Kind == engine.EventWaiting && r.env.Runbook.Cutover.Window != "" { // what opens the target is written down by then
			r.exec(r.source, "ALTER TABLE shop.customer DISABLE TRIGGER in_time; UPDATE shop.customer SET name = 'late' WHERE id = 3")
			r.env.Runbook.Cutover.Window = ""
		}
	}
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	r.onEvent = nil
	if r.env.Runbook.Cutover.Window != "" {
		t.Error("no window was waited for: this proves nothing")
	}
	r.sameDefinitions(t)
	for _, e := range r.events {
		if f := e.Finding; f != nil && (f.Code == "CUT001" || f.Code == "RUN012" || f.Code == "CUT004") {
			t.Errorf("it is told that %s", f.Text)
		}
	}
	const lines = "SELECT string_agg(line, ' ' ORDER BY line) FROM shop.log WHERE line !~ '^l'"
	r.want(r.source, lines, "was_always was_off")
	r.exec(r.target, "UPDATE shop.customer SET name = 'after' WHERE id = 4; DELETE FROM shop.invoice WHERE id = 4")
	r.want(r.target, lines, "was_always was_always was_off was_off")
}

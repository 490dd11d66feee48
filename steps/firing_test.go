package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// A trigger that fires in any role would fire for the rows that a rollback carries to the source, and
// after that for those of a second cutover: both are refused by its name until it is disabled.
func TestFiringTriggersAreInTheWay(t *testing.T) {
	r := moved(t, "")
	trigger := `CREATE FUNCTION shop.more() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.name := NEW.name || ''!''; RETURN NEW; END';
		CREATE TRIGGER more BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.more(); ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER more`
	r.exec(r.source, trigger)
	back, err := WayBack(t.Context(), r.env)
	if err != nil || back.Possible || !strings.Contains(back.Why, `trigger more on "shop"."customer"`) || !strings.Contains(back.Hint, "DISABLE TRIGGER") {
		t.Errorf("the way back past a trigger: %+v, %v", back, err)
	}
	if err := FollowBack(t.Context(), r.env, r.env.Sink); err == nil || !strings.Contains(err.Error(), "trigger more") {
		t.Errorf("following past a trigger: %v", err)
	}
	r.exec(r.source, "ALTER TABLE shop.customer DISABLE TRIGGER more")
	if back, err := WayBack(t.Context(), r.env); err != nil || !back.Possible {
		t.Errorf("the way back: %+v, %v", back, err)
	}
	r.exec(r.target, trigger)
	for _, s := range []engine.Step{newCatchUp(r.env), newVerify(r.env)} {
		err = s.Apply(t.Context(), engine.StepPlan{}, abortSinkFor(r))
		if err == nil || !strings.Contains(err.Error(), "trigger more") || engine.HintOf(err) == "" {
			t.Errorf("passes of %s past a trigger of the target: %v", s.ID(), err)
		}
	}
	f, err := newFreeze(r.env, nil).(*freezeStep).build(t.Context(), abortSinkFor(r))
	r.must(err)
	defer f.close(t.Context())
	if err := f.silent(t.Context()); err == nil || !strings.Contains(err.Error(), "trigger more") {
		t.Errorf("passes before a freeze past a trigger of the target: %v", err)
	}
}

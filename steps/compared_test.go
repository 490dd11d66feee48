package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// TestWayBackIsShutWhileSidesDiffer: what verify found, or what somebody did to our triggers on the closed source,
// keeps the way back shut until a comparison finds both sides equal.
func TestWayBackIsShutWhileSidesDiffer(t *testing.T) {
	r := moved(t, "") // nothing was loaded
	shut := func(when, why string) {
		t.Helper()
		_, _, err := PlanBack(t.Context(), r.env)
		if why == "" && err != nil || why != "" && (engine.ClassOf(err) != engine.ClassDifferences || !strings.Contains(err.Error(), why) || !strings.Contains(engine.HintOf(err), "pgrunbook verify")) {
			t.Errorf("%s rollback says %v, hint %q", when, err, engine.HintOf(err))
		}
	}
	shut("before any comparison", "")
	if err := VerifyNow(t.Context(), r.env, r.env.Sink); engine.ClassOf(err) != engine.ClassDifferences {
		t.Fatalf("verify of an empty target says %v", err)
	}
	shut("after differences", `"shop"."customer"`)
	if err := r.walk(t.Context(), newRollback(r.env, nil)); engine.ClassOf(err) != engine.ClassDifferences {
		t.Errorf("the step says %v", err)
	}
	r.exec(r.source, `BEGIN; SELECT set_config('pgrunbook.mark', mark, true) FROM pgrunbook.side;
		DELETE FROM shop.invoice; DELETE FROM shop.customer; DELETE FROM shop.event; DELETE FROM shop.log; COMMIT`)
	r.must(VerifyNow(t.Context(), r.env, r.env.Sink))
	shut("after they were mended", "")

	r.exec(r.source, `ALTER TABLE shop.customer DISABLE TRIGGER ALL; ALTER TABLE shop.customer ENABLE TRIGGER ALL;
		DO $$ DECLARE t name; BEGIN FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop.customer'::regclass AND tgname LIKE '%pgrunbook%' LOOP
			EXECUTE format('ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER %I', t); END LOOP; END $$`)
	shut("after our triggers were off", `our triggers on "shop"."customer" were disabled`)
	r.must(VerifyNow(t.Context(), r.env, r.env.Sink))
	shut("once nothing was found behind them", "")

	st := Status{State: journal.Active, Writes: engine.Target, unlike: true}
	if got := st.next(); !strings.HasPrefix(got, "pgrunbook verify") {
		t.Errorf("next is %q", got)
	}
}

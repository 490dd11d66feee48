package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/compare"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
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
	r.env.Runbook.Verify.Mode = "count" // takes back nothing of it
	r.must((&verifyStep{env: r.env, mode: compare.Count}).remember(t.Context(), compare.Result{}, ""))
	shut("after equal numbers of rows", `"shop"."customer"`)
	r.exec(r.target, "INSERT INTO pgrunbook.flip (run, epoch, from_side, to_side, settled, outcome) SELECT id, epoch, 'target', 'source', now(), 'undone' FROM pgrunbook.run")
	shut("after an attempt that was undone", `"shop"."customer"`)
	if err := r.walk(t.Context(), newRollback(r.env, nil)); engine.ClassOf(err) != engine.ClassDifferences {
		t.Errorf("the step says %v", err)
	}
	r.env.AcceptDifferences = "dba"
	if err := r.walk(t.Context(), newRollback(r.env, nil)); err == nil || !strings.Contains(err.Error(), "it is not loaded to its end") {
		t.Errorf("with differences that are accepted the step says %v", err)
	}
	r.env.AcceptDifferences = ""
	r.want(r.target, "SELECT given_by FROM pgrunbook.approval WHERE name = 'accept-differences'", "dba")
	r.exec(r.source, `BEGIN; SELECT set_config('pgrunbook.mark', mark, true) FROM pgrunbook.side;
		DELETE FROM shop.invoice; DELETE FROM shop.customer; DELETE FROM shop.event; DELETE FROM shop.log; COMMIT`)
	r.must(VerifyNow(t.Context(), r.env, r.env.Sink))
	if !r.heard("every row is compared, not numbers of rows") {
		t.Error("what a comparison by hash found was looked at by numbers of rows")
	}
	shut("after they were mended", "")

	r.exec(r.source, `ALTER TABLE shop.customer DISABLE TRIGGER ALL; ALTER TABLE shop.customer ENABLE TRIGGER ALL;
		DO $$ DECLARE t name; BEGIN FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop.customer'::regclass AND tgname LIKE '%pgrunbook%' LOOP
			EXECUTE format('ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER %I', t); END LOOP; END $$`)
	shut("after our triggers were off", `our triggers on "shop"."customer" were disabled`)
	r.env.AcceptDifferences = "dba"
	p, _, err := PlanBack(t.Context(), r.env)
	if err != nil || len(p.Findings) != 1 || p.Findings[0].Code != acceptedAs || !strings.Contains(p.Findings[0].Text, "dba goes back") || !strings.Contains(p.Findings[0].Text, "were disabled") {
		t.Errorf("accepted, the plan says %+v, %v", p, err)
	}
	r.env.AcceptDifferences = ""
	shut("without the acceptance", "were disabled")
	r.must(VerifyNow(t.Context(), r.env, r.env.Sink))
	shut("once nothing was found behind them", "")
	r.exec(r.target, "INSERT INTO pgrunbook.flip (run, epoch, from_side, to_side, settled, outcome) SELECT id, epoch, 'target', 'source', now(), 'undone' FROM pgrunbook.run")
	r.exec(r.source, `DO $$ DECLARE t name; BEGIN FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop.customer'::regclass AND tgname = '!pgrunbook_gate' LOOP
		EXECUTE format('ALTER TABLE shop.customer ENABLE TRIGGER %I', t); EXECUTE format('ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER %I', t); END LOOP; END $$`)
	shut("after an attempt that mended the gate and was undone", "")
}

// TestNextWhileSidesDiffer: what a person has to do first comes first, and nobody is sent to a rollback that refuses.
func TestNextWhileSidesDiffer(t *testing.T) {
	for want, st := range map[string]Status{
		"pgrunbook verify, once what differs is mended as it says; or pgrunbook finish, to stay":                      {Writes: engine.Target, goingBack: true},
		"pgrunbook verify, once what differs is mended as it says":                                                    {Writes: engine.Source, Step: "verify"},
		"pgrunbook verify: where it finds both sides equal, the way back is open again; or pgrunbook finish, to stay": {Writes: engine.Target, touched: true},
		"pgrunbook unpause":             {Writes: engine.Target, Paused: true},
		"pgrunbook approve go --by WHO": {Writes: engine.Target, asks: "go", Step: "cutover.after.approve.go"},
		"pgrunbook apply":               {Writes: engine.Target, Step: "cutover.after.sql.stats"},
	} {
		st.State, st.unlike = journal.Active, true
		if got := st.next(); got != want {
			t.Errorf("next is %q, want %q", got, want)
		}
	}
}

// TestMendsByIdentity: without a key no row that is written again is carried anew, and an UPDATE ends append_only.
func TestMendsByIdentity(t *testing.T) {
	name := scope.Name{Schema: "shop", Name: "t"}
	for identity, keyed := range map[scope.Identity]bool{scope.ByKey: true, scope.FullRow: false, scope.AppendOnly: false} {
		for _, from := range []engine.Side{engine.Source, engine.Target} {
			s := &verifyStep{from: from, env: &Env{Scope: &scope.Scope{Tables: []scope.Table{{Name: name, Identity: identity}}}}}
			text := s.mending([]compare.TableResult{{Name: name}})
			if strings.Contains(text, "UPDATE") != keyed || strings.Contains(text, "pgrunbook.mark") == keyed || strings.Contains(text, "pgrunbook abort") != (from == engine.Source) {
				t.Errorf("%s from the %s: %s", identity, from, text)
			}
		}
	}
}

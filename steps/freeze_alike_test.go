package steps

import (
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// TestReplacedAtTheFreeze: what no row depends on may be replaced until the very end. While a window is waited for it
// stops the freeze, and catch_up carries it, as does a trigger that fires for passes. Later than that every piece of it is
// named, with what makes the target alike.
func TestReplacedAtTheFreeze(t *testing.T) {
	r := newRig(t, patient)
	r.env.Runbook.Schema.OnDDL = "carry"
	r.exec(r.source, `CREATE FUNCTION shop.code() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE VIEW shop.codes AS SELECT shop.code() AS n;
		CREATE FUNCTION shop.mark() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER mark BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.mark()`)
	ctx := t.Context()
	r.must(r.walk(ctx, newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	values := "SELECT (SELECT shop.code()) || ' ' || (SELECT string_agg(v::text, '') FROM shop.codes v)"
	for _, c := range []struct{ url, sql, undo, says, hint string }{
		{r.source, "CREATE OR REPLACE FUNCTION shop.code() RETURNS int LANGUAGE sql AS 'SELECT 2'", "", `function "shop"."code"() changed on the source`, "catch_up carries it"},
		{r.target, "ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER mark", "ALTER TABLE shop.customer ENABLE TRIGGER mark", "on the target trigger mark on", "Give others the mode that they have on the source"},
	} {
		later := time.Now().UTC().Add(3 * time.Hour)
		r.env.Runbook.Cutover.Window = later.Format("15:04") + "-" + later.Add(time.Hour).Format("15:04")
		r.onEvent = func(e engine.Event) {
			if e.Kind == engine.EventWaiting && r.env.Runbook.Cutover.Window != "" {
				r.exec(c.url, c.sql)
				r.env.Runbook.Cutover.Window = ""
			}
		}
		if err := r.walk(ctx, newFreeze(r.env, nil)); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(engine.HintOf(err), c.hint) {
			t.Fatalf("%s, while the window was waited for: %v", c.sql, err)
		}
		r.exec(c.url, c.undo)
		r.must(r.catchUp())
	}
	r.exec(r.source, "UPDATE shop.customer SET name = 'still here' WHERE id = 1")
	r.want(r.target, values, "2 (2)")

	r.onEvent = func(e engine.Event) {
		if e.Mark == "hold" {
			r.exec(r.source, "CREATE OR REPLACE FUNCTION shop.code() RETURNS int LANGUAGE sql AS 'SELECT 3'; CREATE OR REPLACE VIEW shop.codes AS SELECT shop.code() AS n, 4 AS more")
		}
	}
	r.must(r.walk(ctx, newFreeze(r.env, nil)))
	r.onEvent = nil
	r.want(r.target, values, "2 (2)")
	told := 0
	for _, e := range r.events {
		if f := e.Finding; f != nil && f.Code == "CUT001" {
			told++
			_, sql, found := strings.Cut(f.Fix, "On the target: ")
			if !found || !strings.HasPrefix(f.Text, "definitions differ between both sides: ") {
				t.Errorf("it is told as %q, with the way out %q", f.Text, f.Fix)
			}
			r.exec(r.target, sql)
		}
	}
	if told != 2 {
		t.Errorf("%d differences were told, want the function's and the view's", told)
	}
	r.want(r.target, values, "3 (3,4)")
	r.want(r.target, "SELECT tgenabled::text FROM pg_trigger WHERE tgname = 'mark'", "O")
}

package steps

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const (
	wideRows  = 300
	rowBytes  = 10_000
	wayBytes  = 2_000_000 // per second that the way to the target lets through: a pass of these rows takes over a second
	mostLooks = 20        // by then it is said, or never
)

const wideSetup = shopSetup + `
CREATE TABLE shop.wide (id int PRIMARY KEY, n int, pad text);
INSERT INTO shop.wide SELECT g, 0, '' FROM generate_series(1, 600) g;`

// An application that writes more than the way to the target carries: catch_up says so in its events, with both rates and
// what helps, and goes on; when the writers rest it takes that back and is done.
func TestApplicationThatIsTooFast(t *testing.T) {
	sourceMajor, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	cluster := testpg.Shared(t, targetMajor)
	way, direct := testpg.ListenT(t, cluster), testpg.NewDB(t, cluster)
	r := newRigOn(t, testpg.NewDB(t, testpg.Shared(t, sourceMajor)), way.URL(direct), wideSetup, "")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))

	app, err := pgx.Connect(t.Context(), r.source)
	r.must(err)
	defer func() { _ = app.Close(context.Background()) }()
	writes := func(rows int) {
		if _, err := app.Exec(t.Context(), "UPDATE shop.wide SET n = n + 1, pad = repeat('x', $2) WHERE id <= $1", rows, rowBytes); err != nil {
			t.Error(err)
		}
	}
	looks, resting := 0, false
	var said []engine.Event
	r.onEvent = func(e engine.Event) {
		switch {
		case e.Kind == engine.EventLag && strings.HasPrefix(e.Message, "the target is ") && !resting:
			// Each pass has a little more to carry than the one before it.
			looks++
			writes(wideRows + 10*looks)
			resting = looks == mostLooks
		case strings.HasPrefix(e.Message, "will not converge"):
			said, resting = append(said, e), true
		}
	}
	way.Bandwidth(wayBytes)
	writes(wideRows)
	r.must(r.catchUp())
	if way.Fired(testpg.FaultBandwidth) == 0 {
		t.Error("nothing went over the slow way")
	}
	way.Heal()

	if len(said) != 1 {
		t.Fatalf("it was said %d times, in %d passes: %+v", len(said), looks, said)
	}
	e := said[0]
	if e.Kind != engine.EventWaiting || e.Level != "warn" || e.Step != catchUpID || e.Pending < wideRows || e.Reason == "" || !strings.Contains(e.Hint, "pgrunbook set workers=N") {
		t.Errorf("the event says %+v", e)
	}
	var changed, applied int
	if _, err := fmt.Sscanf(e.Message, "will not converge: the application changes %d rows/s, %d rows/s are applied", &changed, &applied); err != nil {
		t.Fatalf("%q has not both rates: %v", e.Message, err)
	}
	// A pass that can be too slow takes a second or more.
	most := wideRows + 10*looks
	if changed <= 0 || applied <= 0 || changed > most || applied > most {
		t.Errorf("%q, and %d rows went in a pass", e.Message, most)
	}
	if !r.heard("the backlog falls again") {
		t.Error("nobody heard that it was over")
	}
	r.same("shop.wide")
}

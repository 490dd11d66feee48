package steps

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// A crash empties UNLOGGED tables and leaves no key in any delta: without the sentinel the target
// keeps the rows for ever.
func TestF11W5CrashThatEmptiesUnloggedTables(t *testing.T) {
	r := newRig(t, "")
	source := testpg.StartT(t, testpg.Options{Major: 15})
	if err := source.Exec(t.Context(), "postgres", "CREATE DATABASE shop"); err != nil {
		t.Fatal(err)
	}
	r.source = testpg.Adopt(t, source, "shop")
	r.exec(r.source, shopSetup+"CREATE UNLOGGED TABLE shop.session (id int PRIMARY KEY, data text); INSERT INTO shop.session SELECT g, 's' FROM generate_series(1, 50) g")
	r.again(t)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.same("shop.session")
	r.env.Journal.Close(context.Background())
	if err := source.KillPostmaster(); err != nil {
		t.Fatal(err)
	}
	if err := source.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.exec(r.source, "INSERT INTO shop.session VALUES (1000, 'after')")
	r.must(r.catchUp())
	r.same("shop.session", "shop.customer")
	if !r.heard("emptied this UNLOGGED table") {
		t.Error("nobody was told of the crash")
	}
	r.exec(r.source, "INSERT INTO shop.session VALUES (1001, 'later')")
	r.must(r.catchUp())
	r.same("shop.session")

	crash := fmt.Sprintf("SET pgrunbook.mark = '%s'; TRUNCATE shop.session, pgrunbook.sentinel", r.env.Run.Mark) // what one does to them
	r.exec(r.target, crash)
	r.must(r.catchUp())
	r.same("shop.session")

	// Another table is loaded again while nobody has seen the crash yet.
	var once sync.Once
	r.onEvent = func(e engine.Event) {
		if strings.Contains(e.Message, "invoice") && strings.Contains(e.Message, "loaded again") {
			once.Do(func() { r.exec(r.source, crash) })
		}
	}
	r.exec(r.source, "ALTER TABLE shop.invoice ENABLE TRIGGER ALL")
	r.must(r.catchUp())
	once.Do(func() { t.Error("no other table was loaded again") })
	r.must(r.catchUp())
	r.want(r.target, "SELECT count(*)::text FROM shop.session", "0")
}

// While the target takes writes a crash of the source takes rows that no reverse pass brings back: there is no
// way back, and nobody goes it.
func TestF11W5CrashOfTheSourceOnTheWayBack(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup+"CREATE UNLOGGED TABLE shop.session (id int PRIMARY KEY, data text); INSERT INTO shop.session SELECT g, 's' FROM generate_series(1, 50) g", patient)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	r.flipped()
	f, err := newRollback(r.env, nil).(*rollbackStep).build(t.Context(), r.env.Journal.Checkpoint("rollback", r.env.Sink))
	r.must(err)
	defer f.close(context.Background())
	decide := f.Decide
	f.Decide = func(ctx context.Context, cert *freeze.Certificate) error { // later than any look but the last one
		r.exec(r.source, fmt.Sprintf("SET pgrunbook.mark = '%s'; TRUNCATE shop.session, pgrunbook.sentinel", r.env.Run.Mark)) // what a crash does to them
		return decide(ctx, cert)
	}
	lost := func(err error) bool { return err != nil && strings.Contains(err.Error(), errEmptied.Error()) }
	if _, err := f.Attempt(t.Context(), 1); !lost(err) || !forGood(err) {
		t.Errorf("the freeze: %v", err)
	}
	owner, err := r.env.Journal.Owner(t.Context())
	r.must(err)
	if owner.Side != engine.Target {
		t.Errorf("the %s takes writes", owner.Side)
	}
	if _, err := f.Attempt(t.Context(), 2); !lost(err) {
		t.Errorf("the next freeze: %v", err)
	}
	bounded, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := Follow(bounded, r.env, journal.NewMemory().Checkpoint(followID, r.env.Sink)); !lost(err) {
		t.Errorf("reverse passes: %v", err)
	}
}

// again begins another run, on a new target, from the rig's source.
func (r *rig) again(t *testing.T) {
	t.Helper()
	_, r.target = testpg.Pair(t)
	text := "runbook \"shop\" {}\nsource { url = \"" + r.source + "\" }\ntarget { url = \"" + r.target + "\" }\ntables { include = [\"shop.*\"] }\n"
	rb, diags := runbook.Parse("shop.runbook.hcl", []byte(text), runbook.Options{})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	env, err := NewEnv(rb, nil, r.env.Sink)
	r.must(err)
	r.env = env
	r.open()
}

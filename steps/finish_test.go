package steps

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// moved walks what stands before a cutover and flips.
func moved(t *testing.T, extra string) *rig {
	t.Helper()
	r := newRig(t, extra)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newArm(r.env), newReverse(r.env)))
	r.flipped()
	return r
}

// readOnlyByDefault is what the freeze leaves on the closed side's database.
const readOnlyByDefault = `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`

func TestR4FinishLeavesOnlyTheClosedGate(t *testing.T) {
	r := moved(t, "rollback { keep_for = \"72h\" }")
	r.exec(r.source, readOnlyByDefault)
	step := newFinish(r.env, FinishOptions{})
	if err := r.walk(t.Context(), step); err == nil || !strings.Contains(engine.HintOf(err), "--now") {
		t.Fatalf("before keep_for is over: %v, hint %q", err, engine.HintOf(err))
	}
	step = newFinish(r.env, FinishOptions{Now: true})
	ctx, cancel := context.WithCancel(t.Context())
	r.onEvent = func(e engine.Event) {
		if strings.Contains(e.Message, "the target holds nothing of ours") {
			cancel() // die between the two sides
		}
	}
	if err := r.walk(ctx, step); err == nil {
		t.Fatal("a cancelled step succeeded")
	}
	r.onEvent = nil
	r.must(r.walk(t.Context(), step))
	told := slices.IndexFunc(r.events, func(e engine.Event) bool { return strings.Contains(e.Hint, gate.RemoveStatement()) })
	if told < 0 {
		t.Fatal("nobody was told how to take the gate off")
	}
	r.must(CloseRun(t.Context(), r.env, FinishOptions{Now: true}))
	var pgErr *pgconn.PgError
	if err := try(t, r.source, "INSERT INTO shop.log VALUES ('late')"); !errors.As(err, &pgErr) || pgErr.Code != "25006" {
		t.Errorf("the source took a write: %v", err)
	}
	r.exec(r.target, "INSERT INTO shop.customer VALUES (1, 'here'); INSERT INTO shop.log VALUES ('x')")
	dump, err := testpg.SchemaDump(t.Context(), r.target)
	r.must(err)
	if strings.Contains(dump, "pgrunbook") {
		t.Errorf("the target still has something of ours:\n%s", dump)
	}
	r.exec(r.source, r.events[told].Hint)
	r.exec(r.source, "INSERT INTO shop.log VALUES ('writable again')")
	r.sameSource("after the one line")
}

func TestFinishOpensTheSourceWhereAsked(t *testing.T) {
	r := moved(t, "finish { source = \"open\" }")
	r.exec(r.source, readOnlyByDefault)
	r.must(r.walk(t.Context(), newFinish(r.env, FinishOptions{})))
	r.sameSource("after finish { source = \"open\" }")
	r.exec(r.source, "INSERT INTO shop.log VALUES ('free')")
}

func TestFinishWithoutTheSource(t *testing.T) {
	r := moved(t, "")
	o := FinishOptions{WithoutSource: true}
	if err := r.walk(t.Context(), newFinish(r.env, o)); err == nil || !strings.HasPrefix(engine.HintOf(err), "Let finish clean both sides: pgrunbook finish.") {
		t.Fatalf("with a source that answers: %v, hint %q", err, engine.HintOf(err))
	}
	there := r.env.Source
	r.env.Source = r.mistyped()
	if err := r.walk(t.Context(), newFinish(r.env, o)); err == nil || !strings.Contains(err.Error(), r.env.Journal.SourceIdentity.Address+": it answers") {
		t.Fatalf("with a source that answers where the run was begun: %v", err)
	}
	r.sourceIsGone()
	r.must(r.walk(t.Context(), newFinish(r.env, o)))
	if !r.heard("nothing answers at 127.0.0.1:1/nothing") {
		t.Error("nobody was told which address was asked")
	}
	r.must(CloseRun(t.Context(), r.env, o))
	if st, err := ReadStatus(t.Context(), r.env.Target, there); err != nil || st.State != journal.Finished || !strings.HasPrefix(st.Type, "nothing") {
		t.Errorf("once the source is back the run is %q, next %q: %v", st.State, st.Type, err)
	}
	dump, err := testpg.SchemaDump(t.Context(), r.target, "pgrunbook")
	r.must(err)
	if strings.Contains(dump, "pgrunbook") {
		t.Errorf("the target's tables still have something of ours:\n%s", dump)
	}
	if err := try(t, r.source, "INSERT INTO shop.log VALUES ('late')"); err == nil {
		t.Error("the source takes writes")
	}
}

// What answers for the source and has nothing of the run is given up; what lets nobody in is not.
func TestFinishWithoutASourceOfThisRun(t *testing.T) {
	r := moved(t, "")
	o := FinishOptions{WithoutSource: true}
	u, err := url.Parse(r.source)
	r.must(err)
	u.User = url.User("dropped_since")
	there := r.env.Source
	r.env.Source, err = NewServer(engine.Source, u.String(), "")
	r.must(err)
	if err := r.walk(t.Context(), newFinish(r.env, o)); err == nil || !strings.Contains(err.Error(), "something answers there") || !strings.Contains(engine.HintOf(err), "docs/what-if.md") {
		t.Fatalf("with a role that is dropped: %v, hint %q", err, engine.HintOf(err))
	}
	r.env.Source = there
	r.exec(r.source, "DROP SCHEMA pgrunbook CASCADE") // as a backup from before the run has it
	if err := r.walk(t.Context(), newFinish(r.env, FinishOptions{})); err == nil || !strings.Contains(engine.HintOf(err), "finish --without-source") {
		t.Fatalf("finish with a source that was built anew: %v, hint %q", err, engine.HintOf(err))
	}
	r.must(r.walk(t.Context(), newFinish(r.env, o)))
	if !r.heard("has nothing of this run") {
		t.Error("nobody was told what answers there")
	}
}

// Another cluster at its address is not the source, whatever it has.
func TestFinishWithAnotherClusterForTheSource(t *testing.T) {
	r := moved(t, "")
	r.env.Journal.SourceIdentity.SystemIdentifier = "1"
	r.must(r.walk(t.Context(), newFinish(r.env, FinishOptions{WithoutSource: true})))
}

func TestFinishRefusesBeforeTheFlip(t *testing.T) {
	r := ready(t)
	err := r.walk(t.Context(), newFinish(r.env, FinishOptions{Now: true}))
	if err == nil || !strings.Contains(err.Error(), "writes are on the source") {
		t.Errorf("error is %v", err)
	}
	// A flip that was decided and did not happen changes nothing: the gates tell.
	r.must(r.env.Journal.DecideFlip(t.Context(), r.env.Run.Epoch, engine.Source, engine.Target, nil))
	err = r.walk(t.Context(), newFinish(r.env, FinishOptions{Now: true}))
	if err == nil || !strings.Contains(err.Error(), "writes are on the source") {
		t.Errorf("with an open flip the error is %v", err)
	}
}

// A source that somebody opened again may have taken writes: nothing may be removed, and nothing carried there. Where
// the target was closed for it, it is not to be opened beside it.
func TestFinishRefusesAnOpenSource(t *testing.T) {
	r := moved(t, "")
	r.exec(r.source, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 0")
	follows := func(want string) {
		t.Helper()
		err := FollowBack(t.Context(), r.env, engine.SinkFunc(r.emit))
		if hint := engine.HintOf(err); engine.ClassOf(err) != engine.ClassAmbiguous || !strings.Contains(hint, want) || strings.Contains(hint, "RESTART 0") {
			t.Errorf("follow says %v, hint %q", err, hint)
		}
	}
	follows("Close the source at once")
	r.exec(r.target, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 1")
	follows("Do nothing before you know who opened the source, and why. Never open the target beside it")
	r.exec(r.target, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 0")
	if err := r.walk(t.Context(), newFinish(r.env, FinishOptions{})); engine.ClassOf(err) != engine.ClassAmbiguous {
		t.Errorf("error is %v", err)
	}
	if o, err := r.env.Journal.Owner(t.Context()); err != nil || o.Side != engine.Target || o.Side == journal.Unclear {
		t.Errorf("owner is %v, %v", o.Side, err)
	}
}

// A step in after may stop the old server: once the source is clean no session of the run's is there, whose end would
// end the run.
func TestFinishLeavesTheSourceBeforeWhatStopsIt(t *testing.T) {
	r := moved(t, `finish {
  after {
    step "exec" "stop" { command = ["true"] }
  }
}`)
	const ours = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook%'"
	seen := false
	r.onEvent = func(e engine.Event) {
		if seen || e.Step != "finish.after.exec.stop" {
			return
		}
		seen = true
		for deadline := time.Now().Add(20 * time.Second); query(t, r.source, ours) != "0" && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond) // a session ends a little after it was told to
		}
		r.want(r.source, ours, "0")
	}
	_, err := Finish(t.Context(), r.env, FinishOptions{Now: true}, WalkOptions{Show: r.env.Sink}, func(Certificate) error { return nil })
	r.must(err)
	if !seen {
		t.Error("the step after finish did not run")
	}
}

package steps

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// ready walks everything that stands before a cutover.
func ready(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, "")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newArm(r.env), newReverse(r.env)))
	return r
}

func (r *rig) aborted() {
	r.t.Helper()
	run, err := journal.OpenReadOnly(r.t.Context(), r.env.Target)
	r.must(err)
	defer run.Close(context.Background())
	if run.State != journal.Aborted {
		r.t.Errorf("the journal says %s", run.State)
	}
}

func TestF85AbortLeavesTheSourceAsFound(t *testing.T) {
	r := ready(t)
	r.must(Abort(t.Context(), r.env, AbortOptions{}))
	r.sameSource("after abort")
	r.aborted()
	r.exec(r.source, "UPDATE shop.customer SET name = 'free'")
	dump, err := testpg.SchemaDump(t.Context(), r.target, "pgrunbook")
	r.must(err)
	if !strings.Contains(dump, "CREATE TABLE shop.customer") || strings.Contains(dump, "pgrunbook") {
		t.Errorf("the target's tables are gone, or our triggers are not:\n%s", dump)
	}
	r.env.Journal.Close(t.Context()) // what stays can be dropped later
	r.env.Plan = nil
	r.env.Source = nowhere(t) // or another run's by now: nobody asks it
	name := r.env.Runbook.Name
	r.env.Runbook.Name = "another"
	if err := OpenRun(t.Context(), r.env, OpenOptions{Aborted: true, AnyPlace: true}); engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("as another runbook's run: %v", err)
	}
	r.aborted()
	r.env.Runbook.Name = name
	r.must(OpenRun(t.Context(), r.env, OpenOptions{Aborted: true, AnyPlace: true}))
	t.Cleanup(func() { r.env.Journal.Close(context.Background()) })
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := Abort(stopped, r.env, AbortOptions{DropTarget: true}); err == nil {
		t.Error("an abort that was stopped succeeded")
	}
	r.aborted()
	r.env.Journal.Close(t.Context())
	r.env.Plan = nil
	r.must(OpenRun(t.Context(), r.env, OpenOptions{Aborted: true, AnyPlace: true}))
	r.must(Abort(t.Context(), r.env, AbortOptions{DropTarget: true}))
	r.sameSource("after the second abort")
	r.aborted()
	r.bare("after abort --drop-target of an aborted run", "pgrunbook")
}

// A plan whose files were changed since opens a run to end its flip, and for nothing else.
func TestStalePlanEndsAnOpenFlip(t *testing.T) {
	r := ready(t)
	r.must(r.env.Journal.DecideFlip(t.Context(), r.env.Run.Epoch, engine.Source, engine.Target, nil))
	r.env.Journal.Close(t.Context())
	e, err := LookForRun(t.Context(), r.env.Target)
	r.must(err)
	if !e.FlipOpen() {
		t.Error("no flip is open")
	}
	if err := OpenRun(t.Context(), r.env, OpenOptions{Stale: stale([]string{"file x.sql changed"})}); engine.ClassOf(err) != engine.ClassStale {
		t.Errorf("got %v", err)
	}
	e, err = LookForRun(t.Context(), r.env.Target)
	r.must(err)
	if e.FlipOpen() || e.Owner != engine.Source {
		t.Errorf("writes are on %s", e.Owner)
	}
}

func TestAbortDropsWhatWasMadeOnTheTarget(t *testing.T) {
	r := newRig(t, "")
	settings := func() string {
		return query(t, r.target, "SELECT coalesce(string_agg(c, ', ' ORDER BY c), '') FROM pg_db_role_setting s, unnest(setconfig) c WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())")
	}
	setting := func(url, set string) {
		r.exec(url, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET "+set+"', current_database()); END $$")
	}
	setting(r.source, "work_mem = 5120")
	setting(r.source, "search_path = shop, public")
	setting(r.target, "work_mem = 6144")
	before := settings()
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newArm(r.env), newReverse(r.env)))
	if got := settings(); !strings.Contains(got, "search_path") {
		t.Fatalf("the target's database has %q: it proves nothing", got)
	}
	r.must(r.env.Journal.DecideFlip(t.Context(), r.env.Run.Epoch, engine.Target, engine.Source, nil)) // as after a rollback
	r.must(r.env.Journal.SetOwner(t.Context(), nil, engine.Source))
	r.exec(r.target, readOnlyByDefault)
	r.exec(r.target, "SET default_transaction_read_only = off; CREATE TABLE public.theirs (a int)")
	r.must(Abort(t.Context(), r.env, AbortOptions{DropTarget: true}))
	if got := settings(); got != before {
		t.Errorf("the target's database had %q, and has %q", before, got)
	}
	r.sameSource("after abort")
	r.aborted()
	r.exec(r.target, "DROP TABLE public.theirs") // it was not ours to drop
	r.bare("after abort with drop_target", "pgrunbook")
}

// An abort that died anywhere is finished by calling it again; the application is free meanwhile.
func TestF84AbortContinues(t *testing.T) {
	r := ready(t)
	for _, held := range []struct{ url, table string }{{r.source, "shop.event_2026"}, {r.source, "shop.customer"}, {r.target, "shop.log"}, {r.target, "shop.invoice"}} {
		reader, err := pgx.Connect(t.Context(), held.url)
		r.must(err)
		_, err = reader.Exec(t.Context(), "BEGIN")
		r.must(err)
		_, err = reader.Exec(t.Context(), "SELECT count(*) FROM "+held.table)
		r.must(err)
		ctx, cancel := context.WithCancel(t.Context())
		r.onEvent = func(e engine.Event) {
			if e.Kind == engine.EventWaiting {
				cancel()
			}
		}
		if err := Abort(ctx, r.env, AbortOptions{DropTarget: true}); err == nil {
			t.Fatalf("abort beside a reader of %s succeeded", held.table)
		}
		cancel()
		r.onEvent = nil
		r.refusesHalfAborted()
		r.exec(r.source, "SET statement_timeout = '5s'; UPDATE shop.customer SET name = name || '.'; INSERT INTO shop.event VALUES (now(), 1) ON CONFLICT DO NOTHING")
		r.must(reader.Close(t.Context()))
	}
	r.must(Abort(t.Context(), r.env, AbortOptions{})) // what the first call was to drop is dropped
	r.sameSource("after abort")
	r.bare("after abort", "pgrunbook")
	r.aborted()
}

// refusesHalfAborted fails unless the commands that might go on with the run, or conclude from it, name
// the abort that ends it as it was begun.
func (r *rig) refusesHalfAborted() {
	r.t.Helper()
	show := engine.SinkFunc(r.emit)
	for name, command := range map[string]func(context.Context) error{
		"apply":    func(ctx context.Context) error { _, err := Walk(ctx, r.env, WalkOptions{Show: show}); return err },
		"verify":   func(ctx context.Context) error { return VerifyNow(ctx, r.env, show) },
		"rehearse": func(ctx context.Context) error { _, err := Rehearse(ctx, r.env, show); return err },
	} {
		err := command(r.t.Context())
		const end = "pgrunbook abort --drop-target"
		var begun *AbortBegunError
		if !errors.As(err, &begun) || begun.Command != end || engine.ClassOf(err) != engine.ClassStale || !strings.Contains(engine.HintOf(err), end+".") {
			r.t.Errorf("%s after an abort has begun: %v (%s)", name, err, engine.HintOf(err))
		}
	}
}

func TestAbortRefusesAfterTheFlip(t *testing.T) {
	r := ready(t)
	before, err := testpg.SchemaDump(t.Context(), r.source)
	r.must(err)
	r.flipped()
	if err := Abort(t.Context(), r.env, AbortOptions{}); err == nil || !strings.Contains(engine.HintOf(err), "rollback") {
		t.Errorf("after the flip: %v", err)
	}
	r.env.Journal.Close(t.Context()) // its runner is dead
	if err := Abort(t.Context(), r.env, AbortOptions{WithoutTarget: true}); engine.ClassOf(err) != engine.ClassAmbiguous {
		t.Errorf("without the target after the flip: %v", err)
	}
	after, err := testpg.SchemaDump(t.Context(), r.source)
	r.must(err)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("a refused abort changed the source:\n%s", diff)
	}
}

// A runner that died after its decision and before the flip leaves nobody in doubt: the gates tell.
func TestAbortSettlesAnOpenFlip(t *testing.T) {
	r := ready(t)
	r.must(r.env.Journal.DecideFlip(t.Context(), r.env.Run.Epoch, engine.Source, engine.Target, nil))
	r.must(Abort(t.Context(), r.env, AbortOptions{}))
	r.sameSource("after abort")
	r.aborted()
}

func TestAbortWithoutTheTarget(t *testing.T) {
	r := ready(t)
	alone, err := NewServer(engine.Source, r.source, "")
	r.must(err)
	if err := Abort(t.Context(), &Env{Source: alone, Sink: r.env.Sink}, AbortOptions{WithoutTarget: true}); engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("beside a runner: %v", err)
	}
	r.env.Journal.Close(t.Context())
	swapped, err := NewServer(engine.Source, r.target, "")
	r.must(err)
	if err := Abort(t.Context(), &Env{Source: swapped, Sink: r.env.Sink}, AbortOptions{WithoutTarget: true}); err == nil || !strings.Contains(err.Error(), "it is the target of that run") {
		t.Errorf("the run's own target as the source: %v", err)
	}
	if st, err := ReadStatus(t.Context(), r.env.Target, r.env.Source); err != nil || st.State != journal.Active {
		t.Errorf("after that the target's run is %s: %v", st.State, err)
	}
	for range 2 {
		r.must(Abort(t.Context(), &Env{Source: alone, Sink: r.env.Sink}, AbortOptions{WithoutTarget: true}))
	}
	r.sameSource("after abort --without-target")
}

func TestAbortWithoutTheSource(t *testing.T) {
	r := ready(t)
	gone, err := NewServer(engine.Source, "postgresql://127.0.0.1:1/x?connect_timeout=1", "")
	r.must(err)
	r.env.Source = gone
	if err := Abort(t.Context(), r.env, AbortOptions{}); !strings.Contains(engine.HintOf(err), "--without-source") {
		t.Errorf("a source that is gone: %v", err)
	}
	r.must(Abort(t.Context(), r.env, AbortOptions{WithoutSource: true, DropTarget: true}))
	r.bare("after abort --without-source", "pgrunbook")
	r.aborted()
}

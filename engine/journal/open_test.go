package journal

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestOpenMakesThenContinues(t *testing.T) {
	url := newDB(t)
	plan := testPlan(t, url, "copy")
	first := open(t, url, OpenOptions{Plan: plan})
	if !first.New || first.Epoch != 1 || first.State != Active || len(first.ID) != 8 || len(first.Mark) != 32 || first.GateKey <= 0 {
		t.Fatalf("a new run: %+v", first)
	}
	first.Close(t.Context())
	second := open(t, url, OpenOptions{Plan: plan})
	if second.New || second.Epoch != 2 || second.ID != first.ID || second.Mark != first.Mark || second.GateKey != first.GateKey {
		t.Fatalf("the run continued: %+v", second)
	}
	if diff := cmp.Diff(plan.Digest(), second.Plan.Digest()); diff != "" {
		t.Errorf("the stored plan has another digest: %s", diff)
	}
	second.Close(t.Context())
	third := open(t, url, OpenOptions{})
	if third.ID != first.ID || third.Epoch != 3 || third.Digest != plan.Digest() {
		t.Fatalf("the run continued without a plan: %+v", third)
	}
	var remark string
	if err := connect(t, url).QueryRow(t.Context(), "SELECT pg_catalog.obj_description('pgrunbook'::pg_catalog.regnamespace)").Scan(&remark); err != nil {
		t.Fatal(err)
	}
	if remark != "pgrunbook run "+first.ID {
		t.Errorf("the schema's comment is %q", remark)
	}
}

func TestOpenWithoutPlanMakesNothing(t *testing.T) {
	url := newDB(t)
	_, err := Open(testContext(t), server(t, "target", url), OpenOptions{})
	if !errors.Is(err, ErrNoRun) {
		t.Fatalf("got %v, want ErrNoRun", err)
	}
	var there bool
	if err := connect(t, url).QueryRow(t.Context(), "SELECT pg_catalog.to_regnamespace('pgrunbook') IS NOT NULL").Scan(&there); err != nil || there {
		t.Fatalf("schema is there: %v, %v", there, err)
	}
	for name, f := range map[string]func() (*Run, error){
		"read only": func() (*Run, error) { return OpenReadOnly(testContext(t), server(t, "target", url)) },
		"attach":    func() (*Run, error) { return Attach(testContext(t), server(t, "target", url), "approve") },
	} {
		if _, err := f(); !errors.Is(err, ErrNoRun) {
			t.Errorf("%s: got %v, want ErrNoRun", name, err)
		}
	}
}

// A session that somebody ends, as a runner does that takes the run over, says nothing of runs.
func TestOpenIsEndedWhileItLooks(t *testing.T) {
	url := newDB(t)
	open(t, url, OpenOptions{Plan: testPlan(t, url, "copy")}).Close(t.Context())
	holder := connect(t, url)
	if _, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE pg_catalog.pg_description IN ACCESS EXCLUSIVE MODE", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	ctx, target, opened := testContext(t), server(t, "target", url), make(chan error, 1)
	go func() {
		_, err := Open(ctx, target, OpenOptions{ToolVersion: "1.0.0"})
		opened <- err
	}()
	for ended := 0; ended == 0; time.Sleep(10 * time.Millisecond) {
		if err := holder.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE NOT granted AND relation = 'pg_description'::regclass
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&ended); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-opened; errors.Is(err, ErrNoRun) || pg.SQLState(err) != "57P01" {
		t.Errorf("got %v, want SQLSTATE 57P01 alone", err)
	}
}

func TestF04SecondRunnerIsRefusedByName(t *testing.T) {
	url := newDB(t)
	plan := testPlan(t, url, "copy")
	r := open(t, url, OpenOptions{Plan: plan})
	_, err := Open(testContext(t), server(t, "target", url), OpenOptions{Plan: plan})
	if engine.ClassOf(err) != engine.ClassHeld {
		t.Fatalf("got %v, want ClassHeld", err)
	}
	host, _ := os.Hostname()
	for _, want := range []string{r.ID, host, "since 20"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
	h, ok, err := r.Holder(t.Context())
	if err != nil || !ok || !h.Alive || h.PID != os.Getpid() || h.Host != host || h.Since.IsZero() {
		t.Errorf("holder %+v, %v, %v", h, ok, err)
	}
	r.Close(t.Context())
	reader, err := OpenReadOnly(testContext(t), server(t, "target", url))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close(t.Context())
	if h, _, err = reader.Holder(t.Context()); err != nil || h.Alive || h.Released.IsZero() {
		t.Errorf("holder after Close %+v, %v", h, err)
	}
}

func TestF03StealEndsTheHolder(t *testing.T) {
	url := newDB(t)
	plan := testPlan(t, url, "copy")
	old := open(t, url, OpenOptions{Plan: plan})
	ctx, cancel := old.Context(t.Context())
	defer cancel()
	// A chunk of the old runner is in flight: its transaction is fenced, so the epoch must not
	// move before it is gone.
	chunk, err := server(t, "target", url).Connect(t.Context(), useNamed(old.ID+" load 1"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = chunk.Close(context.Background()) }()
	tx, err := chunk.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Fence(t.Context(), tx, old.ID, old.Epoch); err != nil {
		t.Fatal(err)
	}
	thief := open(t, url, OpenOptions{Plan: plan, Steal: true})
	if thief.Epoch != old.Epoch+1 {
		t.Errorf("epoch %d after %d", thief.Epoch, old.Epoch)
	}
	if err := tx.Commit(t.Context()); err == nil {
		t.Error("the old runner's chunk was committed after the take-over")
	}
	select {
	case <-ctx.Done():
		if cause := context.Cause(ctx); engine.HintOf(cause) == "" || !strings.Contains(cause.Error(), "is gone") {
			t.Errorf("cause %v", cause)
		}
	case <-testContext(t).Done():
		t.Fatal("the old runner's context did not end")
	}
	if _, err := old.Begin(t.Context(), &scripted{id: "copy"}); engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("the old runner begins a step: %v, want ClassHeld", err)
	}
	err = in(t, url, func(ctx context.Context, tx pgx.Tx) error { return Fence(ctx, tx, old.ID, old.Epoch) })
	if engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("the old runner's fence: %v, want ClassHeld", err)
	}
	if err := in(t, url, func(ctx context.Context, tx pgx.Tx) error { return Fence(ctx, tx, thief.ID, thief.Epoch) }); err != nil {
		t.Errorf("the new runner's fence: %v", err)
	}
}

// By force a lock is taken from anybody at once, but for a guardian at work, which gets its time: once, on the
// target. Without it only a guardian takes one, from its own runner.
func TestF03WhomALockIsTakenFrom(t *testing.T) {
	const runner, guardian = "pgrunbook r1 lock host:7", "pgrunbook r1 lock host:8" + guardianMark
	for _, c := range []struct {
		thief thief
		from  string
		try   int
		takes bool
	}{
		{thief{anybody: true}, runner, 1, true},
		{thief{anybody: true}, guardian, 1, false},
		{thief{anybody: true}, guardian, guardianTries - 1, false},
		{thief{anybody: true}, guardian, guardianTries, true},
		{thief{anybody: true, run: "r1"}, guardian, 1, true},
		{thief{anybody: true, run: "r2"}, guardian, 1, false},
		{thief{run: "r1"}, runner, guardianTries, false},
		{thief{from: "host:7", run: "r1"}, runner, 1, true},
		{thief{from: "host:9", run: "r1"}, runner, guardianTries, false},
	} {
		if got, err := c.thief.takes(t.Context(), nil, 1, c.from, c.try); err != nil || got != c.takes {
			t.Errorf("%+v takes it from %q at try %d: %v, %v, want %v", c.thief, c.from, c.try, got, err, c.takes)
		}
	}
}

func TestF04LockSourceKeepsOtherRunsAway(t *testing.T) {
	sourceURL, urlA, urlB := newDB(t), newDB(t), newDB(t)
	a, b := open(t, urlA, OpenOptions{Plan: testPlan(t, urlA)}), open(t, urlB, OpenOptions{Plan: testPlan(t, urlB)})
	source := server(t, "source", sourceURL)
	if err := a.LockSource(t.Context(), source, false); err != nil {
		t.Fatal(err)
	}
	// Both databases are in one cluster: our own sessions on the target are not leftovers.
	if h, ok, err := a.Holder(t.Context()); err != nil || !ok || !h.Alive {
		t.Fatalf("the run's own lock is gone: %+v, %v", h, err)
	}
	err := b.LockSource(t.Context(), source, false)
	if engine.ClassOf(err) != engine.ClassHeld || !strings.Contains(err.Error(), a.ID) {
		t.Fatalf("got %v, want ClassHeld naming run %s", err, a.ID)
	}
	a.Close(t.Context())
	if err := b.LockSource(t.Context(), source, false); err != nil {
		t.Fatalf("after the other run ended: %v", err)
	}
	b.ReleaseSource(t.Context())
	urlC := newDB(t)
	c := open(t, urlC, OpenOptions{Plan: testPlan(t, urlC)})
	for tries := 1; ; tries++ { // the session ends a moment later
		if err = c.LockSource(t.Context(), source, false); err == nil {
			break
		}
		if tries == 100 {
			t.Fatalf("a lock that was let go: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if b.alive.Err() != nil {
		t.Errorf("a run that let the source's lock go ended: %v", context.Cause(b.alive))
	}
}

func TestPlanThatDiffers(t *testing.T) {
	url := newDB(t)
	plan := testPlan(t, url, "copy", "verify")
	open(t, url, OpenOptions{Plan: plan}).Close(t.Context())
	changed := testPlan(t, url, "copy", "notify")
	changed.Shapes = map[string]string{"public.a": "y", "public.b": "z"}
	changed.Runbook.Text += "copy { workers = 3 }\n"
	cases := map[string]struct {
		plan  func() *engine.Plan
		class engine.Class
		want  []string
	}{
		"other shapes, text and steps": {
			func() *engine.Plan { return changed }, engine.ClassStale,
			[]string{"table public.a changed", "table public.b is new", "text, from line 2", "step notify is new", "step verify is gone"},
		},
		"other source": {func() *engine.Plan { p := testPlan(t, url); p.Source.SystemIdentifier = "2"; return p }, engine.ClassStale, []string{"of cluster 1", "of cluster 2"}},
		"other target": {func() *engine.Plan { p := testPlan(t, url); p.Target.DatabaseOID++; return p }, engine.ClassStale, []string{"the plan was made for"}},
		"other name":   {func() *engine.Plan { p := testPlan(t, url); p.Name = "crm"; return p }, engine.ClassHeld, []string{`runbook "erp"`}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			for _, amend := range []bool{false, true} {
				if amend && name == "other shapes, text and steps" {
					continue
				}
				_, err := Open(testContext(t), server(t, "target", url), OpenOptions{Plan: c.plan(), Amend: amend})
				if engine.ClassOf(err) != c.class || engine.HintOf(err) == "" {
					t.Fatalf("got %v, want class %d with a hint", err, c.class)
				}
				for _, w := range c.want {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("%q does not name %q", err, w)
					}
				}
			}
		})
	}
	r := open(t, url, OpenOptions{Plan: changed, Amend: true})
	if r.Digest != changed.Digest() {
		t.Errorf("digest %s after amending, want %s", r.Digest, changed.Digest())
	}
	events, err := r.Events(t.Context(), 10)
	if err != nil || len(events) != 1 || !strings.Contains(events[0].Message, "step notify is new") {
		t.Errorf("events after amending: %+v, %v", events, err)
	}
}

func TestAbortedRunMakesRoom(t *testing.T) {
	url := newDB(t)
	first := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	if err := first.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Abort(t.Context()); err != nil {
		t.Fatalf("aborting twice: %v", err)
	}
	if _, err := first.Begin(t.Context(), &scripted{id: "copy"}); engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("a step of an aborted run: %v", err)
	}
	first.Close(t.Context())
	if _, err := Attach(testContext(t), server(t, "target", url), "approve"); !errors.Is(err, ErrNoRun) {
		t.Errorf("attaching to an aborted run: %v", err)
	}
	second := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	if !second.New || second.ID == first.ID {
		t.Errorf("the second run is %+v", second)
	}
}

func TestSchemaOfOthersIsRefused(t *testing.T) {
	url := newDB(t)
	conn := connect(t, url)
	plan := testPlan(t, url)
	if _, err := conn.Exec(t.Context(), "CREATE SCHEMA pgrunbook; CREATE TABLE pgrunbook.meta (a int); COMMENT ON SCHEMA pgrunbook IS 'notes of ours'", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	_, err := Open(testContext(t), server(t, "target", url), OpenOptions{Plan: plan})
	if engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(err.Error(), "notes of ours") {
		t.Fatalf("got %v, want ClassPreflight with the comment", err)
	}
	if _, err := conn.Exec(t.Context(), "COMMENT ON SCHEMA pgrunbook IS 'pgrunbook run abc'"); err != nil {
		t.Fatal(err)
	}
	_, err = Open(testContext(t), server(t, "target", url), OpenOptions{Plan: plan})
	if engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(err.Error(), "the source's part of run abc") || !strings.Contains(engine.HintOf(err), "swapped") {
		t.Fatalf("the source of another run: %v, %s", err, engine.HintOf(err))
	}
	if _, err := conn.Exec(t.Context(), "DROP TABLE pgrunbook.meta"); err != nil {
		t.Fatal(err)
	}
	open(t, url, OpenOptions{Plan: plan}) // an empty schema that a DBA made is used
}

func TestRoleWithoutCreateIsToldWhatToGrant(t *testing.T) {
	c := testpg.Shared(t, major(t))
	url := testpg.NewDB(t, c)
	conn := connect(t, url)
	if _, err := conn.Exec(t.Context(), "CREATE ROLE journal_poor LOGIN"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = conn.Exec(context.Background(), "DROP OWNED BY journal_poor; DROP ROLE journal_poor", pgx.QueryExecModeSimpleProtocol)
	})
	plan := testPlan(t, url, "copy")
	poor := c.URL(plan.Target.Database, "journal_poor")
	_, err := Open(testContext(t), server(t, "target", poor), OpenOptions{Plan: plan})
	if engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(engine.HintOf(err), "GRANT CREATE") {
		t.Fatalf("got %v, hint %q", err, engine.HintOf(err))
	}
	if _, err := conn.Exec(t.Context(), "CREATE SCHEMA pgrunbook; GRANT ALL ON SCHEMA pgrunbook TO journal_poor", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	r := open(t, poor, OpenOptions{Plan: plan})
	if err := r.Drop(t.Context()); err != nil {
		t.Fatalf("dropping in a schema of a DBA: %v", err)
	}
	var left int
	if err := conn.QueryRow(t.Context(), "SELECT pg_catalog.count(*) FROM pg_catalog.pg_class WHERE relnamespace = 'pgrunbook'::pg_catalog.regnamespace").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d relations left, %v", left, err)
	}
	r.Close(t.Context())
}

func TestDropLeavesNothingAndNamesStrangers(t *testing.T) {
	url := newDB(t)
	conn := connect(t, url)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	r.EventSink().Emit(engine.Event{Kind: engine.EventNote, Message: "hello"})
	if _, err := conn.Exec(t.Context(), "CREATE TABLE pgrunbook.captured (id int)"); err != nil {
		t.Fatal(err)
	}
	if err := r.Drop(t.Context()); err == nil || !strings.Contains(err.Error(), "captured") {
		t.Fatalf("got %v, want the table's name", err)
	}
	if _, err := conn.Exec(t.Context(), "DROP TABLE pgrunbook.captured"); err != nil {
		t.Fatal(err)
	}
	if err := r.Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Close(t.Context())
	var there bool
	if err := conn.QueryRow(t.Context(), "SELECT pg_catalog.to_regnamespace('pgrunbook') IS NOT NULL").Scan(&there); err != nil || there {
		t.Errorf("the schema is there: %v, %v", there, err)
	}
}

func TestF06JournalOfNewerBuildIsRefusedAndOlderMigrated(t *testing.T) {
	url := newDB(t)
	plan := testPlan(t, url)
	first := open(t, url, OpenOptions{Plan: plan})
	first.Close(t.Context())
	conn := connect(t, url)
	if _, err := conn.Exec(t.Context(), "UPDATE pgrunbook.meta SET version = 99, tool_version = '7.3.0'"); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() (*Run, error){
		"open":      func() (*Run, error) { return Open(testContext(t), server(t, "target", url), OpenOptions{Plan: plan}) },
		"read only": func() (*Run, error) { return OpenReadOnly(testContext(t), server(t, "target", url)) },
	} {
		if _, err := f(); engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(engine.HintOf(err), "7.3.0") {
			t.Errorf("%s: got %v, want ClassPreflight naming 7.3.0", name, err)
		}
	}
	if _, err := conn.Exec(t.Context(), "UPDATE pgrunbook.meta SET version = 1; ALTER TABLE pgrunbook.table_state DROP COLUMN chunks; UPDATE pgrunbook.run SET plan = jsonb_set(plan, '{format}', '99'), tool_version = '7.4.0'", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testContext(t), server(t, "target", url), OpenOptions{Plan: plan}); engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(engine.HintOf(err), "7.4.0") {
		t.Errorf("a newer build's plan: got %v, want ClassPreflight naming 7.4.0", err)
	}
	if _, err := conn.Exec(t.Context(), "UPDATE pgrunbook.run SET plan = jsonb_set(plan, '{format}', '1')"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(testContext(t), server(t, "target", url)); !strings.Contains(engine.HintOf(err), "apply migrates") {
		t.Errorf("an older journal that is only read: %v", err)
	}
	// What a stopped runner of the build before holds is ended before the migration waits for it.
	left := connect(t, url)
	if _, err := left.Exec(t.Context(), "SET application_name = 'pgrunbook "+first.ID+" copy 1 ~left'; BEGIN; LOCK pgrunbook.table_state IN ROW SHARE MODE", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	run := open(t, url, OpenOptions{Plan: plan})
	if err := left.Ping(t.Context()); err == nil {
		t.Error("the stopped runner's session is still there")
	}
	if _, err := run.TableStates(t.Context(), nil); err != nil {
		t.Errorf("a journal of version 1 that was migrated: %v", err)
	}
	run.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "UPDATE pgrunbook.meta SET version = 1"); err != nil {
		t.Fatal(err)
	}
	steps := []migration{{To: 2, SQL: "CREATE TABLE pgrunbook.two (a int)"}, {To: 3, SQL: "CREATE TABLE pgrunbook.three (a int); INSERT INTO pgrunbook.three VALUES (1)"}}
	for range 2 { // the second finds nothing to do
		if err := in(t, url, func(ctx context.Context, tx pgx.Tx) error { return upgrade(ctx, tx, "9.0.0", 3, steps) }); err != nil {
			t.Fatal(err)
		}
	}
	var version, rows int
	var tool string
	if err := conn.QueryRow(t.Context(), "SELECT version, tool_version, (SELECT pg_catalog.count(*) FROM pgrunbook.three) FROM pgrunbook.meta").Scan(&version, &tool, &rows); err != nil || version != 3 || tool != "9.0.0" || rows != 1 {
		t.Errorf("version %d by %s, %d rows, %v", version, tool, rows, err)
	}
	if err := in(t, url, func(ctx context.Context, tx pgx.Tx) error { return upgrade(ctx, tx, "9.0.0", 4, steps) }); err == nil {
		t.Error("a version without a way was accepted")
	}
}

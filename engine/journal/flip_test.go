package journal

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

func TestFlipIsUnclearUntilSettled(t *testing.T) {
	url := newDB(t)
	plan := testPlan(t, url)
	r := open(t, url, OpenOptions{Plan: plan})
	ctx := t.Context()
	owner := func(want engine.Side, outcome string) {
		t.Helper()
		o, err := r.Owner(ctx)
		if err != nil || o.Side != want || o.Since.IsZero() {
			t.Fatalf("owner %+v, %v; want %s", o, err, want)
		}
		if got := o.Flip; (got == nil) != (outcome == "none") || got != nil && got.Outcome != outcome {
			t.Fatalf("flip %+v, want outcome %q", got, outcome)
		}
	}
	owner(engine.Source, "none")
	if err := r.SaveCertificate(ctx, "x"); err == nil {
		t.Error("a certificate without a flip was stored")
	}
	for range 2 { // the second after a lost acknowledgement
		if err := r.DecideFlip(ctx, r.Epoch, engine.Source, engine.Target, nil); err != nil {
			t.Fatal(err)
		}
	}
	owner(Unclear, "")
	if err := r.DecideFlip(ctx, r.Epoch, engine.Target, engine.Source, nil); engine.ClassOf(err) != engine.ClassAmbiguous {
		t.Errorf("another decision while one is open: %v", err)
	}
	if err := r.DecideFlip(ctx, r.Epoch-1, engine.Source, engine.Target, nil); engine.ClassOf(err) != engine.ClassHeld {
		t.Errorf("a decision of an older epoch: %v", err)
	}
	if err := r.SetOwner(ctx, nil, engine.Source); err != nil { // the hold was lost
		t.Fatal(err)
	}
	owner(engine.Source, FlipUndone)

	r.Close(ctx)
	r = open(t, url, OpenOptions{Plan: plan})
	if err := r.DecideFlip(ctx, r.Epoch, engine.Source, engine.Target, nil); err != nil {
		t.Fatal(err)
	}
	rolledBack := errors.New("lost")
	err := in(t, url, func(ctx context.Context, tx pgx.Tx) error {
		return errors.Join(r.SetOwner(ctx, tx, engine.Target), rolledBack)
	})
	if !errors.Is(err, rolledBack) {
		t.Fatal(err)
	}
	owner(Unclear, "")
	if err := in(t, url, func(ctx context.Context, tx pgx.Tx) error { return r.SetOwner(ctx, tx, engine.Target) }); err != nil {
		t.Fatal(err)
	}
	owner(engine.Target, FlipDone)
	if err := r.SaveCertificate(ctx, map[string]int{"drained": 3}); err != nil {
		t.Fatal(err)
	}
	reader, err := OpenReadOnly(ctx, server(t, "target", url))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close(ctx)
	o, err := reader.Owner(ctx)
	if err != nil || o.Side != engine.Target || string(o.Flip.Certificate) != `{"drained": 3}` {
		t.Errorf("read only: %+v, %v", o, err)
	}
}

func TestReaderCannotWrite(t *testing.T) {
	url := newDB(t)
	open(t, url, OpenOptions{Plan: testPlan(t, url)})
	reader, err := OpenReadOnly(t.Context(), server(t, "target", url))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close(t.Context())
	err = reader.Approve(t.Context(), engine.Approval{Name: "go", By: "anna", At: time.Now()})
	if err == nil || !strings.Contains(err.Error(), "25006") {
		t.Errorf("a read-only journal takes an approval: %v", err)
	}
}

func TestControlFromAnotherProcess(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	ctx := t.Context()
	other, err := Attach(ctx, server(t, "target", url), "pause")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(ctx)
	changes := []func(c *Control){
		func(c *Control) { c.Paused = true },
		func(c *Control) { c.Workers = 7; c.Settings["delta_size"] = "1GiB" },
	}
	for _, change := range changes {
		if _, err := other.SetControl(ctx, "anna", change); err != nil {
			t.Fatal(err)
		}
	}
	got, err := r.Control(ctx)
	if err != nil || got.At.IsZero() {
		t.Fatalf("control %+v, %v", got, err)
	}
	got.At = time.Time{}
	if diff := cmp.Diff(Control{Paused: true, Workers: 7, Settings: map[string]string{"delta_size": "1GiB"}, By: "anna"}, got); diff != "" {
		t.Errorf("control (-want +got):\n%s", diff)
	}
	if err := other.Approve(ctx, engine.Approval{Name: "go", By: "anna", At: time.Now(), PlanDigest: r.Digest}); err != nil {
		t.Fatal(err)
	}
	if a, ok, err := r.Approval(ctx, "go", r.Digest); !ok || err != nil || a.By != "anna" {
		t.Errorf("approval %+v, %t, %v", a, ok, err)
	}
	if all, err := r.Approvals(ctx); len(all) != 1 || err != nil {
		t.Errorf("approvals %+v, %v", all, err)
	}
}

// TestKeptFactsStay: what commands decide by outlives any number of events, and redacting does not touch it.
func TestKeptFactsStay(t *testing.T) {
	url := newDB(t)
	type fact struct{ Writes string }
	r := open(t, url, OpenOptions{Plan: testPlan(t, url), Redact: func(s string) string { return strings.ReplaceAll(s, "target", "(sensitive)") }})
	at := time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC)
	if err := r.Keep(t.Context(), engine.Event{Kind: engine.EventDiagnosed, At: at, Mark: "compared", Message: "on the target"}, fact{"target"}); err != nil {
		t.Fatal(err)
	}
	if err := r.Record(t.Context(), engine.Event{Kind: engine.EventDiagnosed, At: at, Mark: "compared", Message: "not kept"}); err != nil {
		t.Fatal(err)
	}
	if _, err := connect(t, url).Exec(t.Context(), "INSERT INTO pgrunbook.event (run, n, at, kind, data) OVERRIDING SYSTEM VALUE SELECT id, 1000000, now(), 'lag', '{}' FROM pgrunbook.run"); err != nil {
		t.Fatal(err)
	}
	r.EventSink().Emit(engine.Event{Kind: engine.EventNote, At: at, Message: "one more"})
	r.Close(t.Context())
	r = open(t, url, OpenOptions{Plan: testPlan(t, url)})
	var got fact
	if found, err := r.Kept(t.Context(), "compared", &got); !found || err != nil || got.Writes != "target" {
		t.Errorf("kept %+v, %t, %v", got, found, err)
	}
	events, err := r.Events(t.Context(), 10)
	if err != nil || len(events) != 2 || events[0].Message != "on the (sensitive)" {
		t.Errorf("events %+v, %v", events, err)
	}
	if found, err := r.Kept(t.Context(), "other", &got); found || err != nil {
		t.Errorf("nothing was kept with that mark: %t, %v", found, err)
	}
}

func TestEventsAreStoredInOrderWithoutSecrets(t *testing.T) {
	const canary = "hunter2"
	url := newDB(t)
	plan := testPlan(t, url)
	r := open(t, url, OpenOptions{Plan: plan, Redact: func(s string) string { return strings.ReplaceAll(s, "topsecret", "(sensitive)") }})
	sink, at := r.EventSink(), time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC)
	sink.Emit(engine.Event{Kind: engine.EventRunStarted, At: at, Message: "postgresql://u:" + canary + "@h/db and topsecret"})
	sink.Emit(engine.Event{Kind: engine.EventProgress, At: at, Message: "not kept"})
	for i := range 12 { // a lag a second: two are kept
		sink.Emit(engine.Event{Kind: engine.EventLag, At: at.Add(time.Duration(i) * time.Second), Message: "lag"})
	}
	sink.Emit(engine.Event{
		Kind: engine.EventDiagnosed, At: at, Message: "m", Step: "copy", Blockers: []string{"password='" + canary + "' x"},
		Finding: &engine.Finding{Code: "PRE001", Text: "password=" + canary, Severity: engine.SeverityInfo},
	})
	if _, err := r.Begin(t.Context(), &scripted{id: "copy"}); err != nil {
		t.Fatal(err)
	}
	if err := r.End(t.Context(), "copy", errors.New("dial postgresql://u:"+canary+"@h/db")); err != nil {
		t.Fatal(err)
	}
	r.Close(t.Context())
	if dropped, err := r.EventError(); dropped != 0 || err != nil {
		t.Errorf("%d dropped, %v", dropped, err)
	}
	sink.Emit(engine.Event{Kind: engine.EventNote, Message: "too late"}) // counted, not stored
	if dropped, _ := r.EventError(); dropped != 1 {
		t.Errorf("%d dropped after Close", dropped)
	}
	r = open(t, url, OpenOptions{Plan: plan})
	events, err := r.Events(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []engine.EventKind
	for _, e := range events {
		kinds = append(kinds, e.Kind)
	}
	if diff := cmp.Diff([]engine.EventKind{engine.EventRunStarted, engine.EventLag, engine.EventLag, engine.EventDiagnosed}, kinds); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
	var all string
	if err := connect(t, url).QueryRow(t.Context(), "SELECT pg_catalog.string_agg(data::text, '') || (SELECT pg_catalog.string_agg(error, '') FROM pgrunbook.step) FROM pgrunbook.event").Scan(&all); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{canary, "topsecret"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is stored: %s", secret, all)
		}
	}
	if !strings.Contains(all, "(sensitive)") {
		t.Errorf("nothing was redacted in %s", all)
	}
}

func TestJournalSurvivesItsBrokenSession(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	if _, err := r.Begin(t.Context(), &scripted{id: "copy"}); err != nil {
		t.Fatal(err)
	}
	conn, ctx := connect(t, url), testContext(t)
	for left := 1; left > 0; { // until it is gone
		err := conn.QueryRow(ctx, "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity WHERE application_name LIKE '%'||$1::text||' journal%'", r.ID).Scan(&left)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := r.End(t.Context(), "copy", nil); err == nil {
		t.Fatal("a write on a broken session succeeded: the test did not break it")
	}
	if err := r.End(t.Context(), "copy", nil); err != nil {
		t.Errorf("the next write does not reconnect: %v", err)
	}
}

func TestCloseLeavesNoSession(t *testing.T) {
	url := newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url)})
	if err := r.LockSource(t.Context(), server(t, "source", url), false); err != nil {
		t.Fatal(err)
	}
	r.EventSink().Emit(engine.Event{Kind: engine.EventNote, Message: "hello"})
	r.Close(t.Context())
	r.Close(t.Context())
	conn, err := server(t, "target", url).Connect(t.Context(), pg.Use{Name: "look"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	ctx := testContext(t)
	for {
		var left int
		if err := conn.QueryRow(ctx, "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() AND application_name LIKE 'pgrunbook '||$1::text||' %'", r.ID).Scan(&left); err != nil {
			t.Fatalf("sessions do not end: %v", err)
		}
		if left == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Who gives an approval may have a clock of his own: the newest is the one that came last, and it is as old as it is here.
func TestApprovalsBesideWrongClocks(t *testing.T) {
	ctx, url := testContext(t), newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url, "copy")})
	for _, c := range []struct {
		by    string
		ahead time.Duration
	}{{"ahead", 3 * time.Hour}, {"behind", -3 * time.Hour}} {
		if err := r.Approve(ctx, engine.Approval{Name: "go", By: c.by, At: time.Now().Add(c.ahead), PlanDigest: r.Digest}); err != nil {
			t.Fatal(err)
		}
		a, ok, err := r.Approval(ctx, "go", r.Digest)
		if err != nil || !ok || a.By != c.by || a.Age < 0 || a.Age > time.Hour {
			t.Errorf("the approval of one whose clock is %s, just given: %+v, %t, %v", c.by, a, ok, err)
		}
	}
}

// An approval from before a rollback must not let the next cutover pass.
func TestRollbackUsesUpApprovals(t *testing.T) {
	ctx, url := testContext(t), newDB(t)
	r := open(t, url, OpenOptions{Plan: testPlan(t, url, "copy")})
	yes := engine.Approval{Name: "go", By: "ann", At: time.Now(), PlanDigest: r.Digest}
	given := func() bool {
		_, ok, err := r.Approval(ctx, "go", r.Digest)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	flip := func(from, to engine.Side) {
		if err := errors.Join(r.DecideFlip(ctx, r.Epoch, from, to, nil), r.SetOwner(ctx, nil, to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Approve(ctx, yes); err != nil {
		t.Fatal(err)
	}
	flip(engine.Source, engine.Target)
	if !given() {
		t.Error("the cutover itself used the approval up: one for its after steps must still count")
	}
	flip(engine.Target, engine.Source)
	if given() {
		t.Error("an approval from before the rollback still counts")
	}
	if err := r.Approve(ctx, yes); err != nil {
		t.Fatal(err)
	}
	if !given() {
		t.Error("a new approval does not count")
	}
}

package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// step is a step whose Apply is the test's.
type step struct {
	id          engine.StepID
	fingerprint string
	apply       func(ctx context.Context, cp engine.Checkpoint) error
}

func (s *step) ID() engine.StepID   { return s.id }
func (s *step) Phase() engine.Phase { return engine.PhaseCutover }
func (s *step) Fingerprint() string { return s.fingerprint }
func (s *step) Plan(context.Context) (engine.StepPlan, error) {
	return engine.StepPlan{ID: s.id, Phase: s.Phase(), Title: "do " + string(s.id)}, nil
}

func (s *step) Apply(ctx context.Context, p engine.StepPlan, cp engine.Checkpoint) error {
	cp.Emit(engine.Event{Kind: engine.EventNote, Message: "apply " + p.Title})
	if s.apply == nil {
		return nil
	}
	return s.apply(ctx, cp)
}

// gated is a step that a person must allow.
type gated struct {
	step
	expires time.Duration
}

func (g *gated) Approval() engine.ApprovalRequest {
	return engine.ApprovalRequest{Name: "go", Message: "Batch jobs stopped?", Expires: g.expires}
}

var start = time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC)

// newWalk makes a walk of the steps whose clock advances a second a look, and the list of what it
// emitted as "kind step".
func newWalk(t *testing.T, j engine.Journal, steps ...engine.Step) (*engine.Walk, *[]string) {
	t.Helper()
	p := &engine.Plan{Name: "erp"}
	for _, s := range steps {
		sp, err := s.Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.Steps = append(p.Steps, sp)
	}
	events, now := &[]string{}, start
	return &engine.Walk{
		Plan: p, Digest: p.Digest(), Steps: steps, Journal: j,
		Sink: engine.SinkFunc(func(e engine.Event) { *events = append(*events, string(e.Kind)+" "+string(e.Step)) }),
		Now:  func() time.Time { now = now.Add(time.Second); return now },
	}, events
}

func states(outcomes []engine.Outcome) []string {
	var out []string
	for _, o := range outcomes {
		s := string(o.ID) + " " + string(o.State)
		if o.Skipped {
			s += " skipped"
		}
		out = append(out, s)
	}
	return out
}

func compare(t *testing.T, what string, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestWalkGoesInOrderAndSkipsWhatIsDone(t *testing.T) {
	j := journal.NewMemory()
	steps := []engine.Step{&step{id: "a"}, &step{id: "b"}, &step{id: "c"}}
	w, events := newWalk(t, j, steps...)
	w.Until = "b" // inclusive
	outcomes, err := w.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "outcomes", []string{"a done", "b done", "c pending"}, states(outcomes))
	compare(t, "events", []string{"step_started a", "note a", "step_done a", "step_started b", "note b", "step_done b"}, *events)
	if outcomes[0].Elapsed <= 0 || outcomes[2].Elapsed != 0 {
		t.Errorf("elapsed %v and %v", outcomes[0].Elapsed, outcomes[2].Elapsed)
	}

	w, events = newWalk(t, j, steps...)
	if outcomes, err = w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	compare(t, "outcomes", []string{"a done skipped", "b done skipped", "c done"}, states(outcomes))
	compare(t, "events", []string{"step_skipped a", "step_skipped b", "step_started c", "note c", "step_done c"}, *events)
}

func TestFailingStepStopsTheWalkAndIsBegunAgain(t *testing.T) {
	j := journal.NewMemory()
	cause := errors.New("no space left")
	b := &step{id: "b", apply: func(context.Context, engine.Checkpoint) error {
		return &engine.Error{Class: engine.ClassNoCutover, Op: "taking the hold", Object: "K", Hint: "Run again.", Err: cause}
	}}
	w, events := newWalk(t, j, &step{id: "a"}, b, &step{id: "c"})
	outcomes, err := w.Run(t.Context())
	var e *engine.Error
	if !errors.Is(err, cause) || !errors.As(err, &e) || e.Step != "b" || engine.ClassOf(err) != engine.ClassNoCutover || engine.HintOf(err) != "Run again." {
		t.Errorf("error %v of step %q", err, e.Step)
	}
	compare(t, "outcomes", []string{"a done", "b failed", "c pending"}, states(outcomes))
	if last := (*events)[len(*events)-1]; last != "step_failed b" {
		t.Errorf("the last event is %q", last)
	}
	b.apply = nil
	w, _ = newWalk(t, j, w.Steps...)
	if outcomes, err = w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	compare(t, "outcomes", []string{"a done skipped", "b done", "c done"}, states(outcomes))
}

func TestUntilNamesNoStep(t *testing.T) {
	w, events := newWalk(t, journal.NewMemory(), &step{id: "a"})
	w.Until = "b"
	if outcomes, err := w.Run(t.Context()); engine.ClassOf(err) != engine.ClassRunbook || len(outcomes) != 0 || len(*events) != 0 {
		t.Errorf("got %v, outcomes %v, events %v", err, states(outcomes), *events)
	}
}

func TestPlainErrorNamesItsStep(t *testing.T) {
	w, _ := newWalk(t, journal.NewMemory(), &step{id: "a", apply: func(context.Context, engine.Checkpoint) error { return errors.New("boom") }})
	_, err := w.Run(t.Context())
	if err == nil || err.Error() != "step a: boom" || engine.ClassOf(err) != engine.ClassFailed {
		t.Errorf("got %v", err)
	}
}

func TestDoneStepWithOtherInputsIsStale(t *testing.T) {
	j := journal.NewMemory()
	a := &step{id: "a", fingerprint: "1"}
	w, _ := newWalk(t, j, a)
	if _, err := w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.fingerprint = "2"
	w, events := newWalk(t, j, a)
	_, err := w.Run(t.Context())
	if engine.ClassOf(err) != engine.ClassStale || engine.HintOf(err) == "" {
		t.Errorf("got %v, want ClassStale with a hint", err)
	}
	compare(t, "events", []string{}, *events)
}

func TestStepThatThePlanDoesNotHaveIsStale(t *testing.T) {
	w, _ := newWalk(t, journal.NewMemory(), &step{id: "a"})
	w.Steps = append(w.Steps, &step{id: "b"})
	if _, err := w.Run(t.Context()); engine.ClassOf(err) != engine.ClassStale {
		t.Errorf("got %v, want ClassStale", err)
	}
}

func TestCancelledWalk(t *testing.T) {
	cause := errors.New("the run's lock was lost")
	t.Run("before a step", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		w, events := newWalk(t, journal.NewMemory(), &step{id: "a", apply: func(context.Context, engine.Checkpoint) error { cancel(cause); return nil }}, &step{id: "b"})
		outcomes, err := w.Run(ctx)
		if !errors.Is(err, cause) {
			t.Errorf("got %v, want the cause", err)
		}
		compare(t, "outcomes", []string{"a done", "b pending"}, states(outcomes))
		if last := (*events)[len(*events)-1]; last != "step_done a" {
			t.Errorf("the last event is %q", last)
		}
	})
	t.Run("in a step, its end is recorded", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		j := &endRecorder{Journal: journal.NewMemory()}
		a := &step{id: "a", apply: func(ctx context.Context, _ engine.Checkpoint) error { cancel(cause); return context.Cause(ctx) }}
		w, _ := newWalk(t, j, a)
		outcomes, err := w.Run(ctx)
		if !errors.Is(err, cause) {
			t.Errorf("got %v, want the cause", err)
		}
		compare(t, "outcomes", []string{"a failed"}, states(outcomes))
		if j.ctxErr != nil || !errors.Is(j.cause, cause) {
			t.Errorf("the end was recorded with %v under a context with %v", j.cause, j.ctxErr)
		}
	})
}

// farJournal is a long way off: each of its records takes so long.
type farJournal struct {
	engine.Journal
	takes time.Duration
	ended bool
}

func (f *farJournal) way(ctx context.Context) error {
	select {
	case <-time.After(f.takes):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *farJournal) Begin(ctx context.Context, s engine.Step) (engine.StepRecord, error) {
	if err := f.way(ctx); err != nil {
		return engine.StepRecord{}, err
	}
	return f.Journal.Begin(ctx, s)
}

func (f *farJournal) End(ctx context.Context, id engine.StepID, cause error) error {
	if err := f.way(ctx); err != nil {
		return err
	}
	f.ended = true
	return f.Journal.End(ctx, id, cause)
}

// TestEndIsRecordedOverALongWay: the time that the record of a step's end has follows from what that of
// its begin took, also where the walk was stopped in between; it has an end where no answer comes.
func TestEndIsRecordedOverALongWay(t *testing.T) {
	for name, c := range map[string]struct {
		begin, end time.Duration
		stopped    bool
		lost       bool
	}{
		"a step that is done": {begin: 4 * time.Second, end: 10 * time.Second},
		"a walk that stops":   {begin: 4 * time.Second, end: 10 * time.Second, stopped: true},
		"near":                {end: 2 * time.Second},
		"no answer":           {begin: 4 * time.Second, end: time.Hour, lost: true},
		"no answer, near":     {end: 4 * time.Second, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				cause := errors.New("stopped by a person")
				j := &farJournal{Journal: journal.NewMemory(), takes: c.begin}
				w, _ := newWalk(t, j, &step{id: "a", apply: func(ctx context.Context, _ engine.Checkpoint) error {
					j.takes = c.end
					if c.stopped {
						cancel(cause)
					}
					return context.Cause(ctx)
				}})
				outcomes, err := w.Run(ctx)
				var want error
				switch {
				case c.lost:
					want = context.DeadlineExceeded
				case c.stopped:
					want = cause
				}
				if !errors.Is(err, want) {
					t.Errorf("the walk ended with %v, want %v", err, want)
				}
				compare(t, "outcomes", []string{map[bool]string{true: "a failed", false: "a done"}[want != nil]}, states(outcomes))
				if j.ended == c.lost {
					t.Errorf("the step's end is recorded: %v", j.ended)
				}
			})
		})
	}
}

// endRecorder notes how a step's end was recorded.
type endRecorder struct {
	engine.Journal
	cause, ctxErr error
}

func (r *endRecorder) End(ctx context.Context, id engine.StepID, cause error) error {
	r.cause, r.ctxErr = cause, ctx.Err()
	return r.Journal.End(ctx, id, cause)
}

// brokenJournal fails one of its methods.
type brokenJournal struct {
	engine.Journal
	begin, end error
}

func (b *brokenJournal) Begin(ctx context.Context, s engine.Step) (engine.StepRecord, error) {
	if b.begin != nil {
		return engine.StepRecord{}, b.begin
	}
	return b.Journal.Begin(ctx, s)
}

func (b *brokenJournal) End(ctx context.Context, id engine.StepID, cause error) error {
	if b.end != nil {
		return b.end
	}
	return b.Journal.End(ctx, id, cause)
}

func TestFailedJournalWriteStopsTheWalk(t *testing.T) {
	lost := errors.New("connection lost")
	applied := 0
	a := &step{id: "a", apply: func(context.Context, engine.Checkpoint) error { applied++; return nil }}
	for name, j := range map[string]*brokenJournal{"begin": {begin: lost}, "end": {end: lost}} {
		t.Run(name, func(t *testing.T) {
			j.Journal, applied = journal.NewMemory(), 0
			w, events := newWalk(t, j, a, &step{id: "b"})
			outcomes, err := w.Run(t.Context())
			if !errors.Is(err, lost) {
				t.Fatalf("got %v", err)
			}
			if want := map[string]int{"begin": 0, "end": 1}[name]; applied != want {
				t.Errorf("applied %d times, want %d", applied, want)
			}
			if outcomes[0].State == engine.StepDone || outcomes[1].State != engine.StepPending {
				t.Errorf("outcomes %v", states(outcomes))
			}
			all := strings.Join(*events, " ")
			if strings.Contains(all, "step_done") || name == "end" && !strings.Contains(all, "step_failed a") {
				t.Errorf("events %v", *events)
			}
		})
	}
}

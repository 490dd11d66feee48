package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// StepState is a step's state in the journal.
type StepState string

// The states of a step. A running step of a dead process is begun again.
const (
	StepPending StepState = "pending"
	StepRunning StepState = "running"
	StepDone    StepState = "done"
	StepFailed  StepState = "failed"
)

// StepRecord is what the journal knows of a step.
type StepRecord struct {
	ID          StepID
	State       StepState
	Fingerprint string
	Started     time.Time
	Ended       time.Time
	Error       string
}

// Approval is a person's yes.
type Approval struct {
	Name       string
	By         string
	At         time.Time     // by the clock of who gave it
	Age        time.Duration // since the journal has it, by the journal's clock alone; the journal fills it in
	PlanDigest string
}

// Journal is the durable record that the walk writes. engine/journal implements it on the target.
type Journal interface {
	// Begin records that a step starts, or returns the record of one that is done. A done step
	// whose fingerprint differs is an error of ClassStale.
	Begin(ctx context.Context, s Step) (StepRecord, error)
	// End records how a step ended; cause is nil for done.
	End(ctx context.Context, id StepID, cause error) error
	// Approval looks for an approval of this name, bound to this plan digest.
	Approval(ctx context.Context, name, planDigest string) (Approval, bool, error)
	// Approve records one.
	Approve(ctx context.Context, a Approval) error
	// Checkpoint gives the step's durable progress.
	Checkpoint(id StepID, sink Sink) Checkpoint
}

// Walk is one run of a plan's steps.
type Walk struct {
	Plan    *Plan
	Digest  string // of the plan as accepted
	Steps   []Step // in the plan's order
	Journal Journal
	Sink    Sink
	Ask     AskFunc // nil: nobody can be asked
	// LookEvery is how often an approval from elsewhere is looked for meanwhile. Defaults to a second
	LookEvery time.Duration
	// Predict says what the freeze that an approval is for would cost; nil or "" says nothing.
	Predict func(ctx context.Context) string
	Until   StepID // inclusive; empty walks all, a name that is no step's is an error
	// Again is the command of this walk, which an error's hint says to type. Defaults to pgrunbook apply
	Again string
	// OnlyHere: approvals are recorded by Again alone, since there is no journal that others reach.
	OnlyHere bool
	// Hold is asked before each step that is not done; it may wait. Nil never does.
	Hold func(ctx context.Context, id StepID) error
	// Explain adds to a step's error what its servers are known by; nil adds nothing.
	Explain func(err error) error
	Now     func() time.Time // Defaults to time.Now
}

// Outcome is one step's part in a walk, for the closing table.
type Outcome struct {
	ID      StepID        `json:"id"`
	Phase   Phase         `json:"phase"`
	State   StepState     `json:"state"`
	Skipped bool          `json:"skipped,omitempty"` // done before this process
	Elapsed time.Duration `json:"elapsed"`
}

// Run applies the steps in order and returns one outcome a step, also on failure.
func (w *Walk) Run(ctx context.Context) ([]Outcome, error) {
	if w.Now == nil {
		w.Now = time.Now
	}
	if w.Explain == nil {
		w.Explain = func(err error) error { return err }
	}
	if w.Until != "" && !slices.ContainsFunc(w.Steps, func(s Step) bool { return s.ID() == w.Until }) {
		return nil, Errorf(ClassRunbook, "Take a step's name from: pgrunbook plan", "there is no step %q to stop after", w.Until)
	}
	outcomes := make([]Outcome, 0, len(w.Steps))
	for i, s := range w.Steps {
		o, err := w.step(ctx, s)
		outcomes = append(outcomes, o)
		if err != nil || s.ID() == w.Until {
			for _, rest := range w.Steps[i+1:] {
				outcomes = append(outcomes, Outcome{ID: rest.ID(), Phase: rest.Phase(), State: StepPending})
			}
			return outcomes, err
		}
	}
	return outcomes, nil
}

// recordWithin bounds the record of a step's end; over a long way it is longer, by what that of its begin took.
const recordWithin = 3 * time.Second

func (w *Walk) step(ctx context.Context, s Step) (Outcome, error) {
	o := Outcome{ID: s.ID(), Phase: s.Phase(), State: StepRunning}
	if err := ctx.Err(); err != nil {
		o.State = StepPending
		return o, context.Cause(ctx)
	}
	p, ok := w.Plan.Step(s.ID())
	if !ok {
		return o, Errorf(ClassStale, "Run plan again.", "step %s is not in the plan", s.ID())
	}
	asked := time.Now()
	rec, err := w.Journal.Begin(ctx, s)
	recording := max(recordWithin, 3*time.Since(asked))
	if err != nil {
		return o, w.Explain(err)
	}
	if rec.State == StepDone {
		o.State, o.Skipped, o.Elapsed = StepDone, true, rec.Ended.Sub(rec.Started)
		w.emit(Event{Kind: EventStepSkipped, Step: s.ID(), Phase: s.Phase(), Message: "already done: " + p.Title})
		return o, nil
	}
	start := w.Now()
	w.emit(Event{Kind: EventStepStarted, Step: s.ID(), Phase: s.Phase(), Message: p.Title})
	if w.Hold != nil {
		err = w.Hold(ctx, s.ID())
	}
	if err == nil {
		err = w.approve(ctx, s)
	}
	if err == nil {
		err = s.Apply(ctx, p, w.Journal.Checkpoint(s.ID(), w.Sink))
	}
	if err != nil {
		err = w.Explain(err)
	}
	o.Elapsed = w.Now().Sub(start)
	// The end is recorded even when the walk is being stopped, or the record would say "running" for ever.
	endCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recording)
	defer cancel()
	if endErr := w.Journal.End(endCtx, s.ID(), err); err == nil && endErr != nil {
		err = fmt.Errorf("recording the end: %w", w.Explain(endErr))
	}
	if err != nil {
		o.State = StepFailed
		w.emit(Event{Kind: EventStepFailed, Step: s.ID(), Phase: s.Phase(), Level: "error", Message: Text(err), Elapsed: o.Elapsed, Hint: HintOf(err), SQLState: sqlState(err)})
		return o, named(s.ID(), err)
	}
	o.State = StepDone
	w.emit(Event{Kind: EventStepDone, Step: s.ID(), Phase: s.Phase(), Message: p.Title, Elapsed: o.Elapsed})
	return o, nil
}

// approve makes sure that a person said yes to a step that needs it.
func (w *Walk) approve(ctx context.Context, s Step) error {
	a, ok := s.(Approver)
	if !ok {
		return nil
	}
	req := a.Approval()
	predicted := ""
	if w.Predict != nil && (s.Phase() == PhaseCutover || s.Phase() == PhaseRollback) {
		if text := w.Predict(ctx); text != "" {
			predicted = "; " + text
			req.Message += " [" + text + "]"
		}
	}
	got, found, err := w.Journal.Approval(ctx, req.Name, w.Digest)
	if err != nil {
		return err
	}
	if found && inTime(req, got) {
		w.emit(Event{Kind: EventApproval, Step: s.ID(), Phase: s.Phase(), Message: fmt.Sprintf("%s approved by %s%s", req.Name, got.By, predicted)})
		return nil
	}
	if w.Ask == nil {
		hint := w.approveHint(req.Name)
		cause := fmt.Errorf("%q needs an approval: %s", req.Name, req.Message)
		if found {
			cause = fmt.Errorf("the approval of %q by %s at %s has expired: %s", req.Name, got.By, got.At.UTC().Format(time.RFC3339), req.Message)
		}
		return &Error{Class: ClassApproval, Hint: hint, Err: cause}
	}
	w.emit(Event{Kind: EventWaiting, Step: s.ID(), Phase: s.Phase(), Reason: "approval " + req.Name, Message: "waiting for a person at this terminal: approval " + req.Name})
	if got, err = w.ask(ctx, req); err != nil {
		return err
	}
	w.emit(Event{Kind: EventApproval, Step: s.ID(), Phase: s.Phase(), Message: fmt.Sprintf("%s approved by %s%s", req.Name, got.By, predicted)})
	return nil
}

// approveHint says how a person's yes gets here.
func (w *Walk) approveHint(name string) string {
	again := w.Again
	if again == "" {
		again = "pgrunbook apply"
	}
	hint := fmt.Sprintf("Approve it in the next job: %s --approve %s --by WHO", again, name)
	if !w.OnlyHere {
		hint += fmt.Sprintf(", or from anywhere: pgrunbook approve %s --by WHO", name)
	}
	return hint
}

func (w *Walk) emit(e Event) {
	e.At = w.Now()
	w.Sink.Emit(e)
}

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

func named(id StepID, err error) error {
	var e *Error
	if errors.As(err, &e) && e.Step == "" {
		e.Step = id
		return err
	}
	return fmt.Errorf("step %s: %w", id, err)
}

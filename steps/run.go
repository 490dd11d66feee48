package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// ErrNoRun says that a target has no run.
var ErrNoRun = journal.ErrNoRun

// Existing is the run that a target has, as far as the next apply must know it.
type Existing struct {
	ID    string
	Name  string
	State journal.RunState
	Plan  *engine.Plan
	Done  int // steps of the plan
	All   int
	Owner engine.Side // who takes writes
	Flips int         // that took place, there and back
}

// Active reports whether the run goes on.
func (e *Existing) Active() bool { return e != nil && e.State == journal.Active }

// FlipOpen reports whether a flip of the run is decided and not settled.
func (e *Existing) FlipOpen() bool { return e.Active() && e.Owner == journal.Unclear }

// LookForRun reads the target's active run, or the one that ended last. Nil is none.
func LookForRun(ctx context.Context, target *pg.Server) (e *Existing, err error) {
	err = repeated("looking for a run", func(ctx context.Context) (err error) {
		e, err = lookForRun(ctx, target)
		return err
	})(ctx)
	return e, err
}

func lookForRun(ctx context.Context, target *pg.Server) (*Existing, error) {
	run, err := journal.OpenReadOnly(ctx, target)
	if errors.Is(err, journal.ErrNoRun) {
		return nil, nil //nolint:nilnil // no run is not an error
	}
	if err != nil {
		return nil, notReached(engine.Target, err)
	}
	defer run.Close(ctx)
	e := &Existing{ID: run.ID, Name: run.Name, State: run.State, Plan: run.Plan, All: len(run.Plan.Steps)}
	owner, err := run.Owner(ctx)
	if err != nil {
		return nil, err
	}
	e.Owner = owner.Side
	if e.Flips, err = run.Flips(ctx); err != nil {
		return nil, err
	}
	records, err := run.Steps(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if r.State == engine.StepDone {
			e.Done++
		}
	}
	return e, nil
}

// AcceptedPlan reads the plan of the target's active run, or of the one that ended last.
func AcceptedPlan(ctx context.Context, target *pg.Server) (*engine.Plan, error) {
	e, err := LookForRun(ctx, target)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, ErrNoRun
	}
	return e.Plan, nil
}

// SameRunbook reports whether the run was accepted with this very runbook, files and variables.
func (e *Existing) SameRunbook(env *Env) bool { return e.Plan.Runbook.Digest == env.Runbook.Digest }

// AmendRun makes the plan with which a run goes on after its runbook changed; see Amend.
func AmendRun(ctx context.Context, env *Env, toolVersion string) (*engine.Plan, error) {
	run, err := journal.OpenReadOnly(ctx, env.Target)
	if err != nil {
		return nil, err
	}
	defer run.Close(ctx)
	return Amend(ctx, env, run, toolVersion)
}

// WalkOptions say how far and with whom a run is walked.
type WalkOptions struct {
	Until   engine.StepID
	Approve []engine.Approval // to record first; time and plan digest are filled in
	Ask     engine.AskFunc    // nil: nobody can be asked
	Show    engine.Sink
	Steal   bool // without the target: end the runner that holds the source
	pauses  bool // pause holds it between its steps
	again   string
}

// Walk walks the open run of env, from OpenRun. Events go to o.Show and into the journal.
func Walk(ctx context.Context, env *Env, o WalkOptions) ([]engine.Outcome, error) {
	env.report(o.Show)
	built, diags := Build(env)
	if diags.HasErrors() {
		return nil, &engine.Error{Class: engine.ClassRunbook, Op: "reading the runbook", Err: diags}
	}
	if err := env.notAborting(ctx, "going on"); err != nil {
		return nil, err
	}
	if err := afterWayBack(ctx, env, built); err != nil {
		return nil, err
	}
	if err := reopenCatchUp(ctx, env, built, o.Until); err != nil {
		return nil, err
	}
	o.pauses = true
	return env.walk(ctx, env.Plan, built, o)
}

// report makes events go to show and into the journal.
func (e *Env) report(show engine.Sink) {
	stored, id := e.Journal.EventSink(), e.Run.ID
	e.Sink = engine.SinkFunc(func(ev engine.Event) {
		if ev.At.IsZero() {
			ev.At = time.Now()
		}
		ev.Run = id
		show.Emit(ev)
		stored.Emit(ev)
	})
}

func (e *Env) walk(ctx context.Context, p *engine.Plan, built []engine.Step, o WalkOptions) ([]engine.Outcome, error) {
	for _, a := range o.Approve {
		if err := approve(ctx, e.Journal, built, a); err != nil {
			return nil, err
		}
	}
	ctx, cancel := e.Journal.Context(ctx)
	defer cancel()
	w := engine.Walk{Plan: p, Digest: e.Journal.Digest, Steps: built, Journal: e.Journal, Sink: e.Sink, Ask: o.Ask, Until: o.Until, Predict: e.predicted, Again: o.again, Explain: e.placed}
	if o.pauses {
		w.Hold = func(ctx context.Context, id engine.StepID) error {
			return e.unpaused(ctx, e.Journal.Checkpoint(id, e.Sink).Emit)
		}
	}
	e.Sink.Emit(engine.Event{Kind: engine.EventRunStarted, Message: "run " + e.Run.ID + " of " + e.Plan.Name})
	outcomes, err := w.Run(ctx)
	if err != nil {
		err = blamed(ctx, e, err)
	}
	return outcomes, withCause(ctx, err)
}

// predicted is the prediction for a person who is asked.
func (e *Env) predicted(ctx context.Context) string {
	owner, err := e.Journal.Owner(ctx)
	if err != nil {
		return "" // the walk meets the same error and says it
	}
	p, err := predictNow(ctx, e, owner)
	if err != nil || p.WriteBlock == 0 {
		return ""
	}
	return p.String()
}

// PlanFinish says what finish will do, as a plan.
func PlanFinish(ctx context.Context, env *Env, o FinishOptions) (*engine.Plan, []engine.Step, error) {
	built, diags := BuildFinish(env, o)
	if diags.HasErrors() {
		return nil, nil, &engine.Error{Class: engine.ClassRunbook, Op: "reading the runbook", Err: diags}
	}
	p, err := planOf(ctx, env, built)
	if err != nil {
		return nil, nil, err
	}
	owner, err := env.Journal.Owner(ctx)
	if err != nil {
		return nil, nil, err
	}
	step := &finishStep{env: env, o: o}
	if err := step.due(owner); err != nil && (!o.WithoutSource || owner.Side != journal.Unclear) { // which that settles
		p.Findings = append(p.Findings, engine.Finding{Code: "FIN001", Severity: engine.SeverityError, Text: "not now: " + err.Error(), Fix: engine.HintOf(err)})
	}
	return p, built, nil
}

// planOf makes a plan of other steps than the accepted ones, for the same run.
func planOf(ctx context.Context, env *Env, built []engine.Step) (*engine.Plan, error) {
	p := *env.Plan
	p.Steps, p.Findings, p.Predictions = nil, nil, engine.Prediction{}
	for _, s := range built {
		sp, err := planStep(ctx, env, s)
		if err != nil {
			return nil, err
		}
		p.Steps = append(p.Steps, sp)
	}
	return &p, nil
}

// Finish walks the steps of finish on the open run of env, and removes the journal last. Before that it hands the
// certificate of the latest flip, which goes with the journal, to last.
func Finish(ctx context.Context, env *Env, f FinishOptions, o WalkOptions, last func(Certificate) error) ([]engine.Outcome, error) {
	env.report(o.Show)
	p, built, err := PlanFinish(ctx, env, f)
	if err != nil {
		return nil, err
	}
	for _, s := range built { // before steps of people's that stop the old server
		if s, ok := s.(*finishStep); ok {
			bounded, cancel := env.Journal.Context(ctx)
			err := withCause(bounded, s.allowed(bounded))
			cancel()
			if err != nil {
				return nil, err
			}
		}
	}
	o.again = f.command()
	outcomes, err := env.walk(ctx, p, built, o)
	if err != nil {
		return outcomes, err
	}
	if c, err := certificateOf(ctx, env.Journal); err == nil {
		if err := last(c); err != nil {
			return outcomes, err
		}
	}
	return outcomes, CloseRun(ctx, env, f)
}

// AbortRun gives up the open run of env; events go to show and into the journal.
func AbortRun(ctx context.Context, env *Env, o AbortOptions, show engine.Sink) error {
	if env.Journal == nil {
		env.Sink = show
		return Abort(ctx, env, o)
	}
	env.report(show)
	ctx, cancel := env.Journal.Context(ctx)
	defer cancel()
	return withCause(ctx, env.placed(Abort(ctx, env, o)))
}

// withCause puts the reason for which a context ended before the errors that its end made.
func withCause(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || errors.Is(err, cause) {
		return err
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// approve records an approval of a step that the plan has.
func approve(ctx context.Context, run *journal.Run, built []engine.Step, a engine.Approval) error {
	known := loadApprovals(run.Plan)
	for _, s := range built {
		if ap, ok := s.(engine.Approver); ok {
			known = append(known, ap.Approval().Name)
		}
	}
	if err := checkApproval(a.Name, known); err != nil {
		return err
	}
	a.At, a.PlanDigest = time.Now().UTC(), run.Digest
	return run.Approve(ctx, a)
}

// Approve records a person's yes for the target's active run, from anywhere.
func Approve(ctx context.Context, target *pg.Server, name, by string) error {
	run, err := journal.Attach(ctx, target, "approve")
	if err != nil {
		return err
	}
	defer run.Close(ctx)
	if err := checkApproval(name, approvalsOf(run.Plan)); err != nil {
		return err
	}
	return run.Approve(ctx, engine.Approval{Name: name, By: by, At: time.Now().UTC(), PlanDigest: run.Digest})
}

// distrust takes back an earlier proof that both sides are equal: no cutover may rest on it.
func distrust(ctx context.Context, env *Env, id engine.StepID) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Side != engine.Source {
		return err
	}
	return env.Journal.Reopen(ctx, id, false, "a later pgrunbook verify found both sides different")
}

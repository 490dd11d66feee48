package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
	"github.com/pgrunbook/pgrunbook/steps/internal/sequences"
)

// aloneStep opens the source without the target. The journal is gone with the target, so what it
// has to know it reads from the source: whose run it is, since when it is closed, how the poolers
// were changed, and up to when reverse passes have come.
//
// The order is that of a freeze: first everything is pointed to the source, which still refuses
// writes, then it is opened in one transaction. Each part may be repeated.
type aloneStep struct {
	env  *Env
	undo []freeze.SwitchStep // the switch steps, backwards
	loss *Loss
	done bool // an earlier call opened the source
}

func (s *aloneStep) ID() engine.StepID   { return "rollback" }
func (s *aloneStep) Phase() engine.Phase { return engine.PhaseRollback }

// Fingerprint covers nothing: no record outlives the command.
func (s *aloneStep) Fingerprint() string { return "rollback_alone/1" }

// Plan lists what is done, in order.
func (s *aloneStep) Plan(context.Context) (engine.StepPlan, error) {
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(), Title: "let the source take writes again, without what was written to the target",
		Hazards: []engine.Hazard{{Kind: engine.HazardLoss, Text: "what was committed on the target and not carried back is given up"}, {Kind: engine.HazardOneWay, Text: "no application may ever reach that target again"}},
	}
	for _, u := range s.undo {
		p.Actions = append(p.Actions, engine.Action{On: engine.Runner, SQL: u.Name})
	}
	for _, o := range s.env.Runbook.Cutover.Poolers {
		p.Actions = append(p.Actions, engine.Action{On: engine.Runner, SQL: fmt.Sprintf("pooler %s: point %s back to the source, RELOAD; RESUME once the source is open", o.Name, o.Database)})
	}
	for _, sql := range []string{"ALTER SEQUENCE pgrunbook.gate_flag RESTART 0", "ALTER SEQUENCE ... RESTART for each sequence", "ALTER DATABASE ... RESET default_transaction_read_only"} {
		p.Actions = append(p.Actions, engine.Action{On: engine.Source, SQL: sql, Group: "one transaction"})
	}
	return p, nil
}

// Apply may be called again after any death.
func (s *aloneStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	group, err := poolerGroup(s.env)
	if err != nil {
		return err
	}
	back := &poolers{group: group, cp: cp, back: true, cursor: &freezeCursor{Changes: s.loss.changes, Paused: true}}
	defer back.close()
	if !s.done {
		if err := s.open(ctx, cp, back); err != nil {
			return err
		}
	}
	failpoint.Hit("alone.opened")
	if err := back.resume(ctx); err != nil {
		return err
	}
	failpoint.Hit("alone.resumed")
	return nil
}

// open points everything to the source and opens it, while the target is known not to take writes.
func (s *aloneStep) open(ctx context.Context, cp engine.Checkpoint, back *poolers) error {
	for _, u := range s.undo {
		bounded, cancel := context.WithTimeout(ctx, u.Timeout)
		err := u.Do(bounded)
		cancel()
		if err != nil {
			return &engine.Error{
				Op: "pointing back to the source:", Object: u.Name, Err: err,
				Hint: "The source is still closed. Mend the undo in the runbook, or take the step out of it, and run the same command again.",
			}
		}
		cp.Emit(engine.Event{Kind: engine.EventNote, Message: "did " + u.Name})
		failpoint.Hit("alone.switched")
	}
	if err := back.repoint(ctx); err != nil {
		return err
	}
	failpoint.Hit("alone.repointed")
	_, release, err := targetGone(ctx, s.env) // once more, just before the source is opened
	if err != nil {
		return err
	}
	defer release()
	conn, err := s.env.Source.Connect(ctx, pg.Use{Name: "rollback", Marked: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = gate.OpenAlone(ctx, conn, s.env.Run.GateKey, func(ctx context.Context) error {
		if err := sequences.Raise(ctx, conn, s.env.Scope.Sequences, s.env.Runbook.Cutover.SequenceMargin); err != nil {
			return err
		}
		reset, err := resetReadOnly(ctx, conn, "")
		if err == nil && reset != "" {
			_, err = conn.Exec(ctx, reset)
		}
		failpoint.Hit("alone.opening")
		return err
	})
	if err != nil {
		return sided(engine.Source, err)
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: fmt.Sprintf("the source takes writes; %d sequences stand %d values ahead", len(s.env.Scope.Sequences), s.env.Runbook.Cutover.SequenceMargin)})
	return nil
}

// PlanWithoutTarget looks at the source and for the target, and says what going back without the
// target would lose. It changes nothing. A target that takes writes, or might, is an error.
func PlanWithoutTarget(ctx context.Context, env *Env) (*Loss, error) {
	s, release, err := newAlone(ctx, env)
	if err != nil {
		return nil, err
	}
	release()
	return s.loss, nil
}

// RollbackWithoutTarget lets the source take writes again when the target is gone for good.
func RollbackWithoutTarget(ctx context.Context, env *Env, o WalkOptions) ([]engine.Outcome, error) {
	s, release, err := newAlone(ctx, env)
	if err != nil {
		return nil, err
	}
	release()
	unlock, err := journal.LockAlone(ctx, env.Source, env.Run.ID, env.Run.Mark, o.Steal)
	if err != nil {
		return nil, err
	}
	defer unlock()
	failpoint.Hit("alone.locked")
	env.Sink = engine.SinkFunc(func(e engine.Event) {
		if e.At.IsZero() {
			e.At = time.Now()
		}
		e.Run = env.Run.ID
		o.Show.Emit(e)
	})
	hooks := env.Runbook.Hooks[string(engine.PhaseRollback)]
	before, _ := people(env, Place{engine.PhaseRollback, Before}, hooks.Before)
	after, _ := people(env, Place{engine.PhaseRollback, After}, hooks.After)
	built := slices.Concat(before, []engine.Step{s}, after)
	p, err := planOf(ctx, env, built)
	if err != nil {
		return nil, err
	}
	record := journal.NewMemory()
	for _, a := range o.Approve {
		a.At, a.PlanDigest = time.Now().UTC(), p.Digest()
		if err := record.Approve(ctx, a); err != nil {
			return nil, err
		}
	}
	w := engine.Walk{Plan: p, Digest: p.Digest(), Steps: built, Journal: record, Sink: env.Sink, Ask: o.Ask, Again: "pgrunbook rollback --without-target", OnlyHere: true, Explain: env.placed}
	return w.Run(ctx)
}

// newAlone completes env from the source alone and finds out what would be lost. release lets go of
// a target that answers and is closed.
func newAlone(ctx context.Context, env *Env) (_ *aloneStep, release func(), err error) {
	if diags := Check(env.Runbook); diags.HasErrors() {
		return nil, nil, &engine.Error{Class: engine.ClassRunbook, Op: "reading the runbook", Err: diags}
	}
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "rollback"})
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := adoptSource(ctx, env, conn); err != nil {
		return nil, nil, err
	}
	closing, err := gate.ReadClosing(ctx, conn, string(engine.Target))
	if err != nil {
		return nil, nil, err
	}
	at, err := gate.State(ctx, conn, env.Run)
	if err != nil {
		return nil, nil, err
	}
	done := at == gate.Open && !closing.GivenUp.IsZero()
	if at != gate.Closed && !done {
		return nil, nil, notClosed(at)
	}
	answer, release, err := targetGone(ctx, env)
	if err != nil && done {
		return nil, nil, &engine.Error{
			Class: engine.ClassAmbiguous, Op: "rolling back", Err: fmt.Errorf("the source was opened without the target at %s, and now: %w", closing.GivenUp.Format(time.RFC3339), err),
			Hint: "Both sides may take writes. Stop the target at once, or close one side: " + gate.CloseByHand,
		}
	}
	if err != nil {
		return nil, nil, err
	}
	forward, _ := people(env, Place{engine.PhaseCutover, Switch}, env.Runbook.Cutover.Switch)
	s := &aloneStep{env: env, undo: backSteps(switchSteps(env, forward)), done: done}
	if s.loss, err = readLoss(ctx, env, conn, closing, answer, s.undo, done); err != nil {
		release()
		return nil, nil, err
	}
	return s, release, nil
}

// adoptSource fills env with the run that the source holds, and the scope of the runbook.
func adoptSource(ctx context.Context, env *Env, conn *pgx.Conn) error {
	run, err := runOfSource(ctx, conn, "rolling back")
	if err != nil {
		return err
	}
	if run.Mark == "" {
		return &engine.Error{Op: "rolling back", Err: errors.New("the source holds no run that was cut over"), Hint: "Look whether the runbook names the right source."}
	}
	run.Message, run.ClosedError = env.Runbook.Cutover.ClosedMessage, env.Runbook.Cutover.ClosedError
	env.Run, env.Source, env.Target = run, env.Source.ForRun(run.ID, run.Mark), env.Target.ForRun(run.ID, run.Mark)
	if env.Scope, _, err = scope.Resolve(ctx, scope.Input{Source: conn, Runbook: env.Runbook}); err != nil {
		return err
	}
	env.Plan = &engine.Plan{Format: engine.PlanFormat, Name: env.Runbook.Name, Runbook: pinRunbook(env.Runbook)}
	if env.Plan.Scope, err = json.Marshal(env.Scope); err != nil {
		return fmt.Errorf("writing the scope as JSON: %w", err)
	}
	return nil
}

// runOfSource reads whose run a source holds, to act on it alone. A database with that run's journal is its target,
// whatever the runbook calls it: there the journal, the gate and the way back would go.
func runOfSource(ctx context.Context, conn *pgx.Conn, op string) (scope.Run, error) {
	run, err := capture.RunOf(ctx, conn)
	if err != nil {
		return run, err
	}
	if has, err := journal.Holds(ctx, conn, run.ID); err != nil || !has {
		return run, err
	}
	return run, &engine.Error{
		Op: op, Err: fmt.Errorf("what the runbook calls the source holds the journal of run %s: it is the target of that run", run.ID),
		Hint: "Nothing was done. Look whether source and target are swapped in the runbook or in the environment; to let the old source take writes again: pgrunbook rollback, with both as they were.",
	}
}

func notClosed(at gate.Position) error {
	e := &engine.Error{Op: "rolling back", Err: fmt.Errorf("the source's gate is %s: it takes writes already", at), Hint: "To take everything of ours off it: pgrunbook abort --without-target"}
	if at == gate.Held {
		e.Class, e.Err, e.Hint = engine.ClassHeld, errors.New("a freeze holds the source's gate right now"), "Wait some seconds and run the same command again."
	}
	return e
}

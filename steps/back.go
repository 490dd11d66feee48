package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// PlanBack says what rollback will do, as a plan. Where there is no way back the error says why.
func PlanBack(ctx context.Context, env *Env) (*engine.Plan, []engine.Step, error) {
	built, diags := BuildBack(env)
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
	back, err := WayBack(ctx, env)
	if err == nil {
		back, err = back.compared(ctx, env, owner)
	}
	if err == nil {
		back, err = back.dated(ctx, env, owner)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := back.refuse(); err != nil {
		return nil, nil, err
	}
	if back.accepted != "" {
		p.Findings = append(p.Findings, back.acceptance(env.AcceptDifferences))
	}
	if back.Done {
		p.Predictions = engine.Prediction{Why: back.Why}
		return p, built, nil
	}
	if p.Predictions, err = predictNow(ctx, env, owner); err != nil {
		return nil, nil, err
	}
	p.Predictions.Why += fmt.Sprintf("; %d rows to carry back before it, about %s", back.Pending, back.Estimate)
	return p, built, nil
}

// Rollback walks the way back on the open run of env. The steps of an earlier rollback are walked
// again.
func Rollback(ctx context.Context, env *Env, o WalkOptions) ([]engine.Outcome, error) {
	env.report(o.Show)
	if err := settleFlip(ctx, env); err != nil {
		return nil, err
	}
	if owner, err := env.Journal.Owner(ctx); err != nil {
		return nil, err
	} else if owner.Side != journal.Unclear {
		if err := tidy(ctx, env, owner.Side, false); err != nil {
			return nil, err
		}
	}
	p, built, err := PlanBack(ctx, env)
	if err != nil {
		return nil, err
	}
	back, err := WayBack(ctx, env)
	if err != nil {
		return nil, err
	}
	if back.Possible {
		for _, s := range built {
			if err := env.Journal.Reopen(ctx, s.ID(), true, "another rollback was begun"); err != nil {
				return nil, err
			}
		}
	}
	o.again = "pgrunbook rollback"
	return env.walk(ctx, p, built, o)
}

// FollowBack makes reverse passes on the open run of env until ctx ends.
func FollowBack(ctx context.Context, env *Env, show engine.Sink) (err error) {
	defer func() { err = env.placed(err) }()
	env.report(show)
	owner, err := env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	if owner.Side != engine.Target {
		return &engine.Error{Op: "following", Err: errors.New("the target does not take writes: there is nothing to carry back"), Hint: "Before the cutover, apply is what follows: pgrunbook apply --until catch_up"}
	}
	ctx, cancel := env.Journal.Context(ctx)
	defer cancel()
	err = Follow(ctx, env, journal.NewMemory().Checkpoint(followID, env.Sink))
	if err != nil && ctx.Err() == nil { // perhaps because the way back is lost: then it is recorded at once
		if back, lookErr := WayBack(ctx, env); lookErr == nil {
			back, _ = back.dated(ctx, env, owner)
			if !back.Possible && !back.Done && back.class == engine.ClassFailed && back.Why != "" {
				err = &engine.Error{Op: "following", Err: errors.New(back.Why + back.when()), Hint: back.Hint}
			}
		}
	}
	return withCause(ctx, err)
}

// Rehearsal is what a freeze cost that was let go again.
type Rehearsal struct {
	Blocked time.Duration
	Budget  time.Duration
	Drain   time.Duration
	Rows    int64
	Marks   []freeze.Mark // when each part ended, from the moment writers began to wait

	Predicted engine.Prediction // of the cutover, which has switch steps and a flip besides
}

// MarshalJSON gives durations in seconds.
func (r Rehearsal) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Blocked float64    `json:"write_block_seconds"`
		Budget  float64    `json:"budget_seconds"`
		Drain   float64    `json:"drain_seconds"`
		Rows    int64      `json:"rows"`
		Marks   []markLine `json:"marks"`

		Predicted engine.PredictionLine `json:"predicted"`
	}{r.Blocked.Seconds(), r.Budget.Seconds(), r.Drain.Seconds(), r.Rows, markLines(r.Marks), r.Predicted.Line()})
}

// gated refuses a pair without gates: there is nothing to hold yet.
func gated(ctx context.Context, env *Env) error {
	sides, err := openSides(ctx, env, "rehearse")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	for _, side := range []engine.Side{engine.Target, engine.Source} {
		at, err := gate.State(ctx, sides.of(side), env.Run)
		if err != nil {
			return sided(side, err)
		}
		if at == gate.Absent {
			return &engine.Error{Op: "rehearsing", Err: fmt.Errorf("the %s has no gate yet, which holds its writers: the run has not come to its step arm", side), Hint: "pgrunbook apply --until arm"}
		}
	}
	return nil
}

// unrehearsed says what to do about a rehearsal that did not come to its end.
func unrehearsed(err error) error {
	hint := "A cutover would have failed for the same reason. Run it again when what is named is gone."
	switch {
	case errors.Is(err, errMended):
		hint = "pgrunbook apply --until arm makes the target right, compares both sides, and cuts nothing over. Then rehearse again."
	case errors.Is(err, errOneWay):
		hint = engine.HintOf(err)
	case engine.ClassOf(err) == engine.ClassAmbiguous:
		return err
	}
	return &engine.Error{Class: engine.ClassNoCutover, Op: "rehearsing", Err: err, Hint: hint}
}

// Rehearse makes the freeze on the live pair up to the switch steps, and lets it go. The sides stay
// as they are, but for sequences of the target that stand further ahead, and triggers of ours there that somebody touched.
func Rehearse(ctx context.Context, env *Env, show engine.Sink) (_ Rehearsal, err error) {
	defer func() { err = env.placed(err) }()
	env.report(show)
	ctx, cancel := env.Journal.Context(ctx)
	defer cancel()
	if err := env.notAborting(ctx, "rehearsing"); err != nil {
		return Rehearsal{}, err
	}
	if err := gated(ctx, env); err != nil {
		return Rehearsal{}, withCause(ctx, err)
	}
	step := newFreeze(env, nil).(*freezeStep)
	f, err := step.build(ctx, journal.NewMemory().Checkpoint(rehearseID, env.Sink))
	if err != nil {
		return Rehearsal{}, withCause(ctx, err)
	}
	defer f.close(ctx)
	state, err := f.Look(ctx)
	if err != nil {
		return Rehearsal{}, withCause(ctx, err)
	}
	if state.FromClosed {
		return Rehearsal{}, &engine.Error{Op: "rehearsing", Err: errors.New("the source's gate is closed already"), Hint: "pgrunbook status says who takes writes."}
	}
	if err := f.silent(ctx); err != nil {
		return Rehearsal{}, withCause(ctx, err)
	}
	f.Rehearsal = true
	if _, err := f.drain(ctx); err != nil {
		return Rehearsal{}, withCause(ctx, err)
	}
	var cert *freeze.Certificate
	if err = f.clearWay(ctx); err == nil {
		err = f.readyTo(ctx)
	}
	if err == nil {
		cert, err = f.Attempt(ctx, 1)
	}
	if errors.Is(err, freeze.ErrNotNow) {
		return Rehearsal{}, withCause(ctx, unrehearsed(err))
	}
	if err != nil {
		return Rehearsal{}, withCause(ctx, err)
	}
	return Rehearsal{Blocked: cert.Blocked, Budget: cert.Budget, Drain: cert.Drain, Rows: cert.Pass.Rows, Marks: cert.Marks, Predicted: f.predict(ctx)}, nil
}

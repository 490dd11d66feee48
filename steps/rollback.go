package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// BuildBack gives the steps of the way back: the cutover's freeze with the sides swapped, with the
// undo commands of its switch, between the steps that people put around the rollback.
func BuildBack(env *Env) ([]engine.Step, hcl.Diagnostics) {
	hooks := env.Runbook.Hooks[string(engine.PhaseRollback)]
	repoint, d1 := people(env, Place{engine.PhaseCutover, Switch}, env.Runbook.Cutover.Switch)
	before, d2 := people(env, Place{engine.PhaseRollback, Before}, hooks.Before)
	after, d3 := people(env, Place{engine.PhaseRollback, After}, hooks.After)
	own := newRollback(env, switchSteps(env, repoint))
	return append(append(before, own), after...), append(append(d1, d2...), d3...)
}

func newRollback(env *Env, forward []freeze.SwitchStep) engine.Step {
	return &rollbackStep{freezeStep{env: env, id: "rollback", phase: engine.PhaseRollback, from: engine.Target, repoint: backSteps(forward)}}
}

// rollbackStep is the freeze from the target to the source.
type rollbackStep struct{ freezeStep }

// Apply refuses where there is no way back, and afterwards makes room for another cutover: capture
// on the source has been there all the time.
func (s *rollbackStep) Apply(ctx context.Context, p engine.StepPlan, cp engine.Checkpoint) error {
	back, err := WayBack(ctx, s.env)
	if err != nil {
		return err
	}
	if err := back.refuse(); err != nil {
		return err
	}
	if err := s.freezeStep.Apply(ctx, p, cp); err != nil {
		return err
	}
	failpoint.Hit("rollback.flipped")
	for _, sp := range s.env.Plan.Steps {
		if sp.Phase != engine.PhaseCutover {
			continue
		}
		if err := s.env.Journal.Reopen(ctx, sp.ID, false); err != nil {
			return err
		}
		failpoint.Hit("rollback.reopened")
	}
	return nil
}

// Back says whether writes can go back to the source.
type Back struct {
	Possible bool   `json:"possible"`
	Done     bool   `json:"done,omitempty"` // the source takes writes already
	Why      string `json:"why,omitempty"`  // not
	Hint     string `json:"hint,omitempty"`
	class    engine.Class
	Pending  int64         `json:"pending"`           // rows that reverse passes have still to carry
	Estimate time.Duration `json:"estimate,omitzero"` // how long that takes
}

// reverseRate is what a reverse pass is expected to carry, in rows a second.
const reverseRate = 20000

// WayBack looks at both sides. It is read-only.
func WayBack(ctx context.Context, env *Env) (Back, error) {
	owner, err := env.Journal.Owner(ctx)
	if err != nil {
		return Back{}, err
	}
	no := func(why, hint string) (Back, error) { return Back{Why: why, Hint: hint}, nil }
	if owner.Flip == nil || owner.Flip.From == engine.Source && owner.Flip.Outcome == journal.FlipUndone {
		return no("there was no cutover yet: writes are on the source", "pgrunbook abort leaves the source as it was found.")
	}
	if owner.Side == engine.Source {
		return Back{Done: true, Why: "writes are on the source already"}, nil
	}
	if !env.Runbook.Rollback.Enabled {
		return no("the runbook has rollback { enabled = false }, so the target's changes were not captured", "")
	}
	sides, err := openSides(ctx, env, "way back")
	if err != nil {
		return Back{}, fmt.Errorf("looking for the way back: %w", err)
	}
	defer sides.close(context.WithoutCancel(ctx))
	if owner.Side == engine.Target { // while a flip is open, the freeze itself settles it
		at, err := gate.State(ctx, sides.source, env.Run)
		if err != nil {
			return Back{}, err
		}
		if at != gate.Closed {
			return Back{
				Why:   fmt.Sprintf("the source's gate is %s: somebody opened it, or a failover lost it; the sides may have gone apart", at),
				Hint:  "Compare the sides before anything else: pgrunbook verify",
				class: engine.ClassAmbiguous,
			}, nil
		}
	}
	if why, hint, err := firing(ctx, sides.source, engine.Source, env.Scope); err != nil || why != "" {
		return Back{Why: why, Hint: hint}, err
	}
	changes, err := capture.Check(ctx, sides.target, env.Run, captured(env))
	if err != nil {
		return Back{}, err
	}
	if len(changes) > 0 {
		return no(changedTarget(changes))
	}
	n, err := pendingRows(ctx, sides.target)
	if err != nil {
		return Back{}, err
	}
	return Back{Possible: true, Pending: n, Estimate: time.Duration(float64(n) / reverseRate * float64(time.Second)).Round(time.Second)}, nil
}

// changedTarget says what changed on the target, and whether undoing it helps.
func changedTarget(changes []capture.Change) (why, hint string) {
	hint = "Undo that change on the target (what rewrites the table cannot be undone), or stay there: pgrunbook finish"
	names := make([]string, len(changes))
	for i, c := range changes {
		names[i] = pg.Name(c.Table.Schema, c.Table.Name) + ": " + c.Text
		if c.Rule == capture.Recopy {
			hint = "Rows may have changed there without a trace, so undoing it does not bring the way back. Stay on the target: pgrunbook finish"
		}
	}
	return "the target's tables changed: " + strings.Join(names, "; "), hint
}

// refuse is the error of a way back that is not there; nil where it is, or where it was walked.
func (b Back) refuse() error {
	if b.Possible || b.Done {
		return nil
	}
	return &engine.Error{Class: b.class, Op: "rolling back", Err: errors.New(b.Why), Hint: b.Hint}
}

// Follow makes reverse passes until ctx ends, so that a rollback finds little to do, and returns
// why it ended. Before each one it looks whether the source is still the closed one.
func Follow(ctx context.Context, env *Env, cp engine.Checkpoint) error {
	passer := newPasser(env, env.Target, env.Source, cp)
	defer func() { _ = passer.Close(context.WithoutCancel(ctx)) }()
	source, err := env.Source.Connect(ctx, pg.Use{Name: "follow", LockTimeout: lockPatience})
	if err != nil {
		return err
	}
	defer func() { _ = source.Close(context.WithoutCancel(ctx)) }()
	for ctx.Err() == nil {
		if source, err = stillClosed(ctx, env, source); err != nil {
			return err
		}
		if err := silent(ctx, source, engine.Source, env.Scope); err != nil {
			return err
		}
		res, err := passer.Exact(ctx, pass.Options{Patience: time.Minute})
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return fmt.Errorf("reverse pass: %w", err)
		}
		cp.Emit(engine.Event{Kind: engine.EventLag, Lag: res.Took, Rows: res.Rows + res.Deleted, Message: fmt.Sprintf("reverse pass of %d rows in %s", res.Rows+res.Deleted, res.Took.Round(time.Millisecond))})
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return context.Cause(ctx)
}

// stillClosed looks at the source's gate; a source that takes writes must not be written over.
func stillClosed(ctx context.Context, env *Env, conn *pgx.Conn) (*pgx.Conn, error) {
	at, err := gate.State(ctx, conn, env.Run)
	if err != nil && pg.IsConnLost(err) {
		_ = conn.Close(ctx)
		if conn, err = env.Source.Connect(ctx, pg.Use{Name: "follow", LockTimeout: lockPatience}); err == nil {
			at, err = gate.State(ctx, conn, env.Run)
		}
	}
	if err != nil {
		return conn, err
	}
	if at != gate.Closed {
		return conn, &engine.Error{
			Class: engine.ClassAmbiguous, Op: "following", Err: fmt.Errorf("the source's gate is %s although the target takes writes: two writable sides, or a failover that lost the flip", at),
			Hint: "Close the source at once (ALTER SEQUENCE pgrunbook.gate_flag RESTART 1), then compare: pgrunbook verify",
		}
	}
	return conn, nil
}

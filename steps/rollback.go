package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
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
// on the source has been there all the time, but the comparison from before the first one proves nothing
// of what was carried back since.
func (s *rollbackStep) Apply(ctx context.Context, p engine.StepPlan, cp engine.Checkpoint) error {
	owner, err := s.env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	back, err := WayBack(ctx, s.env)
	if err == nil {
		back, err = back.compared(ctx, s.env, owner)
	}
	if err != nil {
		return err
	}
	if err := back.refuse(); err != nil {
		return err
	}
	if err := acceptDifferences(ctx, s.env, back); err != nil {
		return err
	}
	if err := s.freezeStep.Apply(ctx, p, cp); err != nil {
		return err
	}
	failpoint.Hit("rollback.flipped")
	return openAgain(ctx, s.env, nil)
}

// placeEvery is how old the sessions of reverse passes to the source get. A failover that leaves the old primary
// alive, cut off from its clients, breaks no session: only a new one finds out who answers at its address.
const placeEvery = 5 * time.Second

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
	connected := time.Now()
	for ctx.Err() == nil {
		if err := env.unpaused(ctx, cp.Emit); err != nil {
			return err
		}
		if time.Since(connected) >= placeEvery {
			_ = source.Close(ctx) // stillClosed opens another
			connected = time.Now()
		}
		if source, err = stillClosed(ctx, env, source); err != nil {
			return err
		}
		if err := silent(ctx, source, engine.Source, env.Scope); err != nil {
			return err
		}
		if err := emptiedSource(ctx, env, source); err != nil {
			return err
		}
		stray, err := strayWrites(ctx, source)
		if err != nil {
			return err
		}
		if stray.Why != "" {
			return stray.refuse()
		}
		// In one piece, of any size: should the target be lost, the source opens as it is.
		res, err := passer.Follow(ctx, pass.FollowOptions{Options: pass.Options{Patience: time.Minute}})
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return fmt.Errorf("reverse pass: %w", err)
		}
		cp.Emit(engine.Event{Kind: engine.EventLag, Lag: res.Took, Elapsed: res.Took, Rows: res.Rows + res.Deleted, Message: fmt.Sprintf("reverse pass of %d rows in %s", res.Rows+res.Deleted, res.Took.Round(time.Millisecond))})
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
	if err != nil && (conn.IsClosed() || pg.IsConnLost(err)) {
		fresh, lost := env.Source.Connect(ctx, pg.Use{Name: "follow", LockTimeout: lockPatience})
		if lost != nil {
			return conn, lost
		}
		_ = conn.Close(ctx)
		conn = fresh
		at, err = gate.State(ctx, conn, env.Run)
	}
	if err != nil {
		return conn, err
	}
	if at != gate.Closed {
		return conn, notFollowed(ctx, env, at)
	}
	return conn, nil
}

// notFollowed is the error of a source that is not closed. Where the target is, by hand, the source is where writes go.
func notFollowed(ctx context.Context, env *Env, source gate.Position) error {
	e := &engine.Error{
		Class: engine.ClassAmbiguous, Op: "following", Err: fmt.Errorf("the source's gate is %s although the target takes writes: two writable sides, or a failover that lost the flip", source),
		Hint: "Close the source at once: " + gate.CloseByHand + " Then compare: pgrunbook verify",
	}
	if at, err := gateNow(ctx, env, engine.Target); err == nil && at == gate.Closed && (source == gate.Open || source == gate.Absent) {
		why, next := shutBeside(engine.Target, source)
		e.Err, e.Hint = errors.New(why), "Do "+next
	}
	return e
}

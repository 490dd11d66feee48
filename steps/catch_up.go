package steps

import (
	"cmp"
	"context"
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
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// catchUpID is the step's name.
const catchUpID engine.StepID = "catch_up"

const (
	lagToReach  = time.Second
	recopiesMax = 20 // of tables that keep being rewritten under our hands
)

// catchUpStep works off what was captured during the copy and follows until the target is within
// a second of the source.
type catchUpStep struct{ env *Env }

func newCatchUp(env *Env) engine.Step { return &catchUpStep{env: env} }

func (s *catchUpStep) ID() engine.StepID   { return catchUpID }
func (s *catchUpStep) Phase() engine.Phase { return engine.PhaseCatchUp }

// Fingerprint is fixed: nothing of the runbook decides what a pass does.
func (s *catchUpStep) Fingerprint() string { return "catch_up" }

// Plan says how a backlog is worked off.
func (s *catchUpStep) Plan(context.Context) (engine.StepPlan, error) {
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(),
		Title: "apply what was written meanwhile, until the target is less than a second behind",
		Why:   "afterwards each pass is small, and so is the last one, inside the freeze",
		Actions: []engine.Action{
			{On: engine.Source, SQL: "BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE ... IN ACCESS SHARE MODE; COPY (SELECT changed keys LEFT JOIN the table) TO STDOUT; DELETE FROM pgrunbook.delta_...", Why: "read the changed rows as they are now, and forget their keys"},
			{On: engine.Target, SQL: "DELETE keys without a row; INSERT ... ON CONFLICT DO UPDATE", Why: "apply them, with the position of the pass, in one transaction"},
		},
		Hazards: []engine.Hazard{{Kind: engine.HazardLoad, Text: "each pass reads the changed rows on the source by their key and makes one small durable commit there"}},
	}
	p.Rules = ddlRules(s.env.Runbook.Schema.OnDDL == "carry")
	for _, t := range s.env.Scope.Tables {
		if t.Data == scope.Live && t.Identity == scope.FullRow {
			p.Hazards = append(p.Hazards, engine.Hazard{
				Kind: engine.HazardLoad, Object: t.Display(),
				Text: "a table without a key: each pass with deleted or updated rows reads the whole table on the target",
			})
		}
	}
	return p, nil
}

// Apply drains and follows. Tables that were rewritten or swapped are loaded again in between.
func (s *catchUpStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	ctx, limits, err := watchLimits(ctx, s.env, cp)
	if err != nil {
		return err
	}
	defer limits.close()
	if err := s.env.silentTarget(ctx); err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	reloaded := map[int32]bool{} // because of images that do not fit
	failed, ddls := "", &churn{}
	for recopies := 0; recopies < recopiesMax; {
		err := s.definitions(ctx, cp)
		switch {
		case err == nil:
			failed, err = "", s.explained(ctx, s.follow(ctx, limits, cp))
		case err.Error() != failed: // what it was about may be gone already
			failed, err = err.Error(), s.explained(ctx, err)
		}
		var again *recopy
		var ddl *carry
		var redefined *errRedefined
		if errors.As(err, &redefined) {
			if err := ddls.round(ctx, cp.Emit, redefined.Error()); err != nil {
				return err
			}
			continue
		}
		if errors.As(err, &ddl) {
			again, err = carryDDL(ctx, s.env, cp, ddl)
			if errors.As(err, &redefined) || err == nil && len(again.tables) == 0 {
				if err := ddls.round(ctx, cp.Emit, ddl.Error()); err != nil {
					return err
				}
				continue
			}
			if err != nil {
				return err
			}
			err = again
		}
		var wide *widen
		if errors.As(err, &wide) {
			if err := (&copyStep{env: s.env}).widenTarget(ctx, cp, wide.changes); err != nil {
				return err
			}
			recopies++
			continue
		}
		var images *pass.UnfitError
		if errors.As(err, &images) && !reloaded[images.Table.ID] { // once: images of the second load fit, or another load is no help
			reloaded[images.Table.ID] = true
			err = unfit(images)
		}
		if !errors.As(err, &again) {
			if ctx.Err() != nil && err != nil {
				return context.Cause(ctx)
			}
			return err
		}
		recopies++
		err = s.explained(ctx, startAgain(ctx, s.env, limits, cp, again))
		if err != nil && !errors.As(err, &redefined) && !errors.As(err, &again) && !errors.As(err, &ddl) { // these the next round finds as well
			return err
		}
	}
	return &engine.Error{
		Op: "catching up", Err: fmt.Errorf("tables had to be loaded again %d times", recopiesMax),
		Hint: "Find out what rewrites tables on the source or swaps partitions, and stop it for the time of the run.",
	}
}

// follow looks before it loads: what joined may need the names of what a change takes off the target.
func (s *catchUpStep) follow(ctx context.Context, limits *limits, cp engine.Checkpoint) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	if err := s.loadLeft(ctx, limits, cp); err != nil {
		return err
	}
	if err := s.drain(ctx, limits, cp); err != nil {
		return err
	}
	return afterRows(ctx, s.env, cp)
}

// loadLeft loads the tables that joined, start over, or were left so by a dead runner: the copy step is done
// and does not come back for them. Passes over all others go on meanwhile, as beside the first load.
func (s *catchUpStep) loadLeft(ctx context.Context, limits *limits, cp engine.Checkpoint) error {
	left, err := stillLoading(ctx, s.env)
	if err != nil || len(left) == 0 {
		return err
	}
	loader, err := (&copyStep{env: s.env}).loader(ctx, limits, cp)
	if err != nil {
		return err
	}
	defer followLoaded(ctx, s.env, limits, cp, true)()
	return loader.Run(ctx)
}

// stillLoading gives the live tables that passes cannot follow yet.
func stillLoading(ctx context.Context, env *Env) ([]string, error) {
	states, err := env.Journal.TableStates(ctx, nil)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, t := range env.Scope.Tables {
		if t.Data == scope.Live && states[t.ID].State != journal.Following {
			left = append(left, t.Display())
		}
	}
	return left, nil
}

func (s *catchUpStep) drain(ctx context.Context, limits *limits, cp engine.Checkpoint) error {
	passer := pass.New(pass.Config{
		From: s.env.Source, To: s.env.Target, Run: s.env.Run, Tables: s.env.Scope.Tables, Log: s.env.Log, Emit: cp.Emit,
		Fence: s.env.fence(s.env.Target), Check: s.check,
	})
	defer func() { _ = passer.Close(context.WithoutCancel(ctx)) }()
	res, err := passer.Drain(ctx, pass.DrainOptions{
		Workers: s.env.Runbook.Copy.Workers, Until: lagToReach,
		Control: limits.passes, Spent: limits.rate.Spent,
	})
	if err != nil {
		return err
	}
	failpoint.Hit("catch_up.drained")
	cp.Emit(engine.Event{Kind: engine.EventLag, Lag: res.Took, Elapsed: res.Took, Rows: res.Rows, Message: fmt.Sprintf("the target follows, %s behind", res.Took.Round(time.Millisecond))})
	return nil
}

// look is check over a session of its own.
func (s *catchUpStep) look(ctx context.Context) error {
	conn, err := s.env.Source.Connect(ctx, pg.Use{Name: "definitions", LockTimeout: lockPatience})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return s.check(ctx, conn)
}

// check names what fires no trigger. What needs a new load comes back as *recopy, compatible
// changes, where the runbook wants them carried, as *carry.
func (s *catchUpStep) check(ctx context.Context, conn *pgx.Conn) error {
	if err := checkDefinitions(ctx, s.env, conn); err != nil {
		return err
	}
	if err := noLargeObjects(ctx, s.env, conn, engine.Source); err != nil {
		return err
	}
	changes, err := capture.Check(ctx, conn, s.env.Run, s.env.Scope.Tables)
	if err != nil {
		return err
	}
	if err := leaving(s.env, changes); err != nil {
		return err
	}
	if err := capture.Err(changes); err != nil {
		return err
	}
	if err := strayed(ctx, s.env, changes); err != nil {
		return err
	}
	lost, err := emptied(ctx, s.env, conn, engine.Source)
	if err != nil {
		return err
	}
	there, err := emptiedTarget(ctx, s.env)
	if err != nil {
		return err
	}
	changes = slices.Concat(changes, lost, there)
	again := &recopy{}
	for _, c := range changes {
		if c.Rule != capture.Recopy {
			continue
		}
		again.changes = append(again.changes, c)
		for _, t := range s.env.Scope.Tables {
			if t.ID == c.ID {
				again.tables = append(again.tables, t)
			}
		}
	}
	// A second load accepts the table as it is then: what the target lacks of it must be made before.
	carried := slices.ContainsFunc(changes, func(c capture.Change) bool { return c.Rule == capture.Carry })
	switch {
	case carried && s.env.Runbook.Schema.OnDDL == "carry":
		return &carry{changes: changes}
	case carried:
		return uncarried(s.env, changes)
	case len(again.tables) > 0:
		return again
	}
	return nil
}

// reopenCatchUp makes each walk that comes by catch_up do it again, as long as writes are on the
// source: a target that was near falls behind with every write.
func reopenCatchUp(ctx context.Context, env *Env, built []engine.Step, until engine.StepID) error {
	reached := slices.IndexFunc(built, func(s engine.Step) bool { return s.ID() == until })
	at := slices.IndexFunc(built, func(s engine.Step) bool { return s.ID() == catchUpID })
	if at < 0 || reached >= 0 && reached < at {
		return nil
	}
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Side != engine.Source {
		return err
	}
	records, err := env.Journal.Steps(ctx)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.ID == catchUpID && r.State == engine.StepDone {
			return env.Journal.Reopen(ctx, catchUpID, true, "the application writes on")
		}
	}
	return nil
}

package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// whileSourceWrites refuses what may be done only before the flip: what it makes on the target would
// be too late for the writes that came before it, or would close the side that takes them.
func (e *Env) whileSourceWrites(ctx context.Context, id engine.StepID) error {
	owner, err := e.Journal.Owner(ctx)
	if err != nil || owner.Side == engine.Source {
		return err
	}
	return engine.Errorf(engine.ClassStale, "Take that change of the runbook back, and run the same command again.", "step %s was added after the cutover: it can be done only while the source takes writes", id)
}

// tidy ends what dead processes have left of freezes, for the side that takes writes: what would have led
// away from it is taken back, what led to it is completed. Clients that were sent to the other side would
// write there as soon as its gate is gone. Both gates are looked at before, but for a side that is gone
// (alone): the journal may not know which one was opened without it. What cannot be completed leads nobody
// to a closed side that may be opened: it is named, and stands in nobody's way.
func tidy(ctx context.Context, env *Env, side engine.Side, alone bool) error {
	byHand(env, side, leftOf(ctx, env, side.Other(), true, alone))
	return leftOf(ctx, env, side, false, alone)
}

// byHand names what a person has to point to the side that takes writes.
func byHand(env *Env, side engine.Side, err error) {
	if err != nil {
		abortSink{env}.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: "clients may not get to the " + string(side) + ": " + err.Error(), Hint: fmt.Sprintf("Point them to the %s by hand.", side)})
	}
}

// leftOf ends what is left of the freeze from a side, which opened the other one or did not.
func leftOf(ctx context.Context, env *Env, from engine.Side, opened, alone bool) error {
	id := engine.StepID("freeze")
	if from == engine.Target {
		id = "rollback"
	}
	cp := env.Journal.Checkpoint(id, abortSink{env})
	var cursor freezeCursor
	if _, err := cp.Load(ctx, &cursor); err != nil || cursor.Begun == 0 && !cursor.Paused {
		return err
	}
	step, err := freezeFrom(env, from)
	if err != nil || step == nil {
		return err
	}
	// The journal may not have the step as running any more, and then keeps no cursor for it.
	memory := journal.NewMemory()
	if _, err := memory.Begin(ctx, step); err != nil {
		return err
	}
	copied := memory.Checkpoint(step.id, abortSink{env})
	if err := copied.Save(ctx, nil, cursor); err != nil {
		return err
	}
	step.inherits = &inherited{AtOpen: cursor.AtOpen}
	f, err := step.build(ctx, copied)
	if err != nil {
		return err
	}
	defer f.close(ctx)
	if !alone {
		state, err := f.Look(ctx)
		gone := pg.SQLState(err) == "42P01" // a gate was taken off by an abort or a finish that has begun
		if err != nil && !gone {
			return err
		}
		if !gone && (state.FromClosed != opened || state.ToClosed == opened) {
			return ambiguous(fmt.Sprintf("the journal says that the %s takes writes; %s closed: %v, %s closed: %v", map[bool]engine.Side{false: f.from, true: f.to}[opened], f.from, state.FromClosed, f.to, state.ToClosed))
		}
	}
	if err := f.replaced(ctx); err != nil {
		return err
	}
	settle := func(ctx context.Context) error {
		err := f.poolers.settle(ctx, opened)
		if err == nil {
			return nil
		}
		if !env.withoutPoolers {
			return fmt.Errorf("%w: %w", errPoolersLeft, err)
		}
		side := f.from
		if opened {
			side = f.to
		}
		byHand(env, side, fmt.Errorf("%w; the %s's gate goes with the run, and whoever still gets there writes there", err, side.Other()))
		return nil
	}
	if err := f.cleared(ctx, opened, settle); err != nil {
		return err
	}
	if err := cp.Save(ctx, nil, *f.cursor); !errors.Is(err, journal.ErrNotRunning) { // else it may be done twice
		return err
	}
	return nil
}

// errPoolersLeft says that poolers may still lead to the closed side.
var errPoolersLeft = errors.New("poolers may still lead to the side that takes no writes")

// freezeFrom gives the freeze whose hold is on a side, with its switch steps; nil where the run has none.
func freezeFrom(env *Env, from engine.Side) (*freezeStep, error) {
	build := Build
	if from == engine.Target {
		build = BuildBack
	}
	built, diags := build(env)
	if diags.HasErrors() {
		return nil, &engine.Error{Class: engine.ClassRunbook, Op: "reading the runbook", Err: diags}
	}
	for _, s := range built {
		switch s := s.(type) {
		case *freezeStep:
			return s, nil
		case *rollbackStep:
			return &s.freezeStep, nil
		}
	}
	return nil, nil //nolint:nilnil // a run without a cutover has none
}

// wentBack reports whether the last flip was one back to the source.
func wentBack(owner journal.Ownership) bool {
	return owner.Side == engine.Source && owner.Flip != nil && owner.Flip.To == engine.Source && owner.Flip.Outcome == journal.FlipDone
}

// wentBackWords is why steps of a cutover are made again.
const wentBackWords = "writes went back to the source"

// afterWayBack looks, before apply goes on towards the target again, whether the way back came to its
// end: the steps of the cutover are open again, and the target has taken no writes of its own since.
func afterWayBack(ctx context.Context, env *Env, built []engine.Step) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || !wentBack(owner) {
		return err
	}
	if err := openAgain(ctx, env, built); err != nil {
		return err
	}
	return unstrayed(ctx, env, owner)
}

// unstrayed refuses to go on towards a target that took changes after a way back.
func unstrayed(ctx context.Context, env *Env, owner journal.Ownership) error {
	stray, err := strayOnTarget(ctx, env, owner)
	if err != nil || stray.Why == "" {
		return err
	}
	return &engine.Error{Class: engine.ClassAmbiguous, Op: "going on", Err: fmt.Errorf("%s", stray.Why), Hint: stray.Hint}
}

// openedAgain marks that the steps of the cutover and its comparison are open again after a way back.
const openedAgain = "opened again"

// openAgain sets back the comparison and the steps of the cutover, those of the plan and of built, once for each way back:
// a proof from before it proves nothing of what was carried back since. Until all of them are set back none is made again, so
// whoever comes after a death begins anew.
func openAgain(ctx context.Context, env *Env, built []engine.Step) error {
	flip, err := env.Journal.LastDone(ctx)
	if err != nil {
		return err
	}
	var last struct{ Flip int64 }
	if found, err := env.Journal.Kept(ctx, openedAgain, &last); err != nil || found && last.Flip == flip {
		return err
	}
	ids := map[engine.StepID]bool{verifyID: true}
	for _, s := range built {
		ids[s.ID()] = s.ID() == verifyID || s.Phase() == engine.PhaseCutover
	}
	for _, s := range env.Plan.Steps {
		ids[s.ID] = ids[s.ID] || s.Phase == engine.PhaseCutover
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if !ids[id] {
			continue
		}
		if err := env.Journal.Reopen(ctx, id, false, wentBackWords); err != nil {
			return err
		}
		failpoint.Hit("rollback.reopened")
	}
	last.Flip = flip
	return env.Journal.Keep(ctx, engine.Event{Kind: engine.EventNote, At: time.Now().UTC(), Level: "info", Mark: openedAgain, Message: wentBackWords + ": a cutover begins with a new comparison"}, last)
}

// strayOnTarget looks for changes that the target took after a way back: its final pass left none,
// and passes to the target are not captured.
func strayOnTarget(ctx context.Context, env *Env, owner journal.Ownership) (Back, error) {
	if !wentBack(owner) {
		return Back{}, nil
	}
	conn, err := env.Target.Connect(ctx, pg.Use{Name: "way back", Marked: true, LockTimeout: lockPatience})
	if err != nil {
		return Back{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return strayChanges(ctx, conn, engine.Target, "a pass would write over them", "Compare: pgrunbook verify. What is missing on the source is written there by hand; then begin again: pgrunbook abort")
}

// strayWrites is the same for the source after a cutover.
func strayWrites(ctx context.Context, source *pgx.Conn) (Back, error) {
	return strayChanges(ctx, source, engine.Source, "a pass back would write over them", "Compare: pgrunbook verify. What is missing on the target is written there by hand; then stay there: pgrunbook finish")
}

func strayChanges(ctx context.Context, conn *pgx.Conn, side engine.Side, so, hint string) (Back, error) {
	n, err := pendingRows(ctx, conn, nil)
	if err != nil || n == 0 {
		return Back{}, err
	}
	return Back{
		Why:   fmt.Sprintf("the %s took %s after the flip, while its gate was open; %s", side, engine.Plural(int(n), "change"), so),
		Hint:  hint,
		class: engine.ClassAmbiguous, stray: true,
	}, nil
}

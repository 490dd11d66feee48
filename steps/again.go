package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/load"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// recopy says that tables must be loaded again: something happened that leaves no keys.
type recopy struct {
	tables  []scope.Table
	changes []capture.Change
}

func (r *recopy) Error() string {
	return fmt.Sprintf("%s: the table is loaded again", r.changes[0].Text)
}

// of gives the changes of one table.
func (r *recopy) of(id int32) []capture.Change {
	return of(r.changes, id)
}

// unfit asks for another load of a table whose captured images cannot be applied any more: the load reads
// rows as they are now, and the images from before it are left out.
func unfit(e *pass.UnfitError) *recopy {
	t := e.Table
	return &recopy{tables: []scope.Table{t}, changes: []capture.Change{{ID: t.ID, Table: t.Name, Rule: capture.Recopy, Text: e.Error()}}}
}

// startAgain empties tables on the target and gives them new chunks, which the next load reads. What was seen
// of them is accepted in between, never before: a death must find the difference again. What Check has not
// seen of a table that is loaded again for another reason stays to be found.
func startAgain(ctx context.Context, env *Env, limits *limits, cp engine.Checkpoint, again *recopy) error {
	sides, err := openSidesToDefine(ctx, env, "recopy")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if err := dropPartitions(ctx, env, cp, sides, again.changes, false); err != nil {
		return err
	}
	affected := func(t scope.Table) bool {
		return slices.ContainsFunc(again.tables, func(a scope.Table) bool { return a.ID == t.ID })
	}
	checked := func(t scope.Table) bool { return slices.ContainsFunc(again.of(t.ID), capture.Change.Checked) }
	if err := refreshTables(ctx, env, sides.source, func(t scope.Table) bool { return affected(t) && checked(t) }); err != nil { // a partition may be no member any more
		return err
	}
	loader, err := (&copyStep{env: env}).loader(ctx, limits, cp)
	if err != nil {
		return err
	}
	for _, t := range again.heirsFirst(env.Scope.Tables) {
		if affected(t) {
			if err := startOver(ctx, env, cp, sides, loader, t, again.of(t.ID)); err != nil {
				return err
			}
		}
	}
	return refilled(ctx, env, sides, again.tables)
}

func startOver(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, loader *load.Loader, t scope.Table, seen []capture.Change) error {
	if err := env.Journal.Reopen(ctx, verifyID, true, t.Display()+" was loaded again"); err != nil { // what it proved of this table is no more
		return err
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: t.Display(), Message: (&recopy{changes: seen}).Error()})
	if err := detachRemoved(ctx, cp, sides, seen); err != nil {
		return err
	}
	if err := recapture(ctx, env, cp, sides, t); err != nil && !errors.Is(err, capture.ErrUnseen) { // all its rows are read now
		return err
	}
	if err := loader.StartOver(ctx, t); err != nil {
		return err
	}
	if err := acceptEmptied(ctx, env, cp, sides, t); err != nil {
		return err
	}
	if slices.ContainsFunc(seen, capture.Change.Checked) {
		if err := capture.Accept(ctx, sides.source, t, seen...); err != nil {
			return err
		}
	}
	failpoint.Hit("catch_up.accepted")
	return nil
}

// acceptEmptied records the shape that a table has on the target now, where the way back is made ready: what the run itself
// carried there must not look like somebody's change after the flip. The table is empty, and its gate closed.
func acceptEmptied(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	back, err := wayBack(ctx, env, sides.target)
	if err != nil || !back || t.Data != scope.Live {
		return err
	}
	err = capture.InstallClosed(ctx, sides.target, env.Run, t, waiting(cp, engine.Target, "install capture on the target"))
	if errors.Is(err, capture.ErrStatement) { // somebody gave it a parent there, which the freeze names
		return nil
	}
	if err != nil {
		return err
	}
	changes, err := capture.Check(ctx, sides.target, env.Run, []scope.Table{t})
	if err != nil || len(forPerson(env, changes)) > 0 { // the freeze names them
		return err
	}
	return capture.Accept(ctx, sides.target, t, changes...)
}

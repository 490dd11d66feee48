package steps

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// widen says that the target must take what a table's columns hold by now, before its load goes on.
type widen struct{ carry }

// check looks at a table when its last chunk is done, or one was found rewritten. What a new load mends ends
// this one: mend makes the target right first. What needs none is left to catch_up.
func (s *copyStep) check(ctx context.Context, conn *pgx.Conn, t scope.Table) error {
	return s.changed(ctx, conn, t, false)
}

// explain looks at a table whose rows the target refused, or that is about to be dumped.
func (s *copyStep) explain(ctx context.Context, conn *pgx.Conn, t scope.Table) error {
	return s.changed(ctx, conn, t, true)
}

func (s *copyStep) changed(ctx context.Context, conn *pgx.Conn, t scope.Table, refused bool) error {
	if t.Capture == scope.NoCapture {
		return nil
	}
	changes, err := capture.Check(ctx, conn, s.env.Run, []scope.Table{t})
	if err != nil {
		return err
	}
	if changes, err = withParents(ctx, s.env, conn, t, changes); err != nil {
		return err
	}
	if err := leaving(s.env, changes); err != nil {
		return err
	}
	if err := forgotten(ctx, s.env, conn, t, changes); err != nil {
		return err
	}
	if err := capture.Err(changes); err != nil {
		return err
	}
	if err := strayed(ctx, s.env, changes); err != nil {
		return err
	}
	again := slices.ContainsFunc(changes, capture.Change.Reloads)
	carried := slices.DeleteFunc(slices.Clone(changes), func(c capture.Change) bool { return c.Rule != capture.Carry })
	needed := refused && slices.ContainsFunc(carried, func(c capture.Change) bool {
		return c.What == capture.ColumnDropped || c.What == capture.PartitionAdded && t.Identity != scope.ByKey // such a tree is read whole
	})
	if refused && !again && !needed && t.Method != scope.PgDump {
		carried = slices.DeleteFunc(carried, func(c capture.Change) bool { return !widens(c) })
	}
	switch {
	case !again && (!refused || len(carried) == 0):
		return nil
	case len(carried) > 0 && s.env.Runbook.Schema.OnDDL != "carry":
		return uncarried(s.env, carried)
	case len(carried) == 0:
		return &recopy{tables: []scope.Table{t}, changes: changes}
	case again || needed || t.Method == scope.PgDump: // no chunk can go on without it, or the next dump has all of it
		return &carry{changes}
	default:
		return &widen{carry{carried}}
	}
}

// widens reports whether a change may be why rows are refused. New columns and, of a table with a key, new partitions
// are not among what chunks read; they come with catch_up, or with a new load.
func widens(c capture.Change) bool {
	return c.What == capture.ColumnType || c.What == capture.ColumnNull && !c.NotNull
}

// mend does what a load asked for when it ended. It is false where nothing that changed on the source explains
// the end. What was dropped leaves the run here: no chunk can read it.
func (s *copyStep) mend(ctx context.Context, limits *limits, cp engine.Checkpoint, cause error) (bool, error) {
	var redefined *errRedefined
	if !errors.As(cause, &redefined) {
		if mended, err := s.mendLoad(ctx, limits, cp, cause); !errors.As(err, &redefined) {
			return mended, err
		}
	}
	sides, err := openSidesToDefine(ctx, s.env, "ddl")
	if err != nil {
		return false, err
	}
	defer sides.close(context.WithoutCancel(ctx))
	return true, leave(ctx, s.env, cp, sides)
}

func (s *copyStep) mendLoad(ctx context.Context, limits *limits, cp engine.Checkpoint, cause error) (bool, error) {
	var again *recopy
	var ddl *carry
	var wide *widen
	var err error
	switch {
	case errors.As(cause, &wide):
		return true, s.widenTarget(ctx, cp, wide.changes)
	case errors.As(cause, &ddl):
		if again, err = carryDDL(ctx, s.env, cp, ddl); err != nil || len(again.tables) == 0 {
			return true, err
		}
	case errors.As(cause, &again):
	case refusedRow(cause):
		return mendRefused(ctx, s.env, cp)
	default:
		return false, nil
	}
	return true, startAgain(ctx, s.env, limits, cp, again)
}

// widenTarget makes changes on the target without recording them: catch_up makes them again, together with
// those of the table that can wait.
func (s *copyStep) widenTarget(ctx context.Context, cp engine.Checkpoint, changes []capture.Change) error {
	sides, err := openSidesToDefine(ctx, s.env, "ddl")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if err := capture.Begin(ctx, sides.source, changes); err != nil {
		return err
	}
	line, err := lineage(ctx, sides.target)
	if err != nil {
		return err
	}
	for _, c := range line.parentsFirst(changes) {
		there, err := cameWithParent(ctx, sides.target, c)
		if err == nil && !there {
			err = carryChange(ctx, cp, sides, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

package steps

import (
	"context"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// align makes the target's tables and the scope's what the source has by now: DDL may have come
// between the plan and the dump, and between the dump and the capture. Later comparisons of captured
// tables start from what they were when their triggers were made, so they would not show it. Nothing
// is loaded yet.
func align(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	was, err := restoredDefinitions(ctx, env)
	if err != nil || was == nil || env.Runbook.Schema.Mode == "existing" {
		return err // somebody else makes the target's tables
	}
	if err := refreshTables(ctx, env, sides.source, func(scope.Table) bool { return true }); err != nil {
		return err // first: a new partition is known by its tree
	}
	c := &comparison{empty: true}
	if err := c.read(ctx, env, sides, was, catchUpCursor{}); err != nil {
		return err
	}
	for _, d := range c.differences {
		t := owningTable(env, c.fresh, d.item.Name)
		table := d.item.Kind == dump.ItemTable || d.item.Kind == dump.ItemPartition
		switch {
		case t == nil || t.Data != scope.Live || !table || d.verb == "was dropped":
			continue // catch_up's
		case env.Runbook.Schema.OnDDL != "carry" || !d.carried():
			return d.stop(env.Runbook.Schema.OnDDL != "carry")
		}
		if err := d.carry(ctx, cp, sides); err != nil {
			return err
		}
	}
	for _, t := range env.Scope.Tables {
		if t.Kind != scope.Partitioned && !t.Inherits || env.Runbook.Schema.OnDDL != "carry" {
			continue
		}
		if err := alignDefaults(ctx, cp, sides, t.Name); err != nil {
			return err
		}
	}
	// On the target the gate stands before capture: a partition made here has none yet.
	if at, err := gate.State(ctx, sides.target, env.Run); err != nil {
		return err
	} else if at != gate.Absent {
		if err := gate.InstallOn(ctx, sides.target, env.runAt(engine.Target), env.Scope.Tables, waiting(cp, engine.Target, "gate a table of the target")); err != nil {
			return err
		}
	}
	return recordScope(ctx, env)
}

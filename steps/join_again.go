package steps

import (
	"context"
	"errors"
	"reflect"
	"slices"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// joinAgain lets go of tables that joined this run where one of them changed on the source after the target had got it:
// capture knows each only as it was when its triggers came, and would never show it. No row of theirs is loaded yet, so
// that all of them are made anew there, and join as they are now: one may inherit from another.
func joinAgain(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	states, err := env.Journal.TableStates(ctx, nil)
	if err != nil {
		return err
	}
	var fresh []scope.Table
	for _, t := range env.Scope.Tables {
		if _, begun := states[t.ID]; t.Joined && isCaptured(t) && !begun {
			fresh = append(fresh, t)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	c := &comparison{}
	if c.fresh, c.source, c.target, err = bothSides(ctx, env, sides); err != nil {
		return err
	}
	carried, err := carriedSoFar(ctx, env, cp)
	if err != nil {
		return err
	}
	changed, err := c.changedSinceJoined(ctx, env, sides, fresh, carried)
	if err != nil || changed == "" {
		return err
	}
	if env.Runbook.Schema.OnDDL != "carry" {
		return &engine.Error{
			Op: "following the new table", Object: changed, Err: errors.New("it changed on the source before it was captured"),
			Hint: `Undo the change, or set schema { on_ddl = "carry" } in the runbook and run the same command again: it is made anew on the target.`,
		}
	}
	var drop []scope.Name
	for _, t := range fresh {
		made, err := ours(ctx, sides.target, c.target[tableID(t)], carried.Made)
		if err != nil {
			return err
		}
		if made != nil { // another one is a person's, who is asked to make it right when it joins again
			drop = append(drop, t.Name)
		}
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: changed, Message: changed + " changed on the source before it was captured: tables that joined the run and are not loaded yet are made anew, and join again"})
	if err := letGo(ctx, env, cp, sides, fresh, drop); err != nil {
		return err
	}
	return &errRedefined{changed + " changed"}
}

// bothSides reads what is in scope by now and the definitions of both sides.
func bothSides(ctx context.Context, env *Env, sides *sideConns) (tables []scope.Table, source, target map[string]dump.Item, err error) {
	now, _, err := scope.Resolve(ctx, scope.Input{Source: sides.source, Runbook: env.Runbook})
	if err != nil {
		return nil, nil, nil, err
	}
	if source, err = dump.Inventory(ctx, sides.source, now); err != nil {
		return nil, nil, nil, sided(engine.Source, err)
	}
	if target, err = dump.Inventory(ctx, sides.target, nil); err != nil {
		return nil, nil, nil, sided(engine.Target, err)
	}
	return now.Tables, source, target, nil
}

// changedSinceJoined names the first of some tables that the source has otherwise than the run, or than the target. One
// that became a partition leaves the run in another way.
func (c *comparison) changedSinceJoined(ctx context.Context, env *Env, sides *sideConns, tables []scope.Table, carried catchUpCursor) (string, error) {
	for _, t := range tables {
		at := slices.IndexFunc(c.fresh, func(is scope.Table) bool { return is.Name == t.Name })
		if at < 0 && isMember(c.fresh, t.Name) {
			continue
		}
		changed := at < 0 || !sameTable(c.fresh[at], t) || c.otherwise(dump.ItemTable, t.Name, carried) ||
			slices.ContainsFunc(t.Members, func(m scope.Member) bool { return c.otherwise(dump.ItemPartition, m.Name, carried) })
		if !changed && carried.Handled[tableID(t)] == "" { // a person made it there
			differences, err := unlikeTarget(ctx, env, sides, c.fresh[at])
			if err != nil {
				return "", err
			}
			changed = len(differences) > 0
		}
		if changed {
			return pg.Name(t.Schema, t.Name.Name), nil
		}
	}
	return "", nil
}

// otherwise reports whether the target has not got a table or partition as the source has it; of what a person made there
// the words may differ.
func (c *comparison) otherwise(kind dump.ItemKind, table scope.Name, carried catchUpCursor) bool {
	id := dump.Item{Kind: kind, Name: pg.Name(table.Schema, table.Name)}.ID()
	i, there := c.source[id], c.target[id]
	return carried.Handled[id] != "" && (there.Kind == "" || there.Def != i.Def && !dump.Unchanged(carried.Handled, i))
}

// sameTable reports whether a table has the columns, the partitions and the key that it had at another time.
func sameTable(a, b scope.Table) bool {
	return slices.Equal(columnTypes(a), columnTypes(b)) && sameNames(memberNames(a), memberNames(b)) && reflect.DeepEqual(a.Key, b.Key)
}

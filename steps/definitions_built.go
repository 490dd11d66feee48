package steps

import (
	"context"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

// constraintsID is the step's name.
const constraintsID engine.StepID = "constraints"

// toBuild reads what comes after the rows, and records, in the cursor of the step that makes it, what of that came since the
// structure was restored: should the source drop it before anybody has compared both sides, it is still known as ours.
func toBuild(ctx context.Context, env *Env, cp engine.Checkpoint, source *pgx.Conn) ([]dump.Object, error) {
	// Before and after: what is read in between is in one of them, however short its life.
	if err := cameSince(ctx, env, cp, source, dump.ItemKind.AfterRows); err != nil {
		return nil, err
	}
	if err := noteKeys(ctx, env, source); err != nil {
		return nil, err
	}
	objects, err := dump.PostData(ctx, source, env.Scope)
	if err != nil {
		return nil, err
	}
	return objects, cameSince(ctx, env, cp, source, dump.ItemKind.AfterRows)
}

// restedKinds are those that only pg_restore makes.
func restedKinds(k dump.ItemKind) bool {
	return slices.Contains([]dump.ItemKind{dump.ItemView, dump.ItemMatview, dump.ItemFunction}, k)
}

// cameSince records what of some kinds the source has now, and had not when the structure was restored.
func cameSince(ctx context.Context, env *Env, cp engine.Checkpoint, source *pgx.Conn, kinds func(dump.ItemKind) bool) error {
	was, err := restoredDefinitions(ctx, env)
	if err != nil || was == nil {
		return err
	}
	items, err := dump.Inventory(ctx, source, env.Scope)
	if err != nil {
		return sided(engine.Source, err)
	}
	known, err := carriedSoFar(ctx, env, env.Journal.Checkpoint(catchUpID, env.Sink))
	if err != nil {
		return err
	}
	maps.DeleteFunc(items, func(id string, i dump.Item) bool {
		return !kinds(i.Kind) || known.Handled[id] != gone && (was[id] != "" || known.Handled[id] != "")
	})
	if len(items) == 0 {
		return nil
	}
	cursor := catchUpCursor{Handled: map[string]string{}, Again: map[string]string{}}
	if _, err := cp.Load(ctx, &cursor); err != nil {
		return err
	}
	for id, def := range dump.Fingerprint(items) {
		if !items[id].Kind.AfterRows() {
			def = begun // whether the restore makes it is not known here
		}
		if known.Handled[id] == gone {
			cursor.Again[id] = def
		} else {
			cursor.Handled[id] = def
		}
	}
	return cp.Save(ctx, nil, cursor)
}

package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// captured gives the tables whose changes triggers record.
func captured(env *Env) []scope.Table {
	var list []scope.Table
	for _, t := range env.Scope.Tables {
		if t.Data == scope.Live && t.Capture != scope.NoCapture {
			list = append(list, t)
		}
	}
	return list
}

// checkCatalog stops where a captured table is no longer what it was when its triggers were made.
// What changes no row and no shape is not reported.
func checkCatalog(ctx context.Context, env *Env, conn *pgx.Conn, side engine.Side) error {
	if side == engine.Source {
		var changed *errRedefined
		if err := checkDefinitions(ctx, env, conn); errors.As(err, &changed) {
			return &engine.Error{Op: "following", Err: err, Hint: "Run the same command again: catch_up compares the definitions of both sides."}
		} else if err != nil {
			return err
		}
	}
	if err := noLargeObjects(ctx, env, conn, side); err != nil {
		return err
	}
	changes, err := capture.Check(ctx, conn, env.Run, captured(env))
	if err != nil {
		return err
	}
	if side == engine.Target {
		if changes, err = tellDefaults(ctx, env, conn, changes); err != nil {
			return err
		}
	}
	lost, err := emptied(ctx, env, conn, side)
	changes = append(changes, lost...)
	if err == nil && side == engine.Source {
		lost, err = emptiedTarget(ctx, env)
		changes = append(changes, lost...)
	}
	if err != nil || len(changes) == 0 {
		return err
	}
	if err := leaving(env, changes); err != nil {
		return &engine.Error{Op: "following", Err: err, Hint: "pgrunbook apply: catch_up drops it on the target too and goes on without it."}
	}
	if err := capture.Err(changes); err != nil {
		return err
	}
	if side == engine.Target { // no catch_up goes that way
		why, hint := changedTarget(changes)
		return &engine.Error{Class: engine.ClassFailed, Op: "following", Err: errors.New(why), Hint: hint}
	}
	return uncarried(env, changes)
}

// errLargeObjects is for what neither a trigger nor the gate sees: a large object is created and written
// without a statement on any table of the application.
var errLargeObjects = errors.New("there are large objects, which cannot be followed")

// noLargeObjects looks whether somebody has made one since the plan, which refuses them unless the runbook
// says otherwise.
func noLargeObjects(ctx context.Context, env *Env, conn *pgx.Conn, side engine.Side) error {
	if env.Runbook.Cutover.LargeObjects == "ignore" {
		return nil
	}
	var object *uint32
	if err := conn.QueryRow(ctx, "SELECT min(oid) FROM pg_largeobject_metadata").Scan(&object); err != nil {
		return fmt.Errorf("looking for large objects: %w", err)
	}
	if object == nil {
		return nil
	}
	return &engine.Error{
		Class: engine.ClassPreflight, Op: "following", Object: fmt.Sprintf("large object %d of the %s", *object, side), Err: errLargeObjects,
		Hint: fmt.Sprintf(`Move them into bytea columns and drop them there: SELECT lo_unlink(oid) FROM pg_largeobject_metadata; or set large_objects = "ignore" in the cutover block and carry them from the %s yourself. Then run the same command again.`, side),
	}
}

// uncarried names a change that only catch_up may carry, or that the runbook does not let it.
func uncarried(env *Env, changes []capture.Change) error {
	c := changes[0]
	if i := slices.IndexFunc(changes, func(c capture.Change) bool { return c.Rule == capture.Carry }); i >= 0 {
		c = changes[i]
	}
	hint := "pgrunbook apply: catch_up reads the table once more."
	if c.Rule == capture.Carry {
		same := "makes the same change on the target"
		if c.SQL != "" {
			same += ": " + c.SQL
		}
		hint = "pgrunbook apply: catch_up " + same
		if env.Runbook.Schema.OnDDL != "carry" {
			hint = `Set schema { on_ddl = "carry" } in the runbook; then pgrunbook apply ` + same
		}
	}
	return &engine.Error{Class: engine.ClassFailed, Op: "following", Err: errors.New(c.Text), Hint: hint}
}

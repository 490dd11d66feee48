package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
)

// errOneWay ends a cutover after which there would be no way back.
var errOneWay = errors.New("there would be no way back")

// backReady looks, before any writer waits, whether the target's changes will be captured from its first write on. Days may
// lie between the step that installed that and the freeze, in which a restore with --disable-triggers or ENABLE TRIGGER
// ALL took our triggers off their mode: whoever cuts over hears of it while there is still time to pause. Columns of another
// shape end the attempt, since rows would go back without them.
func (f *flipper) backReady(ctx context.Context) error {
	if f.to != engine.Target || !f.env.Runbook.Rollback.Enabled {
		return nil
	}
	changes, err := capture.Check(ctx, f.looks.target, f.env.Run, captured(f.env))
	if err != nil {
		return err
	}
	if changes, _ = defaultsApart(changes); len(changes) == 0 {
		return nil
	}
	why, _ := changedTarget(changes)
	if slices.ContainsFunc(changes, otherColumns) {
		return &engine.Error{
			Op: "cutting over", Err: fmt.Errorf("%w: %s", errOneWay, why),
			Hint: "Undo that on the target, then run the same command again; or go without a way back: rollback { enabled = false }.",
		}
	}
	f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: "after this cutover there is no way back: " + why, Finding: &engine.Finding{
		Code: "CUT005", Severity: engine.SeverityWarning, Side: engine.Target, Text: why, Fix: "Find out who alters tables or triggers there (ENABLE TRIGGER ALL does).",
	}})
	return nil
}

// otherColumns reports whether rows have another shape on the target.
func otherColumns(c capture.Change) bool {
	return slices.Contains([]capture.What{
		capture.ColumnAdded, capture.ColumnDropped, capture.ColumnRenamed, capture.ColumnType, capture.ColumnGenerated, capture.KeyChanged,
	}, c.What)
}

package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// errOneWay ends a cutover after which there would be no way back.
var errOneWay = errors.New("there would be no way back")

// backReady makes sure, before any writer waits, that the target's changes will be captured from its first write on. Days
// may lie between the step that installed that and the freeze, in which a restore with --disable-triggers or ENABLE
// TRIGGER ALL took our triggers off their mode. What was touched is made right and proved again. The gate may have been
// off meanwhile, and a rewrite may have other values: so both sides are compared once more before the next attempt.
// Columns of another shape are for a person.
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
	why, fix := changedTarget(changes)
	switch {
	case slices.ContainsFunc(changes, otherColumns):
		return &engine.Error{
			Op: "cutting over", Err: fmt.Errorf("%w: %s", errOneWay, why),
			Hint: "Undo that on the target, then run the same command again; or go without a way back: rollback { enabled = false }.",
		}
	case slices.ContainsFunc(changes, func(c capture.Change) bool { return !onlyTouched(c) }): // of partitions, which nobody has to undo
		f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: "the way back will not be possible: " + why, Finding: &engine.Finding{
			Code: "CUT005", Severity: engine.SeverityWarning, Side: engine.Target, Text: why, Fix: fix,
		}})
		return nil
	}
	f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: "mending the way back: " + why, Finding: &engine.Finding{
		Code: "CUT005", Severity: engine.SeverityWarning, Side: engine.Target, Text: why, Fix: "Find out who alters tables or triggers there (ENABLE TRIGGER ALL does).",
	}})
	compares := f.env.Runbook.Verify.Enabled
	if compares { // before it is accepted: a death finds what was touched again, or compares
		if err := f.env.Journal.Reopen(ctx, verifyID, false, "tables or triggers of the target were touched, and rows may have changed there"); err != nil {
			return err
		}
	}
	if err := f.recaptureTarget(ctx, changes); err != nil || !compares {
		return err
	}
	return &engine.Error{
		Op: "cutting over", Err: fmt.Errorf("%w on the target: %s", errMended, why),
		Hint: "Run the same command again: it compares both sides before the next attempt, since rows may have changed unseen.",
	}
}

// recaptureTarget makes capture of the touched tables right, proves it, and accepts what was seen of them.
func (f *flipper) recaptureTarget(ctx context.Context, changes []capture.Change) error {
	touched := slices.DeleteFunc(captured(f.env), func(t scope.Table) bool {
		return !slices.ContainsFunc(changes, func(c capture.Change) bool { return c.ID == t.ID })
	})
	for _, t := range touched {
		err := capture.InstallOn(ctx, f.looks.target, f.env.Run, t, waiting(f.cp, engine.Target, "install capture on the target"))
		if err != nil && !errors.Is(err, capture.ErrUnseen) { // the comparison sees all rows
			return err
		}
	}
	if err := (&reverseStep{f.env}).prove(ctx, f.cp, touched); err != nil {
		return err
	}
	for _, t := range touched {
		seen := slices.DeleteFunc(slices.Clone(changes), func(c capture.Change) bool { return c.ID != t.ID })
		if err := capture.Accept(ctx, f.looks.target, t, seen...); err != nil {
			return fmt.Errorf("accepting %s on the target: %w", pg.Name(t.Schema, t.Name.Name), err)
		}
	}
	return nil
}

// otherColumns reports whether rows have another shape on the target.
func otherColumns(c capture.Change) bool {
	return slices.Contains([]capture.What{
		capture.ColumnAdded, capture.ColumnDropped, capture.ColumnRenamed, capture.ColumnType, capture.ColumnGenerated, capture.KeyChanged,
	}, c.What)
}

// onlyTouched reports whether a change left a table's columns as they are.
func onlyTouched(c capture.Change) bool {
	return c.What == capture.Tampered || c.What == capture.NotCaptured || c.What == capture.Rewritten
}

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
// TRIGGER ALL took our triggers off their mode. Nobody has written there yet: what was touched is made right and
// proved again, and nothing was missed. Columns of another shape are for a person.
func (f *flipper) backReady(ctx context.Context) error {
	if f.to != engine.Target || !f.env.Runbook.Rollback.Enabled {
		return nil
	}
	var mended []scope.Table
	for again := false; ; again = true {
		changes, err := capture.Check(ctx, f.looks.target, f.env.Run, captured(f.env))
		if err != nil {
			return err
		}
		if changes, _ = defaultsApart(changes); len(changes) == 0 {
			break
		}
		if again || slices.ContainsFunc(changes, func(c capture.Change) bool { return !onlyTouched(c) }) {
			why, _ := changedTarget(changes)
			return &engine.Error{
				Op: "cutting over", Err: fmt.Errorf("%w: %s", errOneWay, why),
				Hint: "Undo that on the target, then run the same command again; or go without a way back: rollback { enabled = false }.",
			}
		}
		why, _ := changedTarget(changes)
		f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: "mending the way back: " + why, Finding: &engine.Finding{
			Code: "CUT005", Severity: engine.SeverityWarning, Side: engine.Target, Text: why, Fix: "Find out who alters triggers there (ENABLE TRIGGER ALL does).",
		}})
		for _, t := range captured(f.env) {
			if !slices.ContainsFunc(changes, func(c capture.Change) bool { return c.ID == t.ID }) {
				continue
			}
			err := capture.InstallOn(ctx, f.looks.target, f.env.Run, t, waiting(f.cp, engine.Target, "install capture on the target"))
			if err != nil && !errors.Is(err, capture.ErrUnseen) { // all its rows are the source's
				return err
			}
			if err := capture.Accept(ctx, f.looks.target, t); err != nil {
				return fmt.Errorf("accepting %s on the target: %w", pg.Name(t.Schema, t.Name.Name), err)
			}
			mended = append(mended, t)
		}
	}
	if len(mended) == 0 {
		return nil
	}
	return (&reverseStep{f.env}).prove(ctx, f.cp, mended)
}

// onlyTouched reports whether a change left a table's columns as they are.
func onlyTouched(c capture.Change) bool {
	return c.What == capture.Tampered || c.What == capture.NotCaptured || c.What == capture.Rewritten
}

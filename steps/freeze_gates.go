package steps

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// errMended ends a freeze whose next attempt needs something else first.
var errMended = errors.New("what was made ready was touched")

// bothGated makes sure of both sides' gates, and remembers the one of the side that takes writes from before
// it was found right: until the flip it must stay so.
func (f *flipper) bothGated(ctx context.Context) error {
	for {
		marks, err := gate.ReadMarks(ctx, f.looks.of(f.from))
		if err != nil {
			return err
		}
		again, err := f.gated(ctx, f.from)
		if err != nil {
			return err
		}
		if again {
			continue
		}
		f.marks = &marks
		_, err = f.gated(ctx, f.to)
		return err
	}
}

// stillGated refuses where a table's gate was off since, however briefly. What was written past it may be in
// no delta: that of a table which is reloaded, or has its structure only.
func (f *flipper) stillGated(ctx context.Context) error {
	if f.marks == nil {
		return nil
	}
	touched, err := f.marks.Changed(ctx, f.looks.of(f.from))
	if err != nil || len(touched) == 0 {
		return err
	}
	return &engine.Error{
		Op: "freezing", Object: joinSome(touched), Err: fmt.Errorf("somebody touched its gate on the %s since the freeze began: what was written past it may not be carried", f.from),
		Hint: "Find out who alters triggers there (ENABLE TRIGGER ALL does).",
	}
}

// compareAgain has the next command compare both sides, row by row, before anything is frozen.
func (f *flipper) compareAgain(ctx context.Context, why string) error {
	if err := mayDiffer(ctx, f.env, why); err != nil {
		return err
	}
	return f.env.Journal.Reopen(ctx, verifyID, false, why)
}

// doubted has both sides compared where rows may have changed on the target since the newest comparison: whoever accepted
// what was touched there and died, or met more than it had looked at, has recorded that.
func (f *flipper) doubted(ctx context.Context) error {
	if f.to != engine.Target || !f.env.Runbook.Verify.Enabled {
		return nil
	}
	owner, err := f.env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	last, err := lastCompared(ctx, f.env.Journal, owner)
	if err != nil || last == nil || last.Equal {
		return err
	}
	why := last.text(f.env.Scope)
	if err := f.compareAgain(ctx, why); err != nil {
		return err
	}
	return &engine.Error{
		Op: "cutting over", Err: fmt.Errorf("%w: %s", errMended, why),
		Hint: "Run the same command again: it compares both sides before the next attempt.",
	}
}

// gated makes sure that every table of a side has its gate, and mends what somebody took away. On
// the side that takes writes nothing is lost by that: capture has what was written. On the other
// one rows may have been written past the gate, so the comparison is made again first.
func (f *flipper) gated(ctx context.Context, side engine.Side) (mended bool, err error) {
	conn := f.looks.of(side)
	missing := gate.Verify(ctx, conn, f.env.Run, f.env.Scope.Tables)
	if !errors.Is(missing, gate.ErrUngated) { // a look that failed is no reason to compare again
		return false, missing
	}
	f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: fmt.Sprintf("mending the %s's gate: %v", side, missing), Finding: &engine.Finding{
		Code: "CUT002", Severity: engine.SeverityWarning, Side: side, Text: missing.Error(), Fix: "Find out who disables triggers there.",
	}})
	compare := side == f.to && side == engine.Target && f.env.Runbook.Verify.Enabled
	if compare { // first: a death after the gate was mended would leave nothing to be seen
		if err := f.compareAgain(ctx, "the target's gate was off, and rows may have been written past it"); err != nil {
			return false, err
		}
	}
	if err := gate.InstallOn(ctx, conn, f.env.runAt(side), f.env.Scope.Tables, waiting(f.cp, side, "mend the gate")); err != nil || !compare {
		return err == nil, err
	}
	return true, &engine.Error{
		Op: "cutting over", Err: fmt.Errorf("%w on the %s: %w", errMended, side, missing),
		Hint: "Run the same command again: it compares both sides before the next attempt, since rows may have been written past the gate.",
	}
}

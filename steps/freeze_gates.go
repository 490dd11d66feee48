package steps

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// errMended ends a freeze whose next attempt needs something else first.
var errMended = errors.New("the gate had to be mended")

// gated makes sure that every table of a side has its gate, and mends what somebody took away. On
// the side that takes writes nothing is lost by that: capture has what was written. On the other
// one rows may have been written past the gate, so the comparison is made again first.
func (f *flipper) gated(ctx context.Context, side engine.Side) error {
	conn := f.looks.of(side)
	missing := gate.Verify(ctx, conn, f.env.Run, f.env.Scope.Tables)
	if !errors.Is(missing, gate.ErrUngated) { // a look that failed is no reason to compare again
		return missing
	}
	f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: fmt.Sprintf("mending the %s's gate: %v", side, missing), Finding: &engine.Finding{
		Code: "CUT002", Severity: engine.SeverityWarning, Side: side, Text: missing.Error(), Fix: "Find out who disables triggers there.",
	}})
	if err := gate.InstallOn(ctx, conn, f.env.runAt(side), f.env.Scope.Tables, waiting(f.cp, side, "mend the gate")); err != nil {
		return err
	}
	if side == f.from || f.to == engine.Source || !f.env.Runbook.Verify.Enabled {
		return nil
	}
	if err := f.env.Journal.Reopen(ctx, "verify", false); err != nil {
		return err
	}
	return &engine.Error{
		Op: "cutting over", Err: fmt.Errorf("%w on the %s: %w", errMended, side, missing),
		Hint: "Run the same command again: it compares both sides before the next attempt, since rows may have been written past the gate.",
	}
}

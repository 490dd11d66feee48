package steps

import (
	"context"
	"slices"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// neverAgain is asked by steps that no run comes back to: one that begins while a later one of the plan is on
// record has lost its own record, and would take what the run has made for what was there before.
func (e *Env) neverAgain(ctx context.Context, id engine.StepID) error {
	records, err := e.Journal.Steps(ctx)
	if err != nil {
		return err
	}
	begun := map[engine.StepID]bool{}
	for _, r := range records {
		begun[r.ID] = true
	}
	at := slices.IndexFunc(e.Plan.Steps, func(s engine.StepPlan) bool { return s.ID == id })
	for i, later := range e.Plan.Steps {
		if i > at && at >= 0 && begun[later.ID] {
			return journal.Lost("pgrunbook.step", "the row of step %s is gone, and that of %s, which came after it, is there", id, later.ID)
		}
	}
	return nil
}

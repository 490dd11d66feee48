package steps

import (
	"context"
	"errors"

	"github.com/pgrunbook/pgrunbook/engine"
)

// abortMark stands in the journal from the moment at which an abort begins to take capture away: rows
// may have changed unseen since, so nothing may go on from there. It is never walked.
type abortMark struct{}

func (abortMark) ID() engine.StepID                             { return "abort" }
func (abortMark) Phase() engine.Phase                           { return "abort" }
func (abortMark) Fingerprint() string                           { return "abort/1" }
func (abortMark) Plan(context.Context) (engine.StepPlan, error) { return engine.StepPlan{}, nil }
func (abortMark) Apply(context.Context, engine.StepPlan, engine.Checkpoint) error {
	return errAbortBegun
}

var errAbortBegun = errors.New("the run is being given up: an abort has begun and has not ended")

// notAborting refuses to go on with a run whose abort has begun.
func (e *Env) notAborting(ctx context.Context, op string) error {
	records, err := e.Journal.Steps(ctx)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.ID == (abortMark{}).ID() && r.State != engine.StepDone {
			return &engine.Error{Op: op, Err: errAbortBegun, Hint: "Let it end: pgrunbook abort. Then plan and apply begin anew."}
		}
	}
	return nil
}

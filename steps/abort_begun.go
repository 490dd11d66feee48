package steps

import (
	"context"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
)

// abortMark stands in the journal from the moment at which an abort begins to take capture away: rows
// may have changed unseen since, so nothing may go on from there. It is never walked.
type abortMark struct {
	drop bool // what the schema phase made goes too
}

func (abortMark) ID() engine.StepID                             { return "abort" }
func (abortMark) Phase() engine.Phase                           { return "abort" }
func (abortMark) Plan(context.Context) (engine.StepPlan, error) { return engine.StepPlan{}, nil }
func (abortMark) Apply(context.Context, engine.StepPlan, engine.Checkpoint) error {
	return &AbortBegunError{}
}

const dropTarget = "--drop-target"

// Fingerprint says how it was asked for.
func (m abortMark) Fingerprint() string {
	if m.drop {
		return "abort " + dropTarget
	}
	return "abort"
}

// AbortBegunError is the end of every other command of a run that is being given up.
type AbortBegunError struct {
	Command string // that ends the abort
}

func (*AbortBegunError) Error() string {
	return "the run is being given up: an abort has begun and has not ended"
}

// abortCommand gives what ends an abort that has begun; empty where none has.
func abortCommand(records []engine.StepRecord) string {
	for _, r := range records {
		if r.ID == (abortMark{}).ID() {
			return strings.TrimSpace("pgrunbook " + r.Fingerprint)
		}
	}
	return ""
}

// notAborting refuses to go on with a run whose abort has begun.
func (e *Env) notAborting(ctx context.Context, op string) error {
	records, err := e.Journal.Steps(ctx)
	if err != nil {
		return err
	}
	if command := abortCommand(records); command != "" {
		return &engine.Error{Class: engine.ClassStale, Op: op, Err: &AbortBegunError{command}, Hint: "Let it end: " + command + ". Then plan and apply begin anew."}
	}
	return nil
}

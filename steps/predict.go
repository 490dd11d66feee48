package steps

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What the parts of a freeze cost, from measurements on 2 cores with 2,000 tables and as many
// sequences: rounded up, since a promise that is kept is worth more than a small number.
const (
	costBase       = 60 * time.Millisecond // hold, proof, last exact pass of a quiet database, both COMMITs
	costQuiet      = 10 * time.Millisecond // of these the pass
	costDrain      = 10 * time.Millisecond // and the drain
	costTable      = 100 * time.Microsecond
	costSequence   = 200 * time.Microsecond
	minReload      = 5 * time.Millisecond
	roundPredicted = 10 * time.Millisecond
)

// writeBlock is the budget of a freeze that starts from a side.
func writeBlock(rb *runbook.Runbook, from engine.Side) time.Duration {
	return rb.WriteBlock(from == engine.Target)
}

// predict estimates the write block from what a freeze has to do, in either direction. Switch steps
// count with their timeouts. rate is that of reloads, in bytes a second.
func predict(env *Env, from engine.Side, rate float64) engine.Prediction {
	block := costBase + time.Duration(len(env.Scope.Tables))*costTable + time.Duration(len(env.Scope.Sequences))*costSequence
	var bytes int64
	reloads := 0
	for _, t := range env.Scope.Tables {
		if t.Data == scope.AtFreeze {
			reloads++
			bytes += t.Bytes
			block += minReload
		}
	}
	block += time.Duration(float64(bytes) / rate * float64(time.Second))
	p := engine.Prediction{Budget: writeBlock(env.Runbook, from), Back: env.Runbook.Rollback.MaxWriteBlock, Why: engine.Plural(len(env.Scope.Tables), "table") + ", " + engine.Plural(len(env.Scope.Sequences), "sequence")}
	if reloads > 0 {
		p.Why += ", " + engine.Plural(reloads, "table") + " reloaded inside the freeze"
	}
	repoint, _ := people(env, Place{engine.PhaseCutover, Switch}, env.Runbook.Cutover.Switch)
	for _, s := range switchSteps(env, repoint) {
		p.Switch += s.Timeout
	}
	if len(repoint) > 0 {
		p.Why += ", " + engine.Plural(len(repoint), "switch step") + " at the full timeout"
	}
	p.WriteBlock = (block + p.Switch).Round(roundPredicted)
	return p
}

// measured is what passes and attempts from one side have shown.
type measured struct {
	Pass  time.Duration // of the latest exact pass; 0: there was none yet
	Rate  float64       // rows a second of the one that carried most; 0: none carried enough to tell
	Drain time.Duration // of the latest attempt or rehearsal, also one that gave it up; 0: there was none yet
	Pause time.Duration // of the latest attempt's poolers
}

// on refines an estimate: the last pass inside the freeze, and its drain, take what the latest ones took.
func (m measured) on(p engine.Prediction) engine.Prediction {
	if m.Pass > 0 {
		p.Measured = true
		p.Why += fmt.Sprintf(", the last pass took %s", m.Pass.Round(time.Millisecond))
		p.WriteBlock = (p.WriteBlock + max(0, m.Pass-costQuiet)).Round(roundPredicted)
	}
	if m.Drain > 0 {
		p.Why += fmt.Sprintf(", the last drain %s", m.Drain.Round(time.Millisecond))
		p.Drain = max(0, m.Drain-costDrain).Round(roundPredicted)
		p.WriteBlock += p.Drain
	}
	if m.Pause > 0 {
		p.Pause = m.Pause
		p.Why += fmt.Sprintf("; before it the poolers' clients wait for PAUSE, which took %s", m.Pause.Round(time.Millisecond))
	}
	return p
}

const (
	passesSeen  = 100  // of the journal's latest pass events, and of those of freezes
	rowsForRate = 1000 // a smaller pass tells how long a pass takes, not how many rows a second
)

// followID names what follow does in the events; it is no step of a plan.
const followID engine.StepID = "follow"

// rehearseID names what a rehearsal does there.
const rehearseID engine.StepID = "rehearse"

// passSteps are the steps whose passes come from a side.
var passSteps = map[engine.Side][]engine.StepID{
	engine.Source: {catchUpID, "freeze", rehearseID},
	engine.Target: {followID, "rollback"},
}

// measure reads what the passes of a run have shown. Of passes from the target, those before its
// latest flip tell the rate too, but not how long the next one takes.
func measure(ctx context.Context, run *journal.Run, from engine.Side, since time.Time) (measured, error) {
	events, err := run.EventsOf(ctx, engine.EventLag, passesSeen)
	if err != nil {
		return measured{}, err
	}
	var m measured
	most := int64(rowsForRate)
	for _, e := range events {
		if e.Elapsed <= 0 || !slices.Contains(passSteps[from], e.Step) {
			continue
		}
		if !e.At.Before(since) {
			m.Pass = e.Elapsed
		}
		if e.Rows >= most {
			most, m.Rate = e.Rows, float64(e.Rows)/e.Elapsed.Seconds()
		}
	}
	if events, err = run.EventsOf(ctx, engine.EventFreeze, passesSeen); err != nil {
		return measured{}, err
	}
	for _, e := range events {
		if e.Elapsed <= 0 || !slices.Contains(passSteps[from], e.Step) || e.At.Before(since) {
			continue
		}
		switch e.Mark {
		case freeze.MarkHold, freeze.MarkBusy:
			m.Drain = e.Elapsed
		case markPause:
			m.Pause = e.Elapsed
		}
	}
	return m, nil
}

// predictNow is the prediction for the next freeze of a run, from the side that takes writes: the
// plan's estimate, refined by what was measured since.
func predictNow(ctx context.Context, run *journal.Run, owner journal.Ownership) (engine.Prediction, error) {
	m, err := measureNow(ctx, run, owner)
	p := run.Plan.Predictions
	if p.Back > 0 && owner.Side == engine.Target {
		p.Budget = p.Back
	}
	return m.on(p), err
}

// measureNow is what the side that takes writes has shown.
func measureNow(ctx context.Context, run *journal.Run, owner journal.Ownership) (measured, error) {
	if owner.Side == engine.Target {
		return measure(ctx, run, engine.Target, owner.Since)
	}
	return measure(ctx, run, engine.Source, time.Time{})
}

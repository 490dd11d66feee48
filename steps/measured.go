package steps

import (
	"context"
	"slices"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// measured is what passes, rehearsals and attempts from one side have shown.
type measured struct {
	Pass  time.Duration // of the latest exact pass; 0: there was none yet
	Rate  float64       // rows a second of the one that carried most; 0: none carried enough to tell
	Drain time.Duration // of the latest attempt or rehearsal, also one that gave it up; 0: there was none yet
	poolersShown

	// Work is what the latest rehearsal or attempt took after its drain to carry everything over, a rehearsal
	// until it had let go; 0: none came so far.
	Work      time.Duration
	Rehearsed bool // it was a rehearsal
	// GivenUp is how long the longest one since had worked after its drain when it was given up.
	GivenUp time.Duration

	Reload     float64 // bytes a second of the latest reload that was large enough to tell
	ReloadFirm float64 // of the latest one in a rehearsal
}

// poolersShown is what the latest attempts in either direction took at the poolers, whichever side took writes
// since: they are the same, and so are their clients. A rehearsal leaves them alone.
type poolersShown struct{ Pause, Repoint, Resume time.Duration }

// Marks of the poolers in the events of a freeze.
const (
	markPause   = "pause"
	markRepoint = "repoint"
	markResume  = "resume"
)

// see takes in marks in their order.
func (p *poolersShown) see(marks []engine.Event) {
	for _, e := range marks {
		switch e.Mark {
		case markPause:
			p.Pause = e.Elapsed
		case markRepoint:
			p.Repoint = e.Elapsed
		case markResume:
			p.Resume = e.Elapsed
		}
	}
}

// reloadRate is what the next reload is expected to carry.
func (m measured) reloadRate() float64 {
	if m.Reload > 0 {
		return m.Reload
	}
	return assumedRate
}

// firmRate leaves out an attempt's that was undone, unless it was a faster one.
func (m measured) firmRate() float64 {
	firm := m.ReloadFirm
	if firm == 0 {
		firm = assumedRate
	}
	return max(firm, m.Reload)
}

const latestRehearsal = "the latest rehearsal"

// longest is the longest work that counts, and whose it was.
func (m measured) longest() (took time.Duration, what string) {
	switch {
	case m.GivenUp > m.Work:
		return m.GivenUp, "a freeze was given up"
	case m.Rehearsed:
		return m.Work, latestRehearsal + " took"
	default:
		return m.Work, "the latest attempt took"
	}
}

// markReload carries the rate of a reload inside a freeze.
const markReload = "reload"

const (
	passesSeen  = 100  // of the journal's latest pass events
	marksSeen   = 400  // and of its marks of freezes, a dozen each
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

// measure reads what the passes and freezes of a run have shown. Of passes those before since tell the
// rate too, but not how long the next one takes.
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
	if events, err = run.EventsOf(ctx, engine.EventFreeze, marksSeen); err != nil {
		return measured{}, err
	}
	m.poolersShown.see(events)
	m.see(slices.DeleteFunc(events, func(e engine.Event) bool {
		return !slices.Contains(passSteps[from], e.Step) || e.At.Before(since)
	}))
	return m, nil
}

// see takes in the marks of freezes from one side, in their order.
func (m *measured) see(marks []engine.Event) {
	var held, carried time.Duration // of the freeze that the marks are in; 0: it has not come so far
	for _, e := range marks {
		if e.Elapsed <= 0 {
			continue
		}
		rehearsal := e.Step == rehearseID
		switch e.Mark {
		case freeze.MarkHold:
			m.Drain, held, carried = e.Elapsed, e.Elapsed, 0
		case freeze.MarkBusy:
			m.Drain = e.Elapsed
		case markReload:
			m.Reload = e.Rate
			if rehearsal {
				m.ReloadFirm = e.Rate
			}
		case freeze.MarkCarried:
			if held > 0 {
				carried = e.Elapsed
				m.Work, m.Rehearsed, m.GivenUp = carried-held, rehearsal, 0
			}
		case freeze.MarkUndo:
			switch {
			case held == 0: // its beginning is not among them
			case carried == 0:
				m.GivenUp = max(m.GivenUp, e.Elapsed-held)
			case rehearsal:
				m.Work = e.Elapsed - held
			}
			held = 0
		case freeze.MarkFlip: // what comes next is another freeze, on the way back or after it
			*m = measured{Pass: m.Pass, Rate: m.Rate, poolersShown: m.poolersShown}
			held = 0
		}
	}
}

// measureNow is what the side that takes writes has shown since the latest flip.
func measureNow(ctx context.Context, run *journal.Run, owner journal.Ownership) (measured, error) {
	from, since := engine.Source, time.Time{}
	if owner.Side == engine.Target {
		from = engine.Target
	}
	if owner.Flip != nil {
		since = owner.Since
	}
	return measure(ctx, run, from, since)
}

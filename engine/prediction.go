package engine

import (
	"strconv"
	"strings"
	"time"
)

// Prediction is what a freeze is expected to cost.
type Prediction struct {
	WriteBlock time.Duration `json:"write_block,omitempty"`
	Switch     time.Duration `json:"switch,omitempty"`   // of it: switch steps, at their timeouts
	Drain      time.Duration `json:"drain,omitempty"`    // of it: the latest drain
	Undone     time.Duration `json:"undone,omitempty"`   // of it: what nothing but attempts that were undone has shown
	Repoint    time.Duration `json:"repoint,omitempty"`  // of it: poolers, as the last time
	Pause      time.Duration `json:"pause,omitempty"`    // not of it: clients of poolers wait so long before
	Resume     time.Duration `json:"resume,omitempty"`   // and so long after
	Budget     time.Duration `json:"budget,omitempty"`   // max_write_block
	Back       time.Duration `json:"back,omitempty"`     // a rollback's, where it has one of its own
	From       Side          `json:"from,omitempty"`     // whose writers wait: the target's in a rollback
	Measured   bool          `json:"measured,omitempty"` // by passes or freezes of the run; otherwise it is an estimate
	Why        string        `json:"why,omitempty"`      // the parts in a sentence, and what else is to be said
	Parts      []Part        `json:"parts,omitempty"`    // they add up to WriteBlock
}

// Part is one cause of a write block.
type Part struct {
	What  string        `json:"what"` // "for 4 tables"
	Takes time.Duration `json:"takes"`
}

// Of names what it is of.
func (p Prediction) Of() string {
	if p.From == Target {
		return string(PhaseRollback)
	}
	return string(PhaseCutover)
}

// Counts is what is held to the budget before a freeze is tried. Timeouts of switch steps are not: they
// are limits, and the budget ends what reaches them. Nor are poolers, nor the drain, nor what attempts have shown that
// were undone: only another attempt tells whether what they waited for is still there.
func (p Prediction) Counts() time.Duration {
	return p.WriteBlock - p.Switch - p.Repoint - p.Drain - p.Undone
}

// Over reports whether a freeze is not even tried.
func (p Prediction) Over() bool { return p.Budget > 0 && p.Counts() > p.Budget }

// Explain says the parts in a sentence: "60ms to hold + 1ms for 4 tables".
func (p Prediction) Explain() string {
	texts := make([]string, len(p.Parts))
	for i, part := range p.Parts {
		texts[i] = part.Takes.String() + " " + part.What
	}
	return strings.Join(texts, " + ")
}

// String says it in a sentence's end: "predicted write block 0.2s of 2s (why)".
func (p Prediction) String() string {
	text := "predicted write block " + strconv.FormatFloat(float64(p.WriteBlock.Round(time.Millisecond).Milliseconds())/1000, 'f', -1, 64) + "s"
	if p.Budget > 0 {
		text += " of " + p.Budget.String()
	}
	if p.Over() {
		text += ", OVER the budget: no freeze would begin"
	}
	if p.Why != "" {
		text += " (" + p.Why + ")"
	}
	return text
}

// PredictionLine is a Prediction as commands print it for machines: in seconds.
type PredictionLine struct {
	Of         string     `json:"of"` // cutover or rollback
	WriteBlock float64    `json:"write_block_seconds"`
	Budget     float64    `json:"budget_seconds"`
	Pause      float64    `json:"pause_seconds,omitempty"`
	Resume     float64    `json:"resume_seconds,omitempty"`
	Measured   bool       `json:"measured"`
	Over       bool       `json:"over_budget"`
	Why        string     `json:"why,omitempty"`
	Parts      []PartLine `json:"parts"` // they add up to the write block
}

// PartLine is a Part in seconds.
type PartLine struct {
	What  string  `json:"what"`
	Takes float64 `json:"seconds"`
}

// Line gives the prediction in seconds.
func (p Prediction) Line() PredictionLine {
	l := PredictionLine{
		Of: p.Of(), WriteBlock: p.WriteBlock.Seconds(), Budget: p.Budget.Seconds(), Pause: p.Pause.Seconds(), Resume: p.Resume.Seconds(),
		Measured: p.Measured, Over: p.Over(), Why: p.Why, Parts: []PartLine{},
	}
	for _, part := range p.Parts {
		l.Parts = append(l.Parts, PartLine{part.What, part.Takes.Seconds()})
	}
	return l
}

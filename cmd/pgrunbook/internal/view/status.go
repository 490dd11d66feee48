package view

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Status is a run as it stands, made by the command from the journal and the two gates.
type Status struct {
	Writes   string        `json:"writes"` // source, target or unclear: who may write
	Since    time.Time     `json:"since,omitzero"`
	Run      string        `json:"run"`
	Name     string        `json:"name"`
	State    string        `json:"state"` // active, finished, aborted
	Started  time.Time     `json:"started,omitzero"`
	Phase    engine.Phase  `json:"phase,omitempty"`  // of Step
	Step     engine.StepID `json:"step,omitempty"`   // that runs, failed or is next; empty: all are done
	Holder   string        `json:"holder,omitempty"` // "process 12 on host a since ...", empty: nobody
	Paused   string        `json:"paused,omitempty"` // by whom, empty: not paused
	Lag      time.Duration `json:"-"`
	LagKnown bool          `json:"-"`
	Passed   bool          `json:"-"`                 // there was an exact pass
	Pending  *int64        `json:"pending,omitempty"` // rows that wait for a pass; nil: nobody knows
	// PendingAt is when the runner saw them; zero is now.
	PendingAt time.Time     `json:"pending_at,omitzero"`
	Steps     []StatusStep  `json:"steps"`
	Tables    []StatusTable `json:"tables,omitempty"`
	Notes     []string      `json:"notes,omitempty"` // approvals that wait, foreign holders of the gate's lock
	After     *StatusAfter  `json:"after_flip,omitempty"`
	Next      string        `json:"next"` // what to type

	Predicted *engine.Prediction `json:"-"`                  // of the next freeze, where there may be one
	Back      *StatusBack        `json:"rollback,omitempty"` // while the source takes writes, and of a run that is over
}

// StatusAfter is what a flip left behind: the old side, and the way back.
type StatusAfter struct {
	Old       string      `json:"old_side"`
	Refused   *int64      `json:"refused_writes"`            // by the old side's gate; nil: it was not asked
	ReadOnly  bool        `json:"read_only"`                 // its new sessions are
	Connected []string    `json:"still_connected,omitempty"` // to the old side, by client
	Standbys  []string    `json:"standbys_behind,omitempty"` // of the old side
	Back      *StatusBack `json:"rollback,omitempty"`        // where the target takes writes
}

// StatusBack says whether writes can go back to the source.
type StatusBack struct {
	Possible bool          `json:"possible"`
	Why      string        `json:"why,omitempty"` // not
	Hint     string        `json:"hint,omitempty"`
	Rows     int64         `json:"pending_rows"` // to carry back first
	Takes    time.Duration `json:"-"`
	Seconds  float64       `json:"estimate_seconds"`
	Measured bool          `json:"measured"`               // the estimate, by passes of this run
	Since    time.Time     `json:"since,omitzero"`         // not possible: when that was first seen
	Proved   time.Time     `json:"last_possible,omitzero"` // when it was last known to be possible
	Unasked  string        `json:"unasked,omitempty"`      // what was not looked at
}

// StatusStep is one step of the plan.
type StatusStep struct {
	ID      engine.StepID    `json:"id"`
	State   engine.StepState `json:"state"`
	Elapsed time.Duration    `json:"-"`
	Error   string           `json:"error,omitempty"`
	Again   string           `json:"again,omitempty"` // pending although it was done before, since
}

// StatusTable is one table of the step that runs.
type StatusTable struct {
	Name     string `json:"name"`
	State    string `json:"state"` // loading, scrubbed, following
	Rows     int64  `json:"rows"`
	Bytes    int64  `json:"bytes"`
	BytesAll int64  `json:"bytes_all"`
}

// statusTables is how many tables the short form shows.
const statusTables = 15

// WriteStatus writes a run's status for people: the first line says who may write, the last what
// to type.
func WriteStatus(out io.Writer, s Status, o PlanOptions) error {
	if o.Width <= 0 {
		o.Width = defaultWidth
	}
	w := &planWriter{o: o, b: budgets[0]}
	since := ""
	if !s.Since.IsZero() {
		since = " since " + s.Since.UTC().Format(time.RFC3339)
	}
	if s.Writes == "unclear" {
		w.line("Who may write is UNCLEAR%s: look at both gates before you do anything.", since)
	} else {
		w.line("The %s takes writes%s.", printable(s.Writes), since)
	}
	w.line("")
	w.line("  run      %s of %s, %s, begun %s", printable(s.Run), printable(s.Name), printable(s.State), s.Started.UTC().Format(time.RFC3339))
	if s.Step != "" {
		w.line("  phase    %s, step %s", printable(string(s.Phase)), printable(string(s.Step)))
	}
	if s.Holder != "" {
		w.text("  runner   ", s.Holder)
	} else {
		w.line("  runner   none")
	}
	if s.Paused != "" {
		w.text("  paused   ", s.Paused)
	}
	if text := lagText(s); text != "" {
		w.line("  lag      %s", text)
	}
	if s.After != nil {
		w.after(s.After)
	}
	if p := s.Predicted; p != nil {
		label := "  freeze   "
		if p.From == engine.Target {
			label = "  way back "
		}
		w.text(label, "predicted: "+waitIn(*p)+predicted(*p)+because(p.Why))
	}
	if s.Back != nil {
		label := "  rollback not possible: "
		if !s.Back.Since.IsZero() {
			label = "  rollback not possible since " + s.Back.Since.UTC().Format(time.RFC3339) + ": "
		}
		w.text(label, strings.TrimSpace(s.Back.Why+". "+s.Back.Hint))
	}
	for _, n := range s.Notes {
		w.text("  note     ", n)
	}
	w.line("")
	for _, st := range s.Steps {
		took := ""
		if st.Elapsed > 0 {
			took = durationText(st.Elapsed)
		}
		what := st.Error
		if st.Again != "" {
			what = "to be made again, since " + st.Again
		}
		w.text(fmt.Sprintf("  %-8s %8s  ", st.State, took), strings.TrimSuffix(string(st.ID)+": "+what, ": "))
	}
	if len(s.Tables) > 0 {
		w.line("")
	}
	n := w.most(len(s.Tables), statusTables)
	for _, t := range s.Tables[:n] {
		a := amount{rows: t.Rows, bytes: t.Bytes, bytesAll: t.BytesAll}
		text := a.text(0)
		switch t.State { // no step counts them
		case "at_freeze":
			text = bytesText(t.BytesAll) + ", copied whole while writes are held"
		case "empty":
			text = "without its rows"
		}
		w.text(fmt.Sprintf("  %-9s ", printable(t.State)), t.Name+"  "+text)
	}
	if n < len(s.Tables) {
		w.line("  … and %d more (--verbose)", len(s.Tables)-n)
	}
	if s.Next != "" {
		w.line("")
		w.line("Next: %s", printable(s.Next))
	}
	_, err := io.WriteString(out, strings.Join(w.lines, "\n")+"\n")
	if err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	return nil
}

// RefusedText says how many writes a closed side's gate refused, and what it cannot know.
func RefusedText(n *int64, readOnly bool) string {
	if n == nil {
		return "not asked how many writes it refused"
	}
	text := countText(*n) + " writes refused by the gate"
	if readOnly {
		text += "; new sessions are read-only, and what the server refuses for that is not counted"
	}
	return text
}

// lagText gives "1.2s, 12.3 k rows pending", as far as they are known.
func lagText(s Status) string {
	var parts []string
	switch {
	case s.LagKnown:
		parts = append(parts, durationText(s.Lag))
	case s.Pending != nil && !s.Passed:
		parts = append(parts, "no exact pass yet")
	}
	if s.Pending != nil {
		rows := countText(*s.Pending) + " rows pending"
		if *s.Pending == 1 {
			rows = "1 row pending"
		}
		if !s.PendingAt.IsZero() {
			rows += " when the runner looked, " + s.PendingAt.UTC().Format(time.RFC3339)
		}
		parts = append(parts, rows)
	}
	return strings.Join(parts, ", ")
}

// after says who still goes to the old side, and whether there is a way back.
func (w *planWriter) after(a *StatusAfter) {
	w.text("  old side ", "the "+a.Old+": "+RefusedText(a.Refused, a.ReadOnly))
	if len(a.Standbys) > 0 {
		w.text("  old side ", "a failover of the "+a.Old+" now would reopen it: these standbys do not have the COMMIT that closed it: "+strings.Join(a.Standbys, ", "))
	}
	for _, c := range a.Connected {
		w.text("  old side ", "still connected to the "+a.Old+": "+c)
	}
	b := a.Back
	switch {
	case b == nil:
	case b.Possible:
		rate := "assumed rate"
		if b.Measured {
			rate = "measured rate"
		}
		text := fmt.Sprintf("possible, after %s rows, about %s at the %s", countText(b.Rows), durationText(b.Takes), rate)
		if b.Unasked != "" {
			text = "possible as far as the target knows, after " + countText(b.Rows) + " rows, about " + durationText(b.Takes) + " at the " + rate + "; " + b.Unasked
		}
		w.text("  way back ", text)
	default:
		text := "not possible: " + b.Why
		if !b.Since.IsZero() {
			text = "not possible since " + b.Since.UTC().Format(time.RFC3339) + " at the latest: " + b.Why
		}
		if !b.Proved.IsZero() {
			text += "; it was possible at " + b.Proved.UTC().Format(time.RFC3339)
		}
		if b.Hint != "" {
			text += ". " + b.Hint
		}
		w.text("  way back ", text)
	}
}

// WriteStatusJSON writes a status as one line of JSON, in the envelope of the event stream.
func WriteStatusJSON(out io.Writer, s Status, now time.Time) error {
	type step struct {
		StatusStep
		Elapsed float64 `json:"elapsed_seconds"`
	}
	steps := make([]step, 0, len(s.Steps))
	for _, st := range s.Steps {
		steps = append(steps, step{st, seconds(st.Elapsed)})
	}
	line := struct {
		envelope
		Status
		Steps     []step                 `json:"steps"`
		Lag       *float64               `json:"lag_seconds,omitempty"`
		Predicted *engine.PredictionLine `json:"predicted,omitempty"`
	}{envelope: headOf("info", "the "+s.Writes+" takes writes", "status", now), Status: s, Steps: steps}
	if s.Writes == "unclear" {
		line.Message = "who may write is unclear"
	}
	if s.LagKnown {
		lag := seconds(s.Lag)
		line.Lag = &lag
	}
	if p := s.Predicted; p != nil {
		predicted := p.Line()
		line.Predicted = &predicted
	}
	if err := json.NewEncoder(out).Encode(line); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	return nil
}

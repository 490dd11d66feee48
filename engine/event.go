package engine

import "time"

// EventKind names what happened.
type EventKind string

// Every kind of event. The published JSON schema lists the same names.
const (
	EventRunStarted  EventKind = "run_started"
	EventStepStarted EventKind = "step_started"
	EventStepDone    EventKind = "step_done"
	EventStepSkipped EventKind = "step_skipped" // done by an earlier process of this run
	EventStepFailed  EventKind = "step_failed"
	EventProgress    EventKind = "progress"       // a step's rows and bytes so far
	EventTable       EventKind = "table_progress" // one table's rows and bytes so far
	EventLag         EventKind = "lag"
	EventWaiting     EventKind = "waiting" // for a lock, a person, a window; Reason and Blockers say what
	EventRetry       EventKind = "retry"
	EventDiagnosed   EventKind = "diagnosed" // a finding while it runs
	EventNote        EventKind = "note"
	EventApproval    EventKind = "approval"
	EventFreeze      EventKind = "freeze" // Phase-of-freeze marks: hold, drained, proof, pass, sequences, switch, flip, open
	EventVerify      EventKind = "verify_result"
	EventRunEnded    EventKind = "run_ended"
)

// Event is one line of the stream. Message is always the human line; the other fields are set
// where the kind has them.
type Event struct {
	Kind    EventKind `json:"type"`
	At      time.Time `json:"at"`
	Run     string    `json:"run,omitempty"`
	Step    StepID    `json:"step,omitempty"`
	Phase   Phase     `json:"phase,omitempty"`
	Level   string    `json:"level,omitempty"` // info, warn, error; empty is info
	Message string    `json:"message"`

	Object   string        `json:"object,omitempty"` // table, sequence, role
	Rows     int64         `json:"rows,omitempty"`
	RowsAll  int64         `json:"rows_all,omitempty"` // estimate
	Bytes    int64         `json:"bytes,omitempty"`
	BytesAll int64         `json:"bytes_all,omitempty"` // estimate
	Rate     float64       `json:"rate,omitempty"`      // bytes per second
	ETA      time.Duration `json:"eta,omitempty"`       // nanoseconds; 0 is unknown
	Elapsed  time.Duration `json:"elapsed,omitempty"`   // nanoseconds
	Lag      time.Duration `json:"lag,omitempty"`       // nanoseconds
	Pending  int64         `json:"pending,omitempty"`   // rows still in the deltas
	Reason   string        `json:"reason,omitempty"`
	Blockers []string      `json:"blockers,omitempty"`
	Mark     string        `json:"mark,omitempty"`      // of EventFreeze
	Finding  *Finding      `json:"finding,omitempty"`   // of EventDiagnosed
	ExitCode int           `json:"exit_code,omitempty"` // of EventRunEnded
	Hint     string        `json:"hint,omitempty"`      // what to type
	SQLState string        `json:"sqlstate,omitempty"`
}

// Sink takes events. It must not block for long and may be called from many goroutines.
type Sink interface {
	Emit(e Event)
}

// SinkFunc makes a function a Sink.
type SinkFunc func(e Event)

// Emit calls f.
func (f SinkFunc) Emit(e Event) { f(e) }

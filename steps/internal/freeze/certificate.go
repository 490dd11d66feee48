package freeze

import "time"

// Certificate is the record of one freeze: who was drained, the proof that no older writer was
// left, what was carried over last, and when. It is kept in the journal.
type Certificate struct {
	From      string        `json:"from"` // "source" in a cutover, "target" in a rollback
	To        string        `json:"to"`
	Epoch     int64         `json:"epoch"`
	Attempt   int           `json:"attempt"`
	Began     time.Time     `json:"began"`   // writers began to wait, by the runner's clock
	Flipped   time.Time     `json:"flipped"` // to's COMMIT returned
	Blocked   time.Duration `json:"write_block"`
	Budget    time.Duration `json:"budget"`
	Decided   time.Duration `json:"decided"`          // from Began until the flip was decided: what stands for Blocked where another process ended it
	Paused    time.Duration `json:"paused,omitempty"` // clients of poolers waited so long before Began: PAUSE, and then connecting
	Drain     time.Duration `json:"drain"`            // until the gate was held
	Drained   []Blocker     `json:"drained"`          // who had passed the gate and was waited for, at most 100
	Proof     Proof         `json:"proof"`
	Pass      PassResult    `json:"pass"`
	Pending   int64         `json:"pending"` // rows left in the deltas after the exact pass: 0
	Tables    int           `json:"tables"`
	Sequences int           `json:"sequences"`
	Compared  string        `json:"compared"`                 // what was compared, in a sentence
	ClosedAt  string        `json:"closed_at,omitempty"`      // position of from's log by which the COMMIT that closed it was in
	Ended     []string      `json:"ended_sessions,omitempty"` // to's sessions with a snapshot older than the flip
	Marks     []Mark        `json:"marks"`
}

// Flip records that to took over.
func (c *Certificate) Flip(at time.Time) {
	c.Flipped, c.Blocked = at, at.Sub(c.Began)
}

// Proof says how the absence of older writers was shown.
type Proof struct {
	Looks int    `json:"looks"` // how often pg_locks was read until it was clean
	Text  string `json:"text"`
}

// PassResult is what the final exact pass carried.
type PassResult struct {
	ID       string    `json:"id"`
	Rows     int64     `json:"rows"`               // rows and deletions applied
	Position string    `json:"position,omitempty"` // from's snapshot: whatever was committed by then is on to
	At       time.Time `json:"at,omitzero"`        // of the snapshot, by from's clock
}

// What tells how long the next freeze takes. A mark's time is from the moment writers began to wait.
const (
	MarkHold    = "hold"      // the gate was held: the drain is over
	MarkBusy    = "busy"      // or it was given up
	MarkCarried = "sequences" // to has all that from has
	MarkFlip    = "flip"      // to takes writes
	MarkUndo    = "undo"      // from takes writes again
)

// Mark is one boundary of the freeze with its distance from Began.
type Mark struct {
	Name  string        `json:"name"`
	After time.Duration `json:"after"`
}

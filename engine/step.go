package engine

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// StepID is a step's name in the plan, on the command line and in the journal: "copy",
// "catch_up", or "cutover.before.approve.go" for a person's step.
type StepID string

// Step is one unit of a phase.
type Step interface {
	ID() StepID
	Phase() Phase
	// Fingerprint hashes the inputs that may not change during a run.
	Fingerprint() string
	// Plan says what Apply will do. It is read-only on both sides.
	Plan(ctx context.Context) (StepPlan, error)
	// Apply does what p says, from the checkpoint on. It may be called again after any death.
	Apply(ctx context.Context, p StepPlan, cp Checkpoint) error
}

// Undoer is a step that can take back what Apply did.
type Undoer interface {
	Undo(ctx context.Context, cp Checkpoint) error
}

// Approver is a step that needs a person before Apply.
type Approver interface {
	Approval() ApprovalRequest
}

// ApprovalRequest is what the person is asked.
type ApprovalRequest struct {
	Name    string        // what --approve names
	Message string        // one sentence
	Expires time.Duration // how long an approval given in advance counts; 0 is for ever
}

// Checkpoint is a step's durable progress and its way to report.
type Checkpoint interface {
	// Load reads the last committed cursor into a pointer; false means there is none.
	Load(ctx context.Context, into any) (bool, error)
	// Save stores the cursor. With a transaction on the target the cursor commits with the rows it
	// covers; with nil it commits on its own.
	Save(ctx context.Context, tx pgx.Tx, cursor any) error
	// Emit reports progress; the step's ID is filled in.
	Emit(e Event)
}

// StepPlan is one step of a plan, as data. Apply runs what stands here and nothing else.
type StepPlan struct {
	ID       StepID   `json:"id"`
	Phase    Phase    `json:"phase"`
	Title    string   `json:"title"`             // one line: what happens
	Why      string   `json:"why,omitempty"`     // one line: why it is needed
	Actions  []Action `json:"actions,omitempty"` // the statements, in order
	Rules    []Rule   `json:"rules,omitempty"`   // what becomes of DDL that comes while the run is under way
	Hazards  []Hazard `json:"hazards,omitempty"`
	Estimate Estimate `json:"estimate,omitzero"`
	// Detail is the step's own typed data as JSON; only the step reads it.
	Detail []byte `json:"detail,omitempty"`
}

// Action is one statement or command, on one side. Group folds like actions on many tables into
// one line of the printed plan: in "gate {n} tables", {n} stands for the number of actions.
type Action struct {
	On      Side   `json:"on"`
	Object  string `json:"object,omitempty"`
	SQL     string `json:"sql,omitempty"` // or the command line for Runner
	Why     string `json:"why,omitempty"`
	Reverse string `json:"reverse,omitempty"`
	Group   string `json:"group,omitempty"`
}

// Rule says what becomes of one kind of DDL in mid-run. Every form of the printed plan shows all of them.
type Rule struct {
	Change string `json:"change"` // on the source
	Then   string `json:"then"`
	How    string `json:"how,omitempty"`
}

// HazardKind classes what can hurt.
type HazardKind string

// The hazards that a plan can carry.
const (
	HazardLock     HazardKind = "lock"     // takes a lock that writers can feel
	HazardBlock    HazardKind = "block"    // blocks writes for a time
	HazardLoad     HazardKind = "load"     // costs the source I/O or CPU
	HazardDisk     HazardKind = "disk"     // needs space
	HazardLoss     HazardKind = "loss"     // something is not carried
	HazardOneWay   HazardKind = "one_way"  // cannot be undone
	HazardExternal HazardKind = "external" // runs a command or waits for a person
)

// Hazard is one sentence about one danger.
type Hazard struct {
	Kind   HazardKind `json:"kind"`
	Object string     `json:"object,omitempty"`
	Text   string     `json:"text"`
}

// Estimate is what a step is expected to take.
type Estimate struct {
	Seconds    float64 `json:"seconds,omitempty"`
	Rows       int64   `json:"rows,omitempty"`
	Unanalyzed int     `json:"unanalyzed,omitempty"` // tables with rows of an unknown number, which Rows lacks
	Bytes      int64   `json:"bytes,omitempty"`
	SourceDisk int64   `json:"source_disk,omitempty"` // bytes
	TargetDisk int64   `json:"target_disk,omitempty"` // bytes
	RunnerDisk int64   `json:"runner_disk,omitempty"` // bytes, on the machine that runs apply
}

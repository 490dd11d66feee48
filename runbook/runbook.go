package runbook

import (
	"time"

	"github.com/hashicorp/hcl/v2"
)

// Runbook is one decoded runbook file: everything a person wrote, with the place where it
// stands in the file, and the standard for everything that was left out.
type Runbook struct {
	Name            string
	RequiredVersion string // a constraint such as ">= 1.0"; empty means any

	Path   string            // as given on the command line
	Dir    string            // directory that relative paths in the runbook start from
	Text   []byte            // the file's bytes, kept in a saved plan
	Files  map[string][]byte // every file read, by path as named in the runbook: text pinned by a plan
	Digest string            // sha256 over names and bytes of Files plus the non-sensitive variable values

	Variables []Variable

	Source Server
	Target Server
	Schema Schema
	Tables Tables
	Rules  []TableRule // in the order of the file
	Copy   Copy
	Verify Verify
	Limits []Limit

	Cutover  Cutover
	Rollback Rollback
	Finish   Finish

	// Hooks holds the before and after steps of every phase, the cutover included.
	Hooks map[string]Hooks // by phase name: schema, capture, copy, catch_up, verify, cutover, rollback, finish

	eval    *hcl.EvalContext
	sources *sources   // what diagnostics print from
	secrets *secretSet // what must never be printed
}

// Variable is one declared variable after evaluation. Value is empty for sensitive ones.
type Variable struct {
	Name      string
	Sensitive bool
	Known     bool
	Value     string
	Range     hcl.Range
}

// Server says how to reach one side. URL may hold a password when it came from a sensitive
// variable; it must never be printed.
type Server struct {
	URL                 string // postgresql:// or keyword=value; empty when Service or InheritEnv is used
	URLKnown            bool   // false in validate when the variable behind it is not set
	URLRange            hcl.Range
	Service             string // name in pg_service.conf
	InheritEnv          bool   // take PG* variables for this side
	PasswordCommand     []string
	ApplyRole           string // role that will apply; empty means the connecting role
	ReplicaRoleFunction string // "schema.function" that sets session_replication_role, where the role itself may not
	Range               hcl.Range
}

// Schema holds the settings of the schema phase.
type Schema struct {
	Enabled  bool              // Defaults to true
	Mode     string            // "restore" or "existing". Defaults to "restore"
	Roles    string            // "create", "require" or "skip". Defaults to "require"
	Owners   map[string]string // owner on the source to owner on the target
	OnDDL    string            // "carry" or "stop". Defaults to "stop"
	Settings bool              // carry ALTER DATABASE/ROLE IN DATABASE settings. Defaults to true
	Range    hcl.Range
}

// Pattern is one psql-style table pattern with its place in the file. Schema is required;
// "*" and "?" are wildcards, double quotes make a part literal and case-sensitive.
type Pattern struct {
	Text  string
	Range hcl.Range
}

// Tables is the scope. An empty Include means every schema that is not PostgreSQL's own.
type Tables struct {
	Include     []Pattern
	Exclude     []Pattern // neither structure nor rows, never gated
	ExcludeData []Pattern // exists on the target, empty
	Range       hcl.Range
}

// TableRule is one table block. Nil or empty fields are not set by this rule.
type TableRule struct {
	Pattern  Pattern
	Data     string   // "live", "at_freeze" or "none"
	Key      []string // columns of a unique index that serves as key
	Identity string   // "key", "append_only" or "full_row"
	Method   string   // "stream", "pg_dump" or "external"
	Chunk    int64    // bytes; 0 is not set
	Range    hcl.Range
}

// Copy holds the settings of the load.
type Copy struct {
	Method  string // "stream", "pg_dump" or "external". Defaults to "stream"
	Workers int    // Defaults to 4
	Chunk   int64  // bytes. Defaults to 128 MiB
	Range   hcl.Range
}

// Verify holds the settings of the live comparison.
type Verify struct {
	Enabled bool   // Defaults to true
	Mode    string // "hash" or "count". Defaults to "hash"
	Workers int    // Defaults to 2
	Range   hcl.Range
}

// Limit is one limit block.
type Limit struct {
	Kind  string  // delta_size, replica_lag, sessions, copy_rate
	Max   string  // as written
	Value float64 // Max in base units: bytes, seconds, sessions, bytes per second
	Then  string  // slow, pause or stop
	Range hcl.Range
}

// Cutover holds the freeze's budget and the people's steps in it.
type Cutover struct {
	Enabled        bool          // Defaults to true
	MaxWriteBlock  time.Duration // Defaults to 2s
	Attempts       int           // Defaults to 20
	RetryEvery     time.Duration // Defaults to 15s
	Window         string        // "02:00-05:00 Europe/Berlin"; empty means any time
	SequenceMargin int64         // Defaults to 1000
	ClosedError    string        // SQLSTATE that a closed gate raises: "25006" or "57014". Defaults to "25006"
	ClosedMessage  string        // message that a closed gate raises
	LargeObjects   string        // "refuse" or "ignore". Defaults to "refuse"
	ReadOnly       bool          // set the old side default_transaction_read_only after the flip. Defaults to true
	EndSessions    bool          // end the application's sessions on the old side after the flip. Defaults to true
	Switch         []StepBlock
	Poolers        []Pooler
	Range          hcl.Range
}

// Pooler is one pooler block of the cutover.
type Pooler struct {
	Kind       string // "pgbouncer"
	Name       string
	Admin      string // connection string of the admin console
	Database   string
	ConfigFile string
	Connect    string        // what the database entry points to after the switch
	Timeout    time.Duration // longest wait for PAUSE. Defaults to 5s
	Range      hcl.Range
}

// Rollback holds the settings of the way back.
type Rollback struct {
	Enabled       bool          // Defaults to true
	KeepFor       time.Duration // finish refuses earlier without --now. Defaults to 0
	MaxWriteBlock time.Duration // of the way back; 0 is the cutover's
	Range         hcl.Range
}

// WriteBlock is the longest time that writes may wait in one attempt at the cutover, or on the way back.
func (rb *Runbook) WriteBlock(back bool) time.Duration {
	if back && rb.Rollback.MaxWriteBlock > 0 {
		return rb.Rollback.MaxWriteBlock
	}
	return rb.Cutover.MaxWriteBlock
}

// Finish holds the settings of the clean-up.
type Finish struct {
	Source string // "closed" or "open": what happens to the source's gate. Defaults to "closed"
	Range  hcl.Range
}

// Hooks are the steps that people put before and after a phase.
type Hooks struct {
	Before []StepBlock
	After  []StepBlock
}

// StepBlock is one step "KIND" "NAME" block. Its body is decoded by the kind that the registry
// knows; this package knows none.
type StepBlock struct {
	Kind  string
	Name  string
	Body  hcl.Body
	Eval  *hcl.EvalContext // the file's variables, locals and functions
	Dir   string           // relative paths start here
	Range hcl.Range
	// KindRange and NameRange are the two labels, for diagnostics.
	KindRange, NameRange hcl.Range

	files   *fileSet
	secrets *secretSet
}

package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// PlanFormat is the version of the saved plan's JSON. A newer one is refused.
const PlanFormat = 1

// Plan is the ordered walk as data. It holds no secret.
type Plan struct {
	Format      int       `json:"format"`
	ToolVersion string    `json:"tool_version"`
	Created     time.Time `json:"created"`
	Name        string    `json:"name"` // the runbook's label

	Runbook RunbookPin        `json:"runbook"`
	Source  Identity          `json:"source"`
	Target  Identity          `json:"target"`
	Shapes  map[string]string `json:"shapes"` // "schema.table" to a hash of columns, key, triggers, partitions

	Steps       []StepPlan `json:"steps"`
	Findings    []Finding  `json:"findings,omitempty"`
	NotCarried  []string   `json:"not_carried,omitempty"` // one sentence each
	Scope       []byte     `json:"scope"`                 // the resolved tables and sequences; package steps reads it
	Predictions Prediction `json:"predictions,omitzero"`
	Flips       int        `json:"flips,omitempty"` // of the run before this plan was made; recorded, not part of the digest
}

// RunbookPin ties a plan to the file it was made from.
type RunbookPin struct {
	Path      string            `json:"path"`
	Text      string            `json:"text"`
	Digest    string            `json:"digest"`
	Files     map[string]string `json:"files,omitempty"`     // path to sha256
	Variables map[string]string `json:"variables,omitempty"` // non-sensitive values; sensitive ones by name only, as "(sensitive)"
}

// Identity tells one database of one cluster from every other.
// system_identifier survives a physical copy; the postmaster's start time does not
// (https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-CONTROL-SYSTEM).
type Identity struct {
	SystemIdentifier string    `json:"system_identifier"` // empty where the role may not read it
	Database         string    `json:"database"`
	DatabaseOID      uint32    `json:"database_oid"`
	Major            int       `json:"major"`
	Version          string    `json:"version"`
	StartedAt        time.Time `json:"started_at"`    // recorded, not part of the digest
	Timeline         int64     `json:"timeline"`      // recorded, not part of the digest
	Address          string    `json:"address"`       // host:port/database without user or password
	TLS              string    `json:"tls,omitempty"` // the sslmode in effect; recorded, not part of the digest
}

// Same reports whether two identities name the same database of the same cluster.
func (i Identity) Same(o Identity) bool {
	return i.SystemIdentifier == o.SystemIdentifier && i.DatabaseOID == o.DatabaseOID && i.Database == o.Database
}

// Severity of a finding.
type Severity string

// An error stops apply (exit 13); a warning asks for a look; info is for the record.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
	SeverityInfo    Severity = "info"
)

// Finding is one preflight result with its fix.
type Finding struct {
	Code     string   `json:"code"` // stable: "PRE012"
	Severity Severity `json:"severity"`
	Side     Side     `json:"side,omitempty"`
	Object   string   `json:"object,omitempty"`
	Text     string   `json:"text"`          // what is so, and why it matters
	Fix      string   `json:"fix,omitempty"` // what to type
}

// Blocking reports whether a finding of severity error is among the plan's findings.
func (p *Plan) Blocking() bool {
	for _, f := range p.Findings {
		if f.Severity == SeverityError {
			return true
		}
	}
	return false
}

// Step gives the plan of one step.
func (p *Plan) Step(id StepID) (StepPlan, bool) {
	for _, s := range p.Steps {
		if s.ID == id {
			return s, true
		}
	}
	return StepPlan{}, false
}

// Digest is the sha256 of what a reviewer accepted: runbook, identities, shapes, steps. Times,
// sizes, estimates and findings are recorded but not hashed: on a live database they always move.
func (p *Plan) Digest() string {
	type pinned struct {
		Format         int
		Runbook        RunbookPin
		Source, Target Identity
		Shapes         map[string]string
		Steps          []StepID
	}
	d := pinned{Format: p.Format, Runbook: p.Runbook, Source: p.Source.pinned(), Target: p.Target.pinned(), Shapes: p.Shapes}
	d.Runbook.Path = ""
	for _, s := range p.Steps {
		d.Steps = append(d.Steps, s.ID)
	}
	b, err := json.Marshal(d)
	if err != nil {
		panic(fmt.Sprintf("plan is not JSON: %v", err)) // only strings, numbers and maps of strings: cannot happen
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (i Identity) pinned() Identity {
	return Identity{SystemIdentifier: i.SystemIdentifier, Database: i.Database, DatabaseOID: i.DatabaseOID, Major: i.Major}
}

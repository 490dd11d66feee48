package steps

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// person is what all steps that people write have in common.
type person struct {
	env    *Env
	place  Place
	kind   string
	name   string
	inputs string // what was written, without secrets
	redact *Redactor
}

// newPerson makes the common part once the arguments are read. The inputs are what the
// fingerprint covers; a runbook.Secret among them shows itself only when it is not sensitive.
func newPerson(env *Env, place Place, b runbook.StepBlock, inputs ...any) person {
	p := person{env: env, place: place, kind: b.Kind, name: b.Name}
	var secrets []string
	if env.Runbook != nil {
		secrets = env.Runbook.Secrets()
	}
	p.redact = NewRedactor(secrets)
	for _, in := range inputs {
		p.inputs += fmt.Sprintf("%q\n", p.redact.String(fmt.Sprint(in)))
	}
	return p
}

// ID is "<phase>.<slot>.<kind>.<name>".
func (p person) ID() engine.StepID {
	return engine.StepID(fmt.Sprintf("%s.%s.%s.%s", p.place.Phase, p.place.Slot, p.kind, p.name))
}

// Phase gives the phase that the step stands in.
func (p person) Phase() engine.Phase { return p.place.Phase }

// Fingerprint hashes what was written. A sensitive value counts by its name alone: the hash of a
// weak password gives it away.
func (p person) Fingerprint() string {
	sum := sha256.Sum256([]byte(string(p.ID()) + "\n" + p.inputs))
	return hex.EncodeToString(sum[:])
}

func (p person) plan(title, why string, actions ...engine.Action) engine.StepPlan {
	return engine.StepPlan{ID: p.ID(), Phase: p.place.Phase, Title: p.redact.String(title), Why: p.redact.String(why), Actions: p.clean(actions)}
}

func (p person) clean(actions []engine.Action) []engine.Action {
	for i := range actions {
		actions[i].SQL = p.redact.String(actions[i].SQL)
		actions[i].Reverse = p.redact.String(actions[i].Reverse)
	}
	return actions
}

// fail makes the step's error; neither its text nor its hint may hold a secret.
func (p person) fail(op, object, hint string, err error) *engine.Error {
	return &engine.Error{Op: op, Object: p.redact.String(object), Hint: p.redact.String(hint), Err: cleanError{redact: p.redact, err: err}}
}

// cleanError hides secrets in an error's text and keeps its chain.
type cleanError struct {
	redact *Redactor
	err    error
}

func (e cleanError) Error() string { return e.redact.String(e.err.Error()) }
func (e cleanError) Unwrap() error { return e.err }

// timed is a step that gives up after a time of its own.
type timed interface{ Timeout() time.Duration }

// checkSwitch holds a step of the switch to the rules of the freeze: bounded, and able to take
// back what it did.
func checkSwitch(place Place, b runbook.StepBlock, s engine.Step) hcl.Diagnostics {
	if place.Slot != Switch {
		return nil
	}
	refuse := func(summary, detail string) hcl.Diagnostics {
		return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: summary, Detail: detail, Subject: labelRange(b.KindRange, b.Range)}}
	}
	if b.Kind == "approve" {
		return refuse("A person cannot be asked while writes are held", "Put the approve step into cutover { before { ... } }.")
	}
	if w, ok := s.(*waitStep); ok && !w.polls {
		return refuse("A fixed wait only lengthens the write block", "Leave it out of switch, or wait for something with sql and timeout.")
	}
	var diags hcl.Diagnostics
	if t, ok := s.(timed); ok && t.Timeout() == 0 {
		diags = append(diags, refuse("A switch step needs a timeout", "Writes are held while it runs. Add for example: timeout = \"1s\"")...)
	}
	if u, ok := s.(interface{ hasUndo() bool }); ok && !u.hasUndo() {
		diags = append(diags, refuse("A switch step needs an undo", "The freeze runs it when it lets go, and a rollback runs it as its switch. Add for example: "+undoExample(b.Kind))...)
	}
	return diags
}

func undoExample(kind string) string {
	if kind == "sql" {
		return `undo = "UPDATE infra.endpoint SET host = 'old'"`
	}
	return `undo = ["./dns.sh", "onprem"]`
}

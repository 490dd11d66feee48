package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

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

// fail makes the step's error, unless ctx has ended: then its cause is the error, since nothing is
// wrong with the step. ctx is the caller's, without the step's own timeout. Neither
// text nor hint may hold a secret.
func (p person) fail(ctx context.Context, op, object, hint string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w", op, p.redact.String(object), context.Cause(ctx))
	}
	return &engine.Error{Op: op, Object: p.redact.String(object), Hint: p.redact.String(hint), Err: cleanError{redact: p.redact, err: err}}
}

// cleanError hides secrets in an error's text and keeps its chain.
type cleanError struct {
	redact *Redactor
	err    error
}

func (e cleanError) Error() string { return e.redact.String(e.err.Error()) }
func (e cleanError) Unwrap() error { return e.err }

// switchKinds can act within the write block and take it back.
var switchKinds = []string{"exec", "http", "sql"}

// checkSwitch refuses kinds that cannot be undone. That each step has an undo and a timeout, and
// that they fit into the write block, the runbook itself checks.
func checkSwitch(place Place, b runbook.StepBlock) hcl.Diagnostics {
	if place.Slot != Switch || slices.Contains(switchKinds, b.Kind) {
		return nil
	}
	return hcl.Diagnostics{{
		Severity: hcl.DiagError,
		Summary:  fmt.Sprintf("A step %q cannot stand in switch", b.Kind),
		Detail:   fmt.Sprintf("Writes are held while switch runs, and what stands there must be undone when the freeze lets go: only %s can. Put the step into before or after.", listed(switchKinds)),
		Subject:  labelRange(b.KindRange, b.Range),
	}}
}

func listed(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

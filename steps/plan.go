package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// MakePlan looks at both sides, in sessions that cannot write, and puts the plan together. It
// fills env.Scope. A plan with findings of severity error is returned too, without steps when the
// scope itself is wrong; it cannot be applied.
func MakePlan(ctx context.Context, env *Env, toolVersion string) (*engine.Plan, error) {
	if diags := Check(env.Runbook); diags.HasErrors() {
		return nil, &engine.Error{Class: engine.ClassRunbook, Op: "reading the runbook", Err: diags}
	}
	p := newPlan(env, toolVersion)
	usable, err := survey(ctx, env, p)
	if findings := poolersOf(err); findings != nil {
		p.Findings = findings
		return p, nil
	}
	if err != nil || !usable {
		return p, err
	}
	built, diags := Build(env)
	if diags.HasErrors() {
		return nil, &engine.Error{Class: engine.ClassRunbook, Op: "reading the runbook", Err: diags}
	}
	for _, s := range built {
		sp, err := planStep(ctx, env, s)
		if err != nil && ctx.Err() == nil && (p.Blocking() || engine.ClassOf(err) == engine.ClassPreflight) {
			p.Findings = append(p.Findings, unplanned(s.ID(), errors.Unwrap(err)))
			continue
		}
		if err != nil {
			return p, err
		}
		p.Steps = append(p.Steps, sp)
	}
	p.Predictions = predict(env, engine.Source)
	return p, nil
}

// newPlan is a plan before anything was looked at.
func newPlan(env *Env, toolVersion string) *engine.Plan {
	return &engine.Plan{
		Format: engine.PlanFormat, ToolVersion: toolVersion, Created: time.Now().UTC().Truncate(time.Second), Name: env.Runbook.Name, Runbook: pinRunbook(env.Runbook),
		Source: engine.Identity{Address: env.Source.Address()}, Target: engine.Identity{Address: env.Target.Address()},
	}
}

// planStep asks a step for its plan. It is the one place where that is done: meanwhile both servers
// give only sessions that cannot write, so that a Plan that writes fails, whatever it connects with.
func planStep(ctx context.Context, env *Env, s engine.Step) (engine.StepPlan, error) {
	source, target := env.Source, env.Target
	env.Source, env.Target = source.ReadOnly(), target.ReadOnly()
	defer func() { env.Source, env.Target = source, target }()
	var p engine.StepPlan
	err := repeated("planning", func(ctx context.Context) (err error) {
		p, err = s.Plan(ctx)
		return err
	})(ctx)
	if err != nil {
		return p, fmt.Errorf("planning step %s: %w", s.ID(), err)
	}
	p.ID, p.Phase = s.ID(), s.Phase()
	return p, nil
}

// unplanned says in the plan why a step is not in it: what another finding names may stop the
// planning too, and one look shall name everything.
func unplanned(id engine.StepID, err error) engine.Finding {
	fix := engine.HintOf(err)
	if fix == "" {
		fix = "Mend the other findings and plan again."
	}
	return engine.Finding{
		Code: "PRE190", Severity: engine.SeverityError, Object: string(id), Fix: fix,
		Text: fmt.Sprintf("This step cannot be planned yet: %v.", err),
	}
}

// Recheck gives the plan of a run that goes on with the findings of now: those of the day on which it
// was accepted may be mended, and there may be new ones. After the flip there are none: a preflight
// asks what could stop the way there. So it is with the prediction.
func Recheck(ctx context.Context, env *Env, p *engine.Plan, owner engine.Side) (*engine.Plan, error) {
	now := *p
	now.Findings = nil
	if owner != engine.Source {
		now.Predictions = withoutFreeze(p.Predictions)
	}
	if owner == engine.Target {
		return &now, nil
	}
	look, fresh := *env, &engine.Plan{}
	if _, err := survey(ctx, &look, fresh); err != nil {
		return nil, err
	}
	now.Findings = fresh.Findings
	if look.Scope == nil || owner != engine.Source {
		return &now, nil
	}
	look.Plan = p
	var err error
	now.Predictions, err = predictRun(ctx, &look)
	return &now, err
}

// sensitiveValue stands in a plan for the value of a sensitive variable.
const sensitiveValue = hidden

func pinRunbook(rb *runbook.Runbook) engine.RunbookPin {
	pin := engine.RunbookPin{Path: rb.Path, Text: string(rb.Text), Digest: rb.Digest, Files: map[string]string{}, Variables: map[string]string{}}
	for name, data := range rb.Files {
		pin.Files[name] = fileDigest(data)
	}
	for _, v := range rb.Variables {
		pin.Variables[v.Name] = v.Value
		if v.Sensitive {
			pin.Variables[v.Name] = sensitiveValue
		}
	}
	return pin
}

// LoadPlan reads the runbook that a plan carries, with the plan's variables and the environment's
// sensitive ones. A file beside the runbook that is not the reviewed one, or is gone, is an error of ClassStale: the
// runbook is complete but for that file.
func LoadPlan(p *engine.Plan, o runbook.Options) (*runbook.Runbook, error) {
	rb, diags := ParsePlan(p, o)
	diags = append(diags, Check(rb)...)
	if o.Pinned = goneFiles(p.Runbook); diags.HasErrors() && len(o.Pinned) > 0 {
		rb, diags = ParsePlan(p, o)
		diags = append(diags, Check(rb)...)
		for name := range o.Pinned {
			delete(rb.Files, name)
			rb.Cutover.ClosedMessage = strings.ReplaceAll(rb.Cutover.ClosedMessage, string(o.Pinned[name]), "")
		}
	}
	if diags.HasErrors() {
		return rb, &engine.Error{
			Class: engine.ClassRunbook, Op: "reading the runbook of the plan", Err: diags,
			Hint: "Set the environment variables that its sensitive variables read; where those are the servers' alone and the run has begun, PGRUNBOOK_SOURCE_URL and PGRUNBOOK_TARGET_URL will do, without a runbook or plan in the command.",
		}
	}
	if changes := fileChanges(p.Runbook, pinRunbook(rb)); len(changes) > 0 {
		return rb, stale(changes)
	}
	return rb, nil
}

// Around the name of a reviewed file that is gone, in place of its text: what holds it must not run.
const goneBefore, goneAfter = "(the reviewed file ", " is gone)"

// goneFiles gives a text that tells so for each reviewed file that is not there any more.
func goneFiles(pin engine.RunbookPin) map[string][]byte {
	gone := map[string][]byte{}
	for name := range pin.Files {
		if _, err := os.Stat(filepath.Join(filepath.Dir(pin.Path), name)); errors.Is(err, fs.ErrNotExist) {
			gone[name] = []byte(goneBefore + name + goneAfter)
		}
	}
	return gone
}

// notGone refuses what is to run where it holds the text of a file that is gone.
func notGone(texts ...string) error {
	for _, text := range texts {
		if _, rest, found := strings.Cut(text, goneBefore); found {
			if name, _, found := strings.Cut(rest, goneAfter); found {
				return engine.Errorf(engine.ClassStale, "Put the reviewed file back, then run the same command again.", "%s, which the plan was made with, is gone", name)
			}
		}
	}
	return nil
}

// ParsePlan reads the runbook that a plan carries, with the plan's variables.
func ParsePlan(p *engine.Plan, o runbook.Options) (*runbook.Runbook, hcl.Diagnostics) {
	o.Vars, o.ToolVersion = map[string]string{}, p.ToolVersion
	for name, v := range p.Runbook.Variables {
		if v != sensitiveValue {
			o.Vars[name] = v
		}
	}
	return runbook.Parse(p.Runbook.Path, []byte(p.Runbook.Text), o)
}

func fileChanges(was, is engine.RunbookPin) []string {
	var out []string
	for _, name := range sortedKeys(was.Files) {
		switch got, ok := is.Files[name]; {
		case !ok:
			out = append(out, "file "+name+" is gone")
		case got != was.Files[name]:
			out = append(out, "file "+name+" changed")
		}
	}
	for _, name := range sortedKeys(is.Files) {
		if _, ok := was.Files[name]; !ok {
			out = append(out, "file "+name+" is new")
		}
	}
	return out
}

func stale(changes []string) *engine.Error {
	return &engine.Error{
		Class: engine.ClassStale, Op: "comparing with the plan", Err: fmt.Errorf("the plan is stale: %s", joinSome(changes)),
		Hint: "Plan again, and have the new plan reviewed.",
	}
}

// joinSome lists at most ten changes.
func joinSome(changes []string) string {
	const most = 10
	text := ""
	for i, c := range changes[:min(most, len(changes))] {
		if i > 0 {
			text += "; "
		}
		text += c
	}
	if more := len(changes) - most; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

// columnsOf lists "name type" of a table in the plan's scope.
func columnsOf(t scope.Table) map[string]string {
	out := map[string]string{}
	for _, c := range t.Columns {
		out[c.Name] = c.Type
	}
	return out
}

// tablesOf reads the tables of a plan by their name in Shapes.
func tablesOf(p *engine.Plan) map[string]scope.Table {
	var s scope.Scope
	if json.Unmarshal(p.Scope, &s) != nil {
		return nil // Drift then names the tables without their columns
	}
	out := map[string]scope.Table{}
	for _, t := range s.Tables {
		out[t.Display()] = t
	}
	return out
}

func sameKey(a, b *scope.Key) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Shape == b.Shape && slices.Equal(a.Columns, b.Columns)
}

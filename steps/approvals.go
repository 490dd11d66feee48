package steps

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// approvalsOf lists the names that a run of this plan asks for, on its way back and at its end too.
func approvalsOf(p *engine.Plan) []string {
	out := loadApprovals(p)
	unset := func(string) (string, bool) { return "", false }
	// The text was valid when the plan was made; without its secrets the hooks are there all the same.
	rb, _ := runbook.Parse(p.Runbook.Path, []byte(p.Runbook.Text), runbook.Options{Validate: true, Getenv: unset})
	for _, phase := range []engine.Phase{engine.PhaseRollback, engine.PhaseFinish} {
		hooks := rb.Hooks[string(phase)]
		for _, b := range slices.Concat(hooks.Before, hooks.After) {
			if b.Kind == "approve" {
				out = append(out, b.Name)
			}
		}
	}
	for _, s := range p.Steps {
		if name, ok := strings.CutPrefix(lastTwo(s.ID), "approve."); ok {
			out = append(out, name)
		}
	}
	return out
}

// loadApprovals gives the name that says that somebody else's load is done, where the plan has
// tables of method external.
func loadApprovals(p *engine.Plan) []string {
	for _, t := range tablesOf(p) {
		if t.Data == scope.Live && t.Method == scope.External {
			return []string{externalApproval}
		}
	}
	return nil
}

// CheckApproval refuses a name that nothing of the plan asks for, before anything is made.
func CheckApproval(p *engine.Plan, name string) error { return checkApproval(name, approvalsOf(p)) }

// checkApproval refuses a name that no step asks for.
func checkApproval(name string, known []string) error {
	if slices.Contains(known, name) || placeApprovals.MatchString(name) {
		return nil
	}
	hint := "The runbook has no approve step."
	if len(known) > 0 {
		hint = "The runbook asks for: " + strings.Join(known, ", ") + "."
	}
	if near := runbook.SuggestKind(name, known); near != "" {
		hint = fmt.Sprintf("Did you mean %q? %s", near, hint)
	}
	return engine.Errorf(engine.ClassRunbook, hint, "no step asks for the approval %q", name)
}

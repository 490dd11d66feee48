package steps

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// approvalsOf lists the names that a plan's approve steps ask for.
func approvalsOf(p *engine.Plan) []string {
	var out []string
	for _, s := range p.Steps {
		if name, ok := strings.CutPrefix(lastTwo(s.ID), "approve."); ok {
			out = append(out, name)
		}
	}
	return out
}

// checkApproval refuses a name that no step asks for.
func checkApproval(name string, known []string) error {
	if slices.Contains(known, name) {
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

package steps

import (
	"context"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// approveStep waits for a person's yes: on the terminal, by `apply --approve`, or recorded ahead
// by `pgrunbook approve`.
type approveStep struct {
	person
	message string
	expires time.Duration
}

func decodeApprove(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics) {
	body := runbook.DecodeBody(b)
	s := &approveStep{message: body.String("message"), expires: body.Duration("expires", 0)}
	body.Require("message")
	s.person = newPerson(env, place, b, s.message, s.expires)
	return s, body.Done()
}

// Approval says what the person is asked.
func (s *approveStep) Approval() engine.ApprovalRequest {
	return engine.ApprovalRequest{Name: s.name, Message: s.message, Expires: s.expires}
}

// Plan names the approval and who can give it.
func (s *approveStep) Plan(context.Context) (engine.StepPlan, error) {
	p := s.plan("approval "+s.name+": "+s.message, "the run goes on once a person said yes",
		engine.Action{On: engine.Runner, SQL: "pgrunbook approve " + s.name + " --by WHO"})
	if s.expires > 0 {
		p.Why += ", at most " + s.expires.String() + " before"
	}
	p.Hazards = []engine.Hazard{{Kind: engine.HazardExternal, Object: s.name, Text: "waits for a person"}}
	return p, nil
}

// Apply has nothing to do: the walk asked before it came here.
func (s *approveStep) Apply(context.Context, engine.StepPlan, engine.Checkpoint) error { return nil }

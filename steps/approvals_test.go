package steps

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// TestApprovalsOf: people are asked by steps of the plan, by steps that only the way back or the end
// walks, and by a load that is not ours.
func TestApprovalsOf(t *testing.T) {
	loaded, err := json.Marshal(scope.Scope{Tables: []scope.Table{
		{Name: scope.Name{Schema: "s", Name: "a"}, Data: scope.AtFreeze, Method: scope.External},
		{Name: scope.Name{Schema: "s", Name: "b"}, Data: scope.Live, Method: scope.External},
	}})
	if err != nil {
		t.Fatal(err)
	}
	p := &engine.Plan{
		Scope: loaded,
		Steps: []engine.StepPlan{{ID: "copy"}, {ID: "cutover.before.approve.go"}, {ID: "cutover.before.exec.approve"}},
		Runbook: engine.RunbookPin{Path: "t.runbook.hcl", Text: `runbook "t" {}
variable "pw" {
  type      = string
  sensitive = true
  default   = env("NOT_SET")
}
source { url = var.pw }
target { service = "new" }
rollback {
  before {
    step "notify" "all" { message = "back" }
    step "approve" "back" { message = "Really?" }
  }
}
finish {
  after {
    step "approve" "gone" { message = "Is the old one off?" }
  }
}
`},
	}
	got := approvalsOf(p)
	if diff := cmp.Diff([]string{"external-copy", "back", "gone", "go"}, got); diff != "" {
		t.Error(diff)
	}
	if err := checkApproval("bck", got); engine.ClassOf(err) != engine.ClassRunbook || engine.HintOf(err) == "" {
		t.Errorf("a slip: %v", err)
	}
	p.Scope = nil
	if diff := cmp.Diff([]string{"back", "gone", "go"}, approvalsOf(p)); diff != "" {
		t.Error(diff)
	}
}

// TestNextWhileAPersonIsAsked: who looks from another shell is told where the answer belongs.
func TestNextWhileAPersonIsAsked(t *testing.T) {
	st := Status{State: journal.Active, Writes: engine.Source, Step: "cutover.before.approve.go"}
	if got := st.next(); got != "pgrunbook apply" {
		t.Errorf("once it is approved: %q", got)
	}
	a := engine.Approval{At: time.Date(2026, 11, 20, 0, 59, 0, 0, time.UTC)} // as the walk says it, see TestApprovals in engine
	if failure := "the approval of \"go\" by anna at 2026-11-20T00:59:00Z has expired: move?"; !expired(failure, a) || expired(failure, engine.Approval{At: a.At.Add(time.Minute)}) {
		t.Error("an approval that has expired counts, or the one that took its place does not")
	}
	st.asks = externalApproval
	if got := st.next(); got != "the load, as apply said; then pgrunbook approve external-copy --by WHO" {
		t.Errorf("before somebody else's load: %q", got)
	}
	st.asks = "go"
	if got := st.next(); got != "pgrunbook approve go --by WHO" {
		t.Errorf("without a runner: %q", got)
	}
	st.Holder = &journal.Holder{PID: 12, User: "dba", Host: "ops1", Alive: true}
	if got := st.next(); got != "yes, where the runner asks (process 12 of dba on ops1), or pgrunbook approve go --by WHO" {
		t.Errorf("with a runner that asks: %q", got)
	}
}

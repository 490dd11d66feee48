package steps

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
)

func TestApproveAsks(t *testing.T) {
	s := oneStep(t, &Env{}, Before, t.TempDir(), "step \"approve\" \"go\" {\n message = \"Batch jobs stopped?\"\n expires = \"4h\"\n }", nil)
	want := engine.ApprovalRequest{Name: "go", Message: "Batch jobs stopped?", Expires: 4 * time.Hour}
	if d := cmp.Diff(want, s.(engine.Approver).Approval()); d != "" {
		t.Error(d)
	}
	p, err := s.Plan(t.Context())
	if err != nil || !strings.Contains(p.Actions[0].SQL, "pgrunbook approve go") {
		t.Errorf("plan %+v, %v", p, err)
	}
}

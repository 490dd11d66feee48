package runbook_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/runbook"
)

func TestDifferences(t *testing.T) {
	const was = `runbook "erp" {}
tables { include = ["a.*", "b.*"] }
cutover {
  max_write_block = "4s"
  before {
    step "approve" "one" { message = "x" }
    step "approve" "two" {}
  }
}
`
	for name, c := range map[string]struct {
		path, is string
		want     []string
	}{
		"nothing": {"a.hcl", was, nil},
		"layout and comments": {"a.hcl", `# new
cutover {
  before {
    step "approve" "one" {
      message = "x"
    }
    step "approve" "two" {}
  }
  max_write_block = "4s" # of ours
}
tables {
  include = [
    "a.*", # both
    "b.*",
  ]
}
runbook "erp" {}`, nil},
		"a value, a block, an order": {"a.hcl", `runbook "erp" {}
tables { include = ["a.*"] }
cutover {
  max_write_block = "2s"
  before {
    step "approve" "two" {}
    step "approve" "one" { message = "x" }
  }
}
copy { workers = 2 }
`, []string{"copy is new", "cutover.before.the order of steps changed", "cutover.max_write_block changed", "tables.include changed"}},
		"less":   {"a.hcl", `runbook "erp" {}`, []string{"cutover is gone", "tables is gone"}},
		"broken": {"a.hcl", `runbook "erp" {`, []string{"it cannot be read any more"}},
	} {
		if diff := cmp.Diff(c.want, runbook.Differences(c.path, []byte(was), []byte(c.is))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	got := runbook.Differences("a.json", []byte(`{"cutover": {"max_write_block": "4s"}, "tables": [{"include": ["a.*"]}]}`), []byte(`{"tables": [{"include": ["b.*"]}],"cutover": {"max_write_block": "2s"}}`))
	if diff := cmp.Diff([]string{"cutover.max_write_block changed", "tables.1.include.1 changed"}, got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

// Another project's file of the same name is told by the name of its runbook.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		path, text string
		want       bool
	}{
		{"a.hcl", `runbook "erp" {}`, true},
		{"a.hcl", `runbook "crm" {}`, false},
		{"a.hcl", `runbook "erp" {`, true},
		{"a.hcl", `tables {}`, true},
		{"a.json", `{"runbook": {"erp": {}}}`, true},
		{"a.json", `{"runbook": {"crm": {}}}`, false},
		{"a.json", `{`, true},
	} {
		if got := runbook.Names(c.path, []byte(c.text), "erp"); got != c.want {
			t.Errorf("Names(%s, %s) = %v", c.path, c.text, got)
		}
	}
}

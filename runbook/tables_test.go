package runbook

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/hcl/v2"
)

func TestPatternMatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, schema, table string
		match, exact           bool
	}{
		{"erp.orders", "erp", "orders", true, true},
		{"ERP.Orders", "erp", "orders", true, true},
		{"erp.orders", "erp", "Orders", false, true},
		{`erp."Orders"`, "erp", "Orders", true, true},
		{`"Erp".*`, "Erp", "x", true, false},
		{`"Erp".*`, "erp", "x", false, false},
		{`erp."a.b"`, "erp", "a.b", true, true},
		{`erp."a*"`, "erp", "a*", true, true},
		{`erp."a*"`, "erp", "ab", false, true},
		{`erp."say ""hi"""`, "erp", `say "hi"`, true, true},
		{`erp.fo"O"`, "erp", "foO", true, true},
		{"erp.tmp_*", "erp", "tmp_", true, false},
		{"erp.tmp_?", "erp", "tmp_1", true, false},
		{"erp.tmp_?", "erp", "tmp_12", false, false},
		{"erp.log_[0-9]*", "erp", "log_7x", true, false},
		{"erp.log_[0-9]*", "erp", "log_x", false, false},
		{"erp.(a|b)", "erp", "b", true, false},
		{"erp.a$b", "erp", "a$b", true, true},
		{"erp.a", "erp", "ab", false, true},
		{"erp.été", "erp", "été", true, true},
		{"*.*", "public", "x", true, false},
		{"erp.*", "erp", "two\nlines", true, false},
		{"erp.two?lines", "erp", "two\nlines", true, false},
		{"erp.two", "erp", "two\n", false, true},
		{"*.*", "pg_catalog", "pg_class", false, false},
		{"*.*", "information_schema", "tables", false, false},
		{"*.*", "pg_toast_temp_3", "x", false, false},
		{"*.*", "pgrunbook", "run", false, false},
		{"orders", "public", "orders", false, false},
		{"a.b.c", "a", "b", false, false},
	} {
		p := Pattern{Text: tc.pattern}
		if got := p.Match(tc.schema, tc.table); got != tc.match {
			t.Errorf("%s matches %s.%s: %v", tc.pattern, tc.schema, tc.table, got)
		}
		if got := p.Exact(); got != tc.exact {
			t.Errorf("%s is exact: %v", tc.pattern, got)
		}
	}
}

func patternsOf(texts ...string) []Pattern {
	var out []Pattern
	for _, text := range texts {
		out = append(out, Pattern{Text: text})
	}
	return out
}

func TestDecide(t *testing.T) {
	scope := Tables{
		Include:     patternsOf("erp.*", "billing.tmp_keep", "audit.a", "audit.b"),
		Exclude:     patternsOf("*.tmp_*", "erp.secret", "audit.b"),
		ExcludeData: patternsOf("erp.job_*", "erp.tmp_locks", "audit.a", "other.x", "erp.secret"),
	}
	for table, want := range map[string]Decision{
		"erp.orders":       Carried,
		"erp.tmp_x":        Out,         // pattern exclude over pattern include
		"billing.tmp_keep": Carried,     // exact include over pattern exclude
		"billing.other":    Out,         // not included
		"erp.secret":       Out,         // exact exclude over exact exclude_data
		"erp.job_lock":     ExcludeData, // pattern exclude_data over pattern include
		"erp.tmp_locks":    ExcludeData, // exact exclude_data over pattern exclude
		"audit.a":          ExcludeData, // exact exclude_data over exact include
		"audit.b":          Out,         // exact exclude over exact include
		"other.x":          Out,         // exclude_data widens nothing
		"pgrunbook.run":    Out,
	} {
		schema, name, _ := strings.Cut(table, ".")
		if got := scope.Decide(schema, name); got != want {
			t.Errorf("%s is %s, want %s", table, got, want)
		}
	}
	var everything Tables
	if everything.Decide("any", "t") != Carried || everything.Decide("pg_catalog", "pg_class") != Out {
		t.Error("an empty scope is every schema that is not PostgreSQL's own")
	}
	if text, err := ExcludeData.MarshalText(); err != nil || string(text) != "exclude_data" || Out.String() != "out" {
		t.Errorf("words of decisions: %s %v", text, err)
	}
}

func TestRuleFor(t *testing.T) {
	rb := mustParse(t, prelude+`
table "erp.*" {
  data   = "live"
  method = "pg_dump"
}
table "*.ref_*" { data = "at_freeze" }
table "erp.ref_exact" {
  data = "none"
  key  = ["a"]
}
table "erp.log_*" { identity = "append_only" }
table "erp.log_keyed" { key = ["id"] }
table "*.same_*" { method = "pg_dump" }
table "*.both_*" { key = ["id"] }
table "erp.both_*" { identity = "full_row" }
`, Options{})
	ignore := cmpopts.IgnoreTypes(hcl.Range{}, Pattern{})
	for name, want := range map[string]TableRule{
		"orders":    {Data: "live", Method: "pg_dump"},
		"ref_exact": {Data: "none", Key: []string{"a"}, Method: "pg_dump"},
		"log_x":     {Data: "live", Method: "pg_dump", Identity: "append_only"},
		"log_keyed": {Data: "live", Method: "pg_dump", Key: []string{"id"}},
		"same_x":    {Data: "live", Method: "pg_dump"},
	} {
		got, diags := rb.RuleFor("erp", name)
		if len(diags) > 0 {
			t.Errorf("%s: %v", name, diags)
		}
		if diff := cmp.Diff(want, got, ignore); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got, diags := rb.RuleFor("crm", "x"); got.Pattern.Text != "" || len(diags) > 0 {
		t.Errorf("no block: %+v %v", got, diags)
	}
	for name, want := range map[string][]string{
		"ref_country": {"erp.*", "*.ref_*", "t.runbook.hcl:5", "t.runbook.hcl:9", "data"},
		"both_x":      {"*.both_*", "erp.both_*", "identity"},
	} {
		_, diags := rb.RuleFor("erp", name)
		out := printed(t, rb, diags)
		for _, w := range want {
			if len(diags) != 1 || !strings.Contains(out, w) {
				t.Errorf("%s: no %q in\n%s", name, w, out)
			}
		}
	}
}

package runbook

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/hcl/v2"
)

const prelude = "runbook \"t\" {}\nsource { service = \"old\" }\ntarget { service = \"new\" }\n"

func envOf(pairs map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := pairs[name]
		return v, ok
	}
}

// mustParse parses text that must be right.
func mustParse(t *testing.T, text string, opts Options) *Runbook {
	t.Helper()
	if opts.Getenv == nil {
		opts.Getenv = noEnv
	}
	rb, diags := Parse(filepath.Join(t.TempDir(), "t.runbook.hcl"), []byte(text), opts)
	if len(diags) > 0 {
		t.Fatalf("refused:\n%s", printed(t, rb, diags))
	}
	return rb
}

func TestValid(t *testing.T) {
	t.Chdir("testdata/valid")
	for _, name := range runbooksHere(t) {
		for _, validate := range []bool{true, false} {
			opts := Options{Getenv: noEnv, Validate: validate, ToolVersion: "1.2.0"}
			if !validate {
				opts.Getenv = envOf(map[string]string{"SOURCE_URL": "postgresql://app:hunter2@old/erp", "HOOKS_TOKEN": "hunter2-token", "LB_TOKEN": "hunter2-token"})
			}
			rb, diags := Load(name, opts)
			if len(diags) > 0 {
				t.Errorf("%s (validate %v) is refused:\n%s", name, validate, printed(t, rb, diags))
			}
			if want := !validate || rb.Name != "erp-to-rds"; rb.Name != "small" && rb.Name != "values" && rb.Source.URLKnown != want {
				t.Errorf("%s (validate %v): URLKnown is %v", name, validate, rb.Source.URLKnown)
			}
		}
	}
}

// ignoreText compares what two runbooks mean, not where it stands.
var ignoreText = cmp.Options{
	cmpopts.IgnoreUnexported(Runbook{}, StepBlock{}),
	cmpopts.IgnoreFields(Runbook{}, "Path", "Dir", "Text", "Files", "Digest"),
	cmpopts.IgnoreFields(StepBlock{}, "Body", "Eval"),
	cmpopts.IgnoreTypes(hcl.Range{}),
}

func TestDesignValues(t *testing.T) {
	t.Chdir("testdata/valid")
	got, _ := Load("design.runbook.hcl", Options{Getenv: envOf(map[string]string{"SOURCE_URL": "postgresql://app@old/erp"})})
	want := emptyRunbook("", nil)
	want.Name, want.RequiredVersion = "erp-to-rds", ">= 1.0"
	want.Variables = []Variable{{Name: "source_url", Sensitive: true, Known: true}}
	want.Source = Server{URL: "postgresql://app@old/erp", URLKnown: true, ApplyRole: "migrator"}
	want.Target = Server{
		URL: "postgresql://migrator@erp.example.net/erp?sslmode=verify-full", URLKnown: true,
		PasswordCommand: []string{"./rds-token.sh"}, ReplicaRoleFunction: "public.rds_session_replication_role",
	}
	want.Schema.Owners, want.Schema.OnDDL = map[string]string{"postgres": "erp_owner"}, "carry"
	want.Tables = Tables{
		Include:     []Pattern{{Text: "erp.*"}, {Text: "billing.*"}, {Text: "audit.*"}},
		Exclude:     []Pattern{{Text: "erp.tmp_*"}},
		ExcludeData: []Pattern{{Text: "erp.job_lock"}},
	}
	want.Rules = []TableRule{
		{Pattern: Pattern{Text: "erp.ref_*"}, Data: "at_freeze"},
		{Pattern: Pattern{Text: "billing.invoice_item"}, Key: []string{"invoice", "no"}},
		{Pattern: Pattern{Text: "audit.page_views"}, Identity: "append_only"},
	}
	want.Copy.Workers = 12
	want.Limits = []Limit{{Kind: "delta_size", Max: "200GiB", Value: 200 << 30, Then: "pause"}}
	want.Cutover.Window = "02:00-05:00 Europe/Berlin"
	want.Cutover.Switch = []StepBlock{{Kind: "exec", Name: "dns", Dir: "."}}
	want.Cutover.Poolers = []Pooler{{
		Kind: "pgbouncer", Name: "main", Admin: "host=/run/pgbouncer port=6432 dbname=pgbouncer", Database: "erp",
		ConfigFile: "/etc/pgbouncer/databases.ini", Connect: "host=erp.example.net port=5432", Timeout: 5 * time.Second,
	}}
	want.Rollback.KeepFor = 72 * time.Hour
	want.Hooks = map[string]Hooks{
		"cutover": {Before: []StepBlock{{Kind: "approve", Name: "go", Dir: "."}}, After: []StepBlock{{Kind: "http", Name: "health", Dir: "."}}},
		"finish":  {After: []StepBlock{{Kind: "sql", Name: "rename", Dir: "."}}},
	}
	if diff := cmp.Diff(want, got, ignoreText); diff != "" {
		t.Errorf("design example (-want +got):\n%s", diff)
	}
	if got.Tables.Include[1].Range.String() != "design.runbook.hcl:27,28-39" {
		t.Errorf("a pattern's place is %s", got.Tables.Include[1].Range)
	}
}

func TestJSONTwin(t *testing.T) {
	t.Chdir("testdata/valid")
	opts := Options{Getenv: envOf(map[string]string{"SOURCE_URL": "postgresql://app@old/erp"})}
	native, _ := Load("design.runbook.hcl", opts)
	twin, diags := Load("design.runbook.json", opts)
	if len(diags) > 0 {
		t.Fatal(printed(t, twin, diags))
	}
	if diff := cmp.Diff(native, twin, ignoreText); diff != "" {
		t.Errorf("JSON twin (-native +json):\n%s", diff)
	}
	for _, rb := range []*Runbook{native, twin} {
		b := DecodeBody(rb.Cutover.Switch[0])
		got := append(b.Strings("command"), b.Strings("undo")...)
		if d := b.Duration("timeout", 0); d != time.Second {
			t.Errorf("%s: timeout is %s", rb.Path, d)
		}
		if diff := cmp.Diff([]string{"./dns.sh", "rds", "./dns.sh", "onprem"}, got); diff != "" || len(b.Done()) > 0 {
			t.Errorf("%s: step body %s %v", rb.Path, diff, b.Done())
		}
	}
}

func TestValues(t *testing.T) {
	t.Chdir("testdata/valid")
	rb, _ := Load("values.runbook.hcl", Options{Getenv: envOf(map[string]string{"HOOKS_TOKEN": "hunter2-token"})})
	type values struct {
		Target, ClosedMessage, Window string
		Include                       []string
		Workers                       int
		Chunk, BigChunk               int64
		Limits                        []float64
		Then                          []string
		RetryEvery                    time.Duration
	}
	got := values{
		Target: rb.Target.URL, ClosedMessage: rb.Cutover.ClosedMessage, Window: rb.Cutover.Window,
		Workers: rb.Copy.Workers, Chunk: rb.Copy.Chunk, BigChunk: rb.Rules[0].Chunk, RetryEvery: rb.Cutover.RetryEvery,
	}
	for _, p := range rb.Tables.Include {
		got.Include = append(got.Include, p.Text)
	}
	for _, l := range rb.Limits {
		got.Limits, got.Then = append(got.Limits, l.Value), append(got.Then, l.Then)
	}
	want := values{
		Target:        "host=erp.eu-1.example.net dbname=erp user=migrator passfile=/etc/pgrunbook/pgpass",
		ClosedMessage: "moved to erp.eu-1.example.net", Window: "22:30-04:00",
		Include: []string{`"erp".*`, `"Billing".*`, "audit.log_[0-9]*"},
		Workers: 8, Chunk: 64 << 20, BigChunk: 1_500_000_000,
		Limits: []float64{90, 200, 50 << 20}, Then: []string{"pause", "stop", "slow"},
		RetryEvery: 90 * time.Second,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	var files []string
	for name := range rb.Files {
		files = append(files, name)
	}
	slices.Sort(files)
	if diff := cmp.Diff([]string{"notify.sh", "sql/after.sql", "values.runbook.hcl"}, files); diff != "" {
		t.Errorf("pinned files (-want +got):\n%s", diff)
	}
}

// TestPinned reads a file from a plan although the disk has another, and a missing one only
// where nothing runs.
func TestPinned(t *testing.T) {
	text := prelude + "locals {\n  q = file(\"q.sql\")\n}\ncutover { closed_message = local.q }\n"
	dir := t.TempDir()
	path := filepath.Join(dir, "t.hcl")
	if err := os.WriteFile(filepath.Join(dir, "q.sql"), []byte("disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	fromDisk, diags := Parse(path, []byte(text), Options{Getenv: noEnv})
	if diags.HasErrors() || fromDisk.Cutover.ClosedMessage != "disk" || string(fromDisk.Files["q.sql"]) != "disk" {
		t.Errorf("from disk: %q %v", fromDisk.Cutover.ClosedMessage, diags)
	}
	fromPlan, diags := Parse(path, []byte(text), Options{Getenv: noEnv, Pinned: map[string][]byte{"q.sql": []byte("plan")}})
	if diags.HasErrors() || fromPlan.Cutover.ClosedMessage != "plan" || fromPlan.Digest == fromDisk.Digest {
		t.Errorf("from the plan: %q %v", fromPlan.Cutover.ClosedMessage, diags)
	}
	missing := strings.ReplaceAll(text, "q.sql", "none.sql")
	if _, diags := Parse(path, []byte(missing), Options{Getenv: noEnv, Validate: true}); diags.HasErrors() {
		t.Errorf("validate asks for a file: %v", diags)
	}
	if _, diags := Parse(path, []byte(missing), Options{Getenv: noEnv}); !diags.HasErrors() {
		t.Error("a run accepts a missing file")
	}
}

func TestLoadMissingFile(t *testing.T) {
	rb, diags := Load(filepath.Join(t.TempDir(), "none.hcl"), Options{})
	if rb == nil || !diags.HasErrors() || !strings.Contains(printed(t, rb, diags), "none.hcl: no such file") {
		t.Errorf("%v", diags)
	}
	if _, diags := Load(t.TempDir(), Options{}); !diags.HasErrors() {
		t.Error("a directory is a runbook")
	}
}

// TestSeveralMistakes counts what one run finds: people fix a file once.
func TestSeveralMistakes(t *testing.T) {
	t.Chdir("testdata/invalid")
	rb, diags := Load("several_mistakes.hcl", Options{Getenv: noEnv, ToolVersion: "1.2.0"})
	var got []string
	for _, d := range diags {
		got = append(got, d.Summary)
	}
	want := []string{
		"Missing target block", "Version does not fit", "Password in the file", "Bad table pattern", "Number too small",
		"Bad size", "Unknown argument", "Unknown word", "Unknown limit", "Bad window", "Step without undo", "Step without timeout",
		"Unknown block",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s\n%s", diff, printed(t, rb, diags))
	}
}

func TestWidthAndColor(t *testing.T) {
	rb, diags := Parse("t.hcl", []byte(prelude+"copy { workers = 0 }\n"), Options{Getenv: noEnv})
	var b bytes.Buffer
	if err := rb.WriteDiagnostics(&b, diags, 30, true); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "\x1b[31mError") || !strings.Contains(b.String(), "workers is 0 and must be at\nleast 1.") {
		t.Errorf("%q", b.String())
	}
}

// TestTooManyMistakes bounds what a file that is no runbook prints.
func TestTooManyMistakes(t *testing.T) {
	rb, diags := Parse("t.hcl", bytes.Repeat([]byte("\x06"), 5000), Options{Getenv: noEnv})
	if last := diags[len(diags)-1]; len(diags) != maxDiagnostics+1 || last.Summary != "Too many mistakes" {
		t.Errorf("%d diagnostics, the last: %v", len(diags), last)
	}
	if out := printed(t, rb, diags); strings.Count(out, "Error: ") != maxDiagnostics+1 || !strings.HasSuffix(out, "at all.\n\n") {
		t.Errorf("%d bytes are printed", len(out))
	}
}

// What closed_error is for does not reach sessions that begin read-only: the server refuses them first.
func TestClosedErrorNeedsWritableSessions(t *testing.T) {
	for blocks, want := range map[string]bool{
		"": true, `cutover { closed_error = "25006" }`: true, `cutover { closed_error = "57014" }`: false,
		"cutover {\n  closed_error = \"25006\"\n  read_only = false\n}": false,
	} {
		if rb := mustParse(t, prelude+blocks, Options{}); rb.Cutover.ReadOnly != want {
			t.Errorf("%q: read_only is %v, want %v", blocks, rb.Cutover.ReadOnly, want)
		}
	}
}

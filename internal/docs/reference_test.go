package docs

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps"
)

const reference = root + "/docs/reference.md"

// wrong is an argument that no block has: the complaint about it lists those that the block takes.
const wrong = "zzzqqqzzzqqqzzz"

// blocks are runbooks with the wrong argument in one block each, by the section of the page.
var blocks = map[string]string{
	"runbook":        `runbook "x" { ` + wrong + ` = 1 }`,
	"variable":       `variable "v" { ` + wrong + ` = 1 }`,
	"validation":     "variable \"v\" {\n default = 1\n validation {\n condition = true\n error_message = \"No.\"\n " + wrong + " = 1\n }\n}",
	"source, target": `target { ` + wrong + ` = 1 }`,
	"tables":         `tables { ` + wrong + ` = 1 }`,
	"table":          "table \"a.b\" {\n data = \"none\"\n " + wrong + " = 1\n}",
	"limit":          "limit \"sessions\" {\n max = \"1\"\n " + wrong + " = 1\n}",
	"pooler":         "cutover {\n pooler \"pgbouncer\" \"a\" {\n admin = \"port=6432\"\n database = \"a\"\n " + wrong + " = 1\n }\n}",
}

func init() {
	for _, phase := range []string{"schema", "capture", "copy", "catch_up", "verify", "cutover", "rollback", "finish"} {
		blocks[phase] = phase + ` { ` + wrong + ` = 1 }`
	}
	for _, kind := range steps.Kinds() {
		blocks["step "+kind] = fmt.Sprintf("schema {\n before {\n step %q \"s\" {\n %s = 1\n }\n }\n}", kind, wrong)
	}
}

// accepted are the arguments that the program says a block takes.
func accepted(t *testing.T, section, text string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.runbook.hcl")
	if !strings.HasPrefix(section, "runbook") {
		text += "\nrunbook \"x\" {}"
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	rb, diags := runbook.Load(path, runbook.Options{Validate: true, Getenv: func(string) (string, bool) { return "", false }})
	diags = append(diags, steps.Check(rb)...)
	i := slices.IndexFunc(diags, func(d *hcl.Diagnostic) bool { return strings.Contains(d.Detail, wrong) })
	if i < 0 {
		t.Fatalf("nobody complains about the wrong argument in %s: %v", section, diags)
	}
	_, list, found := strings.Cut(diags[i].Detail, "arguments ")
	if !found {
		return nil
	}
	list, _, _ = strings.Cut(list, " and the blocks ")
	names := strings.Split(strings.TrimSuffix(list, "."), ", ")
	slices.Sort(names)
	return slices.Compact(names)
}

// section gives the text under a heading, up to the next one.
func section(page, heading string) (string, bool) {
	_, rest, found := strings.Cut(page, "\n"+heading+"\n")
	text, _, _ := strings.Cut(rest, "\n#")
	return text, found
}

var firstColumn = regexp.MustCompile("(?m)^\\| `([^`]+)`")

// names are what a section's table has in its first column.
func names(text string) []string {
	var list []string
	for _, m := range firstColumn.FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return list
}

// TestReferenceArguments compares each block's table with what the program takes.
func TestReferenceArguments(t *testing.T) {
	page := read(t, reference)
	for name, text := range blocks {
		part, found := section(page, "### "+name)
		if !found {
			t.Errorf("docs/reference.md has no section %q", name)
			continue
		}
		if diff := cmp.Diff(accepted(t, name, text), names(part)); diff != "" {
			t.Errorf("section %q, - is what the program takes, + what the page has:\n%s", name, diff)
		}
	}
}

// TestReferenceDefaults: a runbook that leaves everything out means what the page says.
func TestReferenceDefaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.runbook.hcl")
	if err := os.WriteFile(path, []byte("runbook \"x\" {}\nsource { service = \"a\" }\ntarget { service = \"b\" }"), 0o600); err != nil {
		t.Fatal(err)
	}
	rb, diags := runbook.Load(path, runbook.Options{Getenv: func(string) (string, bool) { return "", false }})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	page := read(t, reference)
	c := rb.Cutover
	for heading, rows := range map[string]map[string]string{
		"schema": {
			"enabled": fmt.Sprint(rb.Schema.Enabled), "mode": quoted(rb.Schema.Mode), "roles": quoted(rb.Schema.Roles),
			"on_ddl": quoted(rb.Schema.OnDDL), "settings": fmt.Sprint(rb.Schema.Settings),
		},
		"copy":     {"method": quoted(rb.Copy.Method), "workers": fmt.Sprint(rb.Copy.Workers), "chunk": quoted(fmt.Sprint(rb.Copy.Chunk>>20) + "MiB")},
		"verify":   {"enabled": fmt.Sprint(rb.Verify.Enabled), "mode": quoted(rb.Verify.Mode), "workers": fmt.Sprint(rb.Verify.Workers)},
		"rollback": {"enabled": fmt.Sprint(rb.Rollback.Enabled), "keep_for": quoted(rb.Rollback.KeepFor.String())},
		"finish":   {"source": quoted(rb.Finish.Source)},
		"cutover": {
			"enabled": fmt.Sprint(c.Enabled), "max_write_block": quoted(c.MaxWriteBlock.String()), "attempts": fmt.Sprint(c.Attempts),
			"retry_every": quoted(c.RetryEvery.String()), "sequence_margin": fmt.Sprint(c.SequenceMargin), "closed_error": quoted(c.ClosedError),
			"closed_message": quoted(c.ClosedMessage), "large_objects": quoted(c.LargeObjects), "read_only": fmt.Sprint(c.ReadOnly),
			"end_sessions": fmt.Sprint(c.EndSessions),
		},
	} {
		part, _ := section(page, "### "+heading)
		for name, value := range rows {
			if want := fmt.Sprintf("\n| `%s` | `%s` |", name, value); !strings.Contains(part, want) {
				t.Errorf("section %s lacks the line %s", heading, strings.TrimSpace(want))
			}
		}
	}
}

func quoted(s string) string { return `"` + s + `"` }

var (
	commandLine = regexp.MustCompile(`(?m)^  ([a-z]+) {2,}\S`)
	flagLine    = regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`)
	exitLine    = regexp.MustCompile(`(?m)^ +(\d+)  (.+)$`)
	shared      = []string{"help", "json", "target", "var", "var-file"}
)

// help is what the program says of itself.
func help(t *testing.T, args ...string) string {
	t.Helper()
	program, err := plainProgram()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, append(args, "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s --help: %v: %s", args, err, out)
	}
	return string(out)
}

// TestReferenceCommands compares commands, flags and exit codes with --help.
func TestReferenceCommands(t *testing.T) {
	page, readmePage := read(t, reference), read(t, readme)
	part, _ := section(page, "## Commands")
	rows := map[string][]string{}
	for line := range strings.Lines(part) {
		if m := firstColumn.FindStringSubmatch(line); m != nil {
			for _, f := range regexp.MustCompile("`--([a-z-]+)`").FindAllStringSubmatch(line, -1) {
				rows[m[1]] = append(rows[m[1]], f[1])
			}
			slices.Sort(rows[m[1]])
		}
	}
	want := map[string][]string{}
	main := help(t)
	for _, m := range commandLine.FindAllStringSubmatch(main, -1) {
		if m[1] == "help" {
			continue
		}
		if !strings.Contains(readmePage, "`"+m[1]) {
			t.Errorf("README.md does not name the command %s", m[1])
		}
		want[m[1]] = nil
		own, _, _ := strings.Cut(help(t, m[1]), "Global Flags:")
		for _, f := range flagLine.FindAllStringSubmatch(own, -1) {
			if !slices.Contains(shared, f[1]) {
				want[m[1]] = append(want[m[1]], f[1])
			}
		}
		slices.Sort(want[m[1]])
	}
	got := map[string][]string{}
	for name := range want {
		if _, there := rows[name]; there || strings.Contains(part, "| `"+name+"` |") {
			got[name] = rows[name]
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commands and flags, - is what the program has, + what the page has:\n%s", diff)
	}
	codes, _ := section(page, "## Exit codes")
	codes = strings.ReplaceAll(codes, "`", "")
	for _, m := range exitLine.FindAllStringSubmatch(main, -1) {
		if !strings.Contains(codes, "| "+m[1]+" | "+strings.TrimSpace(m[2])+" |") {
			t.Errorf("docs/reference.md lacks exit code %s: %s", m[1], m[2])
		}
		if !strings.Contains(readmePage, "\n| "+m[1]) && !strings.Contains(readmePage, ", "+m[1]+" |") {
			t.Errorf("README.md lacks exit code %s", m[1])
		}
	}
}

// TestReferenceEvents: every type of the published schema is named.
func TestReferenceEvents(t *testing.T) {
	var schema struct {
		Properties struct {
			Type struct {
				Enum []string `json:"enum"`
			} `json:"type"`
		} `json:"properties"`
	}
	if err := json.Unmarshal([]byte(read(t, root+"/docs/events.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	if len(schema.Properties.Type.Enum) == 0 {
		t.Fatal("the schema names no types")
	}
	part, _ := section(read(t, reference), "## Events")
	for _, name := range schema.Properties.Type.Enum {
		if !strings.Contains(part, name) {
			t.Errorf("docs/reference.md does not name the event %s", name)
		}
	}
}

// link is a relative link of a page.
var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// TestLinks: what the pages point to is there.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(root + "/examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range slices.Concat(pages, more, []string{readme, root + "/CONTRIBUTING.md"}) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s points to %s, which is not there", page, m[1])
			}
		}
	}
}

package runbook

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
)

// loadWith writes files into a folder of their own and loads t.hcl of it.
func loadWith(t *testing.T, files map[string]string, opts Options) (*Runbook, hcl.Diagnostics) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range opts.VarFiles {
		opts.VarFiles[i] = filepath.Join(dir, name)
	}
	if opts.Getenv == nil {
		opts.Getenv = noEnv
	}
	return Load(filepath.Join(dir, "t.hcl"), opts)
}

func TestPrecedence(t *testing.T) {
	text := prelude + "variable \"v\" {\n  default = \"default\"\n}\n"
	env := envOf(map[string]string{"PGRUNBOOK_VAR_v": "environment"})
	auto := map[string]string{"t.hcl": text, "a.auto.vars.hcl": `v = "auto a"`, "b.auto.vars.hcl": `v = "auto b"`}
	all := map[string]string{"t.hcl": text, "a.auto.vars.hcl": `v = "auto"`, "one.hcl": `v = "one"`, "two.hcl": `v = "two"`}
	for _, tc := range []struct {
		want  string
		files map[string]string
		opts  Options
	}{
		{"default", map[string]string{"t.hcl": text}, Options{}},
		{"environment", map[string]string{"t.hcl": text}, Options{Getenv: env}},
		{"auto b", auto, Options{Getenv: env}},
		{"two", all, Options{Getenv: env, VarFiles: []string{"one.hcl", "two.hcl"}}},
		{"flag", all, Options{Getenv: env, VarFiles: []string{"one.hcl"}, Vars: map[string]string{"v": "flag"}}},
	} {
		rb, diags := loadWith(t, tc.files, tc.opts)
		if diags.HasErrors() {
			t.Fatal(printed(t, rb, diags))
		}
		if got := rb.Variables[0].Value; got != tc.want {
			t.Errorf("value is %q, want %q", got, tc.want)
		}
	}
}

func TestVariableTypes(t *testing.T) {
	text := `
variable "n" { type = number }
variable "b" { type = bool }
variable "l" { type = list(string) }
variable "m" { type = map(number) }
variable "s" {}
`
	rb := mustParse(t, prelude+text, Options{Vars: map[string]string{
		"n": "8", "b": "true", "l": `["x", "y"]`, "m": `{ a = 1 }`, "s": "[as it is]",
	}})
	got := map[string]string{}
	for _, v := range rb.Variables {
		got[v.Name] = v.Value
	}
	want := map[string]string{"n": "8", "b": "true", "l": `["x","y"]`, "m": `{"a":1}`, "s": "[as it is]"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
}

func TestVariableMistakesOutside(t *testing.T) {
	text := prelude + "variable \"workers\" {\n  type = number\n  default = 1\n}\nvariable \"pw\" {\n  sensitive = true\n  default = env(\"PW\")\n}\n"
	for _, tc := range []struct {
		name, want string
		files      map[string]string
		opts       Options
	}{
		{"unknown -var", `--var sets "worker"`, nil, Options{Vars: map[string]string{"worker": "8"}}},
		{"wrong type of -var", "a number is required", nil, Options{Vars: map[string]string{"workers": "many"}}},
		{"missing file", "none.hcl: no such file", nil, Options{VarFiles: []string{"none.hcl"}}},
		{"unknown in file", `declares no variable "pq". Did you mean "pw"?`, map[string]string{"v.hcl": "pq = \"hunter2\"\n"}, Options{VarFiles: []string{"v.hcl"}}},
		{"broken file", "v.hcl line 1", map[string]string{"v.hcl": "pw = \"hunter2\n"}, Options{VarFiles: []string{"v.hcl"}}},
		{"block in file", "v.hcl line 2", map[string]string{"v.hcl": "pw = \"hunter2\"\npw2 {}\n"}, Options{VarFiles: []string{"v.hcl"}}},
		{"reference in file", "no function", map[string]string{"v.hcl": "pw = env(\"hunter2\")\n"}, Options{VarFiles: []string{"v.hcl"}}},
		{"wrong type in file", "number required, but have tuple", map[string]string{"v.hcl": "pw = \"hunter2\"\nworkers = [\"hunter2\"]\n"}, Options{VarFiles: []string{"v.hcl"}}},
	} {
		files := map[string]string{"t.hcl": text}
		for name, src := range tc.files {
			files[name] = src
		}
		tc.opts.Validate = true
		rb, diags := loadWith(t, files, tc.opts)
		out := printed(t, rb, diags)
		if !diags.HasErrors() || !strings.Contains(out, tc.want) {
			t.Errorf("%s: no %q in\n%s", tc.name, tc.want, out)
		}
		if tc.name != "wrong type in file" && strings.Contains(out, secretWord) {
			t.Errorf("%s shows the secret:\n%s", tc.name, out)
		}
	}
	rb, diags := loadWith(t, map[string]string{"t.hcl": text, "x.auto.vars.hcl": "other = \"hunter2\"\n"}, Options{Validate: true})
	out := printed(t, rb, diags)
	if diags.HasErrors() || len(diags) != 1 || strings.Contains(out, secretWord) {
		t.Errorf("a shared variable file is no warning:\n%s", out)
	}
}

func TestValidateNeedsNoValues(t *testing.T) {
	text := `
runbook "t" {}
variable "url" { sensitive = true }
variable "n" { type = number }
variable "list" { type = list(string) }
variable "env" { default = env("NOT_SET") }
source { url = var.url }
target { service = var.env }
copy {
  workers = var.n
  chunk   = "${var.n}MiB"
}
tables { include = concat(var.list, ["${var.env}.*"]) }
limit "sessions" { max = var.n }
cutover {
  switch {
    step "exec" "x" {
      command = ["./x", var.env]
      undo    = var.list
      timeout = "${var.n}s"
    }
  }
}
`
	rb := mustParse(t, text, Options{Validate: true})
	if rb.Source.URLKnown || rb.Copy.Workers != 4 || rb.Variables[0].Known {
		t.Errorf("unknown values: %+v %+v", rb.Source, rb.Copy)
	}
	if b := DecodeBody(rb.Cutover.Switch[0]); b.Known("command") || !b.Has("command") || b.Strings("command") != nil || len(b.diags) > 0 {
		t.Errorf("an unknown argument of a step: %v", b.diags)
	}
	_, diags := Parse("t.hcl", []byte(text), Options{Getenv: noEnv})
	if len(diags.Errs()) != 4 {
		t.Errorf("a run misses %d values: %v", len(diags.Errs()), diags)
	}
}

func TestEnvInTry(t *testing.T) {
	text := prelude + "variable \"v\" {\n  default = try(env(\"NOT_SET\"), \"fallback\")\n}\n"
	if rb := mustParse(t, text, Options{}); rb.Variables[0].Value != "fallback" {
		t.Errorf("try(env()) is %q", rb.Variables[0].Value)
	}
}

func TestFunctions(t *testing.T) {
	for _, expr := range []string{`format("%1000000000s", "x")`, `format("%.99999999999999999999f", 1)`, `join("", formatlist("%-1001d", [1]))`, `indent(1000000000, "a\nb")`} {
		_, diags := Parse("t.hcl", []byte("locals {\n  x = "+expr+"\n}\n"), Options{Getenv: noEnv})
		wide := func(d *hcl.Diagnostic) bool { return strings.Contains(d.Detail, "1000 characters") }
		if !slices.ContainsFunc(diags, wide) {
			t.Errorf("%s: %v", expr, diags)
		}
	}
	for expr, want := range map[string]string{
		`format("%05.1f|%-4s|%%9999", 1.25, "a")`:          "001.2|a   |%9999",
		`ident("erp", "Order \"x\"")`:                      `"erp"."Order ""x"""`,
		`literal("it's")`:                                  `'it''s'`,
		`literal("a\\b")`:                                  ` E'a\\b'`,
		`sha256("a")`:                                      "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
		`md5("a")`:                                         "0cc175b9c0f1b6a831c399e269772661",
		`base64decode(base64encode("é"))`:                  "é",
		`urlencode("a b&c")`:                               "a+b%26c",
		`basename("a/b.sql")`:                              "b.sql",
		`dirname("a/b.sql")`:                               "a",
		`can(parseint("x", 10)) ? "yes" : "no"`:            "no",
		`fileexists("none") ? "yes" : "no"`:                "no",
		`join(",", sort(distinct(["b", "a", "b"])))`:       "a,b",
		`formatdate("YYYY", "2026-11-20T00:00:00Z")`:       "2026",
		`jsonencode({ a = 1 })`:                            `{"a":1}`,
		`convert("5", number) + 1`:                         "6",
		`regex_replace("erp_old", "_.*", "")`:              "erp",
		`lookup({ a = "x" }, "b", "none")`:                 "none",
		`format("%s-%02d", "w", 3)`:                        "w-03",
		`try(base64decode("!"), "not base64")`:             "not base64",
		`sha512("") == sha512("a") ? "same" : sha1("abc")`: "a9993e364706816aba3e25717850c26c9cd0d89d",
	} {
		rb := mustParse(t, prelude+"variable \"v\" {\n  type = string\n  default = "+expr+"\n}\n", Options{})
		if got := rb.Variables[0].Value; got != want {
			t.Errorf("%s is %q, want %q", expr, got, want)
		}
	}
	for _, name := range never {
		if _, ok := functions(nil, nil)[name]; ok {
			t.Errorf("%s depends on time or chance", name)
		}
	}
}

func TestSensitiveValidation(t *testing.T) {
	text := prelude + `
variable "pw" {
  sensitive = true
  validation {
    condition     = strlen(var.pw) > 20
    error_message = "Password ${var.pw} is too short."
  }
}
`
	rb, diags := Parse("t.hcl", []byte(text), Options{Getenv: noEnv, Vars: map[string]string{"pw": secretWord}})
	out := printed(t, rb, diags)
	if !strings.Contains(out, "uses a sensitive value and is not shown") || strings.Contains(out, secretWord) {
		t.Errorf("%s", out)
	}
}

// TestPlainPassword refuses a password in a variable that plans show, used or not.
func TestPlainPassword(t *testing.T) {
	text := prelude + "variable \"url\" {\n  default = env(\"URL\")\n}\ncutover {\n  closed_message = var.url\n}\n"
	rb, diags := Parse("t.hcl", []byte(text), Options{Getenv: envOf(map[string]string{"URL": "postgresql://app:hunter2@old/erp"})})
	out := printed(t, rb, diags)
	if !strings.Contains(out, "Write sensitive = true in it") || strings.Contains(out, secretWord) {
		t.Errorf("%s", out)
	}
}

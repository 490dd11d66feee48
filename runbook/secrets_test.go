package runbook

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const secretText = `
runbook "t" {}
variable "url" {
  sensitive = true
  default   = env("URL")
}
variable "token" {
  type      = object({ key = string, parts = list(string) })
  sensitive = true
}
locals {
  header = "Bearer ${var.token.key}"
  basic  = base64encode("u:${var.token.key}")
}
source { url = var.url }
target { service = "new" }
cutover {
  pooler "pgbouncer" "main" {
    admin    = "host=pool password=${var.token.key}"
    database = "erp"
  }
  before {
    step "http" "h" {
      url     = "https://hooks/${var.token.key}"
      headers = { Authorization = local.basic, Accept = "text/plain" }
      method  = "POST"
    }
  }
}
`

func secretOptions(word string) Options {
	return Options{
		Getenv: envOf(map[string]string{"URL": "postgresql://app:" + word + "-%70w@old/erp"}),
		Vars:   map[string]string{"token": fmt.Sprintf(`{ key = "%s-key", parts = ["%s-part"] }`, word, word)},
	}
}

func TestSecretsAndRedact(t *testing.T) {
	rb := mustParse(t, secretText, secretOptions(secretWord))
	if rb.Source.URL != "postgresql://app:hunter2-%70w@old/erp" || rb.Cutover.Poolers[0].Admin != "host=pool password=hunter2-key" {
		t.Errorf("the run cannot connect: %q %q", rb.Source.URL, rb.Cutover.Poolers[0].Admin)
	}
	secrets := strings.Join(rb.Secrets(), "\n")
	for _, want := range []string{rb.Source.URL, "hunter2-pw", "hunter2-%70w", "hunter2-key", "hunter2-part", "dTpodW50ZXIyLWtleQ==", "Bearer hunter2-key"} {
		if !strings.Contains(secrets, want) {
			t.Errorf("Secrets lacks %q", want)
		}
	}
	red := rb.Redact()
	for _, text := range []string{fmt.Sprintf("%#v", red), fmt.Sprintf("%+v", *red)} {
		if strings.Contains(text, secretWord) || strings.Contains(text, "dTpodW50ZXIy") {
			t.Errorf("the redacted copy shows a secret:\n%s", text)
		}
	}
	if data, err := json.Marshal(red); err != nil || strings.Contains(string(data), secretWord) {
		t.Errorf("the redacted copy as JSON: %v\n%s", err, data)
	}
	if red.Source.URL != hidden || red.Target.Service != "new" || red.Cutover.Poolers[0].Database != "erp" || red.Digest != rb.Digest {
		t.Errorf("redacted: %+v", red)
	}
	if rb.Source.URL == hidden || rb.Hooks["cutover"].Before[0].Eval == nil {
		t.Error("Redact changed the original")
	}
	for _, v := range rb.Variables {
		if v.Value != "" || !v.Sensitive || !v.Known {
			t.Errorf("variable %+v", v)
		}
	}
}

// TestDigest changes with every plain input and with no secret.
func TestDigest(t *testing.T) {
	text := secretText + "variable \"plain\" { default = \"a\" }\n"
	digest := func(text, word, plain string) string {
		opts := secretOptions(word)
		opts.Vars["plain"] = plain
		return mustParse(t, text, opts).Digest
	}
	base := digest(text, "hunter2", "a")
	if base != digest(text, "other", "a") {
		t.Error("the digest depends on a secret")
	}
	if base == digest(text, "hunter2", "b") {
		t.Error("the digest ignores a variable")
	}
	if base == digest(text+"# comment\n", "hunter2", "a") {
		t.Error("the digest ignores the text")
	}
}

func TestSecretTypes(t *testing.T) {
	rb := mustParse(t, secretText, secretOptions(secretWord))
	b := DecodeBody(rb.Hooks["cutover"].Before[0])
	url, headers := b.Sensitive("url"), b.SensitiveMap("headers")
	if b.String("method") != "POST" || len(b.Done()) > 0 {
		t.Fatal(b.diags)
	}
	if url.Reveal() != "https://hooks/hunter2-key" || !url.Sensitive() || url.String() != hidden {
		t.Errorf("url %s", url)
	}
	if h := headers["Accept"]; h.Sensitive() || h.String() != "text/plain" {
		t.Errorf("a plain header is hidden: %s", h)
	}
	data, err := json.Marshal(headers)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(data), fmt.Sprintf("%v %+v %#v %s %q", headers, headers, headers, url, url)} {
		if strings.Contains(text, "dTpodW50ZXIy") || strings.Contains(text, secretWord) {
			t.Errorf("a secret is printed: %s", text)
		}
	}
	refused := DecodeBody(rb.Hooks["cutover"].Before[0])
	if refused.String("url") != "" || refused.Map("headers") != nil || len(refused.Done()) != 3 { // method is the third
		t.Errorf("plain getters give secrets away: %v", refused.diags)
	}
}

// TestSecretInMessages puts secrets where HCL or a function would repeat them.
func TestSecretInMessages(t *testing.T) {
	for _, expr := range []string{
		`parseint(var.pw, 10)`, `jsondecode(var.pw)`, `regex(var.pw, "x")`, `var.pw + 1`, `var.pw.attr`, `[1][var.pw]`, `{ a = 1 }[var.pw]`,
		`file(var.pw)`, `convert(var.pw, number)`, `base64decode(var.pw)`, `formatdate(var.pw, "x")`, `timeadd("x", var.pw)`, `var.pw ? 1 : 2`,
		`lookup({}, var.pw)`, `format("%d", var.pw)`, `csvdecode(var.pw)`, `element([1], var.pw)`, `merge(var.pw, {})`, `1 / strlen(var.pw) + var.pw`,
		`var.plain + 1`, `parseint("postgresql://app:hunter2@old/erp", 10)`,
	} {
		text := prelude + "variable \"pw\" { sensitive = true }\nvariable \"plain\" {}\nlocals {\n  x = " + expr + "\n}\nverify { mode = local.x }\n"
		opts := Options{Getenv: noEnv, Vars: map[string]string{"pw": "(hunter2", "plain": "postgresql://app:hunter2@old/erp"}}
		rb, diags := Parse("t.hcl", []byte(text), opts)
		report, err := rb.DiagnosticsJSON(diags)
		if err != nil {
			t.Fatal(err)
		}
		out := printed(t, rb, diags)
		if !diags.HasErrors() {
			t.Errorf("%s is accepted", expr)
		}
		if strings.Contains(out, secretWord) || strings.Contains(string(report), secretWord) || strings.Contains(diags.Error(), secretWord) {
			t.Errorf("%s prints the secret:\n%s", expr, out)
		}
	}
}

func TestSecretFileIsNotPinned(t *testing.T) {
	text := prelude + "variable \"pw\" {\n  sensitive = true\n  default   = trimspace(file(\"pw.txt\"))\n}\n"
	rb, diags := loadWith(t, map[string]string{"t.hcl": text, "pw.txt": "hunter2\n"}, Options{})
	if diags.HasErrors() {
		t.Fatal(printed(t, rb, diags))
	}
	if diff := cmp.Diff([]string{secretWord}, rb.Secrets()); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
	if _, pinned := rb.Files["pw.txt"]; pinned {
		t.Error("a plan would carry the secret file")
	}
}

func TestConnPassword(t *testing.T) {
	for conn, want := range map[string]string{
		"postgresql://app:pw@h/db":                    "pw",
		"postgres://app:p%40w@h:5432/db":              "p@w",
		"postgresql://app:p@w@h/db":                   "p@w",
		"postgresql://app:p/w?x@h/db":                 "p/w?x",
		"postgresql://app@h/db?password=pw":           "pw",
		"postgresql://h/db?sslpassword=pw&x=":         "pw",
		"postgresql://app:@h/db":                      "",
		"postgresql://app@h:5432/db?x=a@b":            "",
		"postgresql://h:5432/db?application_name=a@b": "",
		"postgresql://h1:5432,h2:5433/db?x=a@b":       "",
		"postgresql://[::1]:5432/db":                  "",
		"host=h password=pw":                          "pw",
		"host=h password = 'p w' user=x":              "p w",
		`password='it\'s'`:                            "it's",
		"host=h passfile=/x user=password":            "",
		"plain text with password=x":                  "",
		"host=h password='open":                       "open",
		"options='-c x=y' password=pw":                "pw",
	} {
		if got, _ := connPassword(conn); got != want {
			t.Errorf("password of %q is %q, want %q", conn, got, want)
		}
	}
}

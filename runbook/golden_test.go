package runbook

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
)

var update = flag.Bool("update", false, "rewrite the .golden files")

// noEnv is an environment without a variable.
func noEnv(string) (string, bool) { return "", false }

// secretWord stands in every testdata file that holds a secret, and in no message.
const secretWord = "hunter2"

func printed(t *testing.T, rb *Runbook, diags hcl.Diagnostics) string {
	t.Helper()
	var b bytes.Buffer
	if err := rb.WriteDiagnostics(&b, diags, 0, false); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// sources lists the runbooks of the current directory.
func runbooksHere(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".hcl" && !strings.HasSuffix(e.Name(), ".vars.hcl") || ext == ".json" {
			out = append(out, e.Name())
		}
	}
	return out
}

// TestInvalid pins every message of the language as people see it.
func TestInvalid(t *testing.T) {
	t.Chdir("testdata/invalid")
	names := runbooksHere(t)
	if len(names) < 40 {
		t.Fatalf("%d cases are fewer than the language has rules", len(names))
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			rb, diags := Load(name, Options{Getenv: noEnv, ToolVersion: "1.2.0"})
			if !diags.HasErrors() {
				t.Fatalf("%s is accepted", name)
			}
			got := printed(t, rb, diags)
			report, err := rb.DiagnosticsJSON(diags)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{got, string(report)} {
				if strings.Contains(text, secretWord) {
					t.Errorf("the secret is printed:\n%s", text)
				}
			}
			for _, d := range diags {
				if d.Subject == nil || d.Detail == "" {
					t.Errorf("%q has no place or no detail", d.Summary)
				}
			}
			golden := name + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("messages differ (-want +got):\n%s", diff)
			}
		})
	}
}

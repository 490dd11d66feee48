package main

import (
	"os"
	"testing"
)

// TestNextNamesTheFile: what is typed as it stands must be about the run that was asked for.
func TestNextNamesTheFile(t *testing.T) {
	for said, want := range map[string]string{
		"pgrunbook apply": "pgrunbook apply e.runbook.hcl",
		"pgrunbook apply: it looks; pgrunbook finish --without-source":      "pgrunbook apply e.runbook.hcl: it looks; pgrunbook finish --without-source e.runbook.hcl",
		"pgrunbook approve go --by WHO":                                     "pgrunbook approve go --by WHO e.runbook.hcl",
		"nothing: it is running. pgrunbook status --watch follows it":       "nothing: it is running. pgrunbook status --watch e.runbook.hcl follows it",
		"nothing: it goes on. pgrunbook set NAME=VALUE changes a limit":     "nothing: it goes on. pgrunbook set NAME=VALUE e.runbook.hcl changes a limit",
		"pgrunbook rollback, which was begun; or pgrunbook finish, to stay": "pgrunbook rollback e.runbook.hcl, which was begun; or pgrunbook finish e.runbook.hcl, to stay",
	} {
		if got := withFile(said, []string{"e.runbook.hcl"}); got != want { // this directory has no runbook
			t.Errorf("%q, and not %q", got, want)
		}
		if got := withFile(said, nil); got != said {
			t.Errorf("without a file: %q", got)
		}
	}
}

// The directory's only runbook need not be named; beside it another one still is.
func TestNextNamesAnotherFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("e.runbook.hcl", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"e.runbook.hcl": "pgrunbook apply", "./e.runbook.hcl": "pgrunbook apply", "../f.runbook.hcl": "pgrunbook apply ../f.runbook.hcl", "e.plan": "pgrunbook apply e.plan",
	} {
		if got := withFile("pgrunbook apply", []string{file}); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

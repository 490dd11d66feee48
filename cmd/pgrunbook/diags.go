package main

import (
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// annotations is how many of a kind GitHub shows for one step.
const annotations = 10

// writeDiagnostics shows what is wrong with a runbook on stderr, and on GitHub also at its lines.
func (a *app) writeDiagnostics(rb *runbook.Runbook, diags hcl.Diagnostics) error {
	if len(diags) == 0 {
		return nil
	}
	color := view.UseColor(a.color(), terminal(a.rawErr), a.env)
	if err := rb.WriteDiagnostics(a.stderr, diags, 0, color); err != nil {
		return err
	}
	if a.env("GITHUB_ACTIONS") == "true" {
		a.annotate(diags)
	}
	return nil
}

// annotate writes GitHub's workflow commands: the errors first, at most what it shows.
func (a *app) annotate(diags hcl.Diagnostics) {
	n := 0
	for _, severity := range []hcl.DiagnosticSeverity{hcl.DiagError, hcl.DiagWarning} {
		for _, d := range diags {
			if d.Severity != severity {
				continue
			}
			if n++; n <= annotations {
				fmt.Fprintln(a.stderr, annotation(d))
			}
		}
	}
	if n > annotations {
		fmt.Fprintf(a.stderr, "::notice::%d more findings are in the log\n", n-annotations)
	}
}

// annotation is one workflow command
// (https://docs.github.com/actions/reference/workflow-commands-for-github-actions).
func annotation(d *hcl.Diagnostic) string {
	kind := "error"
	if d.Severity == hcl.DiagWarning {
		kind = "warning"
	}
	place := ""
	if d.Subject != nil {
		place = fmt.Sprintf("file=%s,line=%d,col=%d,", property(d.Subject.Filename), d.Subject.Start.Line, d.Subject.Start.Column)
	}
	return fmt.Sprintf("::%s %stitle=%s::%s", kind, place, property(d.Summary), message(d.Detail))
}

func message(s string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(s)
}

func property(s string) string {
	return strings.NewReplacer(":", "%3A", ",", "%2C").Replace(message(s))
}

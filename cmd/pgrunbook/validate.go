package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps"
)

func newValidate(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "validate [RUNBOOK]",
		Short: "Check a runbook without touching a server",
		Long:  "validate checks a runbook without touching a server and without its secrets: a variable from the\nenvironment that is not set is unknown, not wrong.",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return a.validate(args, asJSON) },
	}
	a.withVars(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object on stdout, in the form of terraform validate -json")
	return cmd
}

func (a *app) validate(args []string, asJSON bool) error {
	a.json = false // the result is one object, not a stream
	path, err := findRunbook(args)
	if err != nil {
		return err
	}
	o, err := a.options(true)
	if err != nil {
		return err
	}
	rb, diags := runbook.Load(path, o)
	a.hide(rb.Secrets()...)
	if err := secretArgument(rb, o.Vars); err != nil {
		return err
	}
	diags = append(diags, steps.Check(rb)...)
	a.hide(rb.Secrets()...)
	if asJSON {
		report, err := rb.DiagnosticsJSON(diags)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(a.stdout, string(report)); err != nil {
			return fmt.Errorf("writing the result: %w", err)
		}
	} else if err := a.writeDiagnostics(rb, diags); err != nil {
		return err
	}
	if diags.HasErrors() {
		return &shownError{code: exitUsage, err: engine.Errorf(engine.ClassRunbook, "", "%s is not valid", path)}
	}
	if !asJSON {
		_, err = fmt.Fprintf(a.stdout, "%s is valid.\n", path)
	}
	return err
}

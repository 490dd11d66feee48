package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps"
)

// initFlags are the flags of init.
type initFlags struct {
	source, target string // services
	force          bool
}

func newInit(a *app) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a commented runbook for a live source",
		Long: "init reads the source in a session that cannot write and writes a runbook for what it finds.\n" +
			"The servers come from SOURCE_URL and TARGET_URL in the environment, or from pg_service.conf; never from the command line.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.init(cmd.Context(), args, f) },
	}
	cmd.Flags().StringVar(&f.source, "source-service", "", "service of the source in pg_service.conf")
	cmd.Flags().StringVar(&f.target, "target-service", "", "service of the target in pg_service.conf")
	cmd.Flags().BoolVar(&f.force, "force", false, "overwrite the file")
	return cmd
}

func (a *app) init(ctx context.Context, args []string, f initFlags) error {
	sourceURL := a.env("SOURCE_URL")
	a.hide(append(steps.Passwords(sourceURL), steps.Passwords(a.env("TARGET_URL"))...)...)
	if sourceURL == "" && f.source == "" {
		return usageError("Set SOURCE_URL, or pass --source-service NAME. A password does not belong on the command line.", "which server is the source?")
	}
	address := "$SOURCE_URL"
	if f.source != "" {
		sourceURL, address = "", "service="+f.source
	}
	source, err := steps.NewServer(engine.Source, sourceURL, f.source)
	if err != nil {
		return err
	}
	a.show()
	inv, err := steps.Inspect(ctx, source, address)
	if err != nil {
		return err
	}
	name := inv.Source.Database + ".runbook.hcl"
	if len(args) > 0 {
		name = args[0]
	}
	text := runbookText(inv, f)
	if err := a.checkGenerated(name, text); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if f.force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	file, err := os.OpenFile(name, flags, 0o644) //nolint:gosec // a runbook holds no secret and is shared
	if errors.Is(err, fs.ErrExist) {
		return usageError("Pass --force to overwrite it, or name another file.", "%s is there already", name)
	}
	if err == nil {
		_, err = file.Write(text)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return fmt.Errorf("writing the runbook: %w", err)
	}
	a.summary.Message = "wrote " + name
	a.summary.Next = "pgrunbook plan " + name
	return nil
}

// checkGenerated keeps a runbook that would not be valid from being written.
func (a *app) checkGenerated(name string, text []byte) error {
	rb, diags := runbook.Parse(name, text, runbook.Options{Validate: true, Getenv: a.getenv, ToolVersion: version()})
	diags = append(diags, steps.Check(rb)...)
	if !diags.HasErrors() {
		return nil
	}
	if err := a.writeDiagnostics(rb, diags); err != nil {
		return err
	}
	return fmt.Errorf("the runbook for this source would not be valid: please report it, with what stands above")
}

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/steps"
)

func newVerify(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [RUNBOOK | PLAN]",
		Short: "Compare both sides now, while the application writes",
		Long: "verify makes a pass from the side that takes writes (after the cutover that is the target) and compares every row\n" +
			"or their number. Where both sides may have taken writes it carries nothing and compares them as they are.\n\n" + exitHelp(),
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verify(cmd.Context(), args) },
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withSteal(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	return cmd
}

func (a *app) verify(ctx context.Context, args []string) error {
	s, err := a.openRun(ctx, args, steps.OpenOptions{AnyPlace: true})
	if err != nil {
		return err
	}
	defer s.env.Journal.Close(ctx)
	if err := steps.VerifyNow(ctx, s.env, a.show()); err != nil {
		return err
	}
	a.summary.Message = "both sides are equal"
	return nil
}

// openRun opens the run that is on the target, with its own plan and both locks.
func (a *app) openRun(ctx context.Context, args []string, o steps.OpenOptions) (*subject, error) {
	s, err := a.open(ctx, args)
	if err != nil {
		return nil, err
	}
	o.ToolVersion, o.Redact, o.Steal, o.Stale = version(), a.redact, a.steal, s.stale
	return s, a.ended(ctx, s.env.Target, s.env.Source, steps.OpenRun(ctx, s.env, o))
}

package main

import (
	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/steps"
)

func newApprove(a *app) *cobra.Command {
	var by string
	cmd := &cobra.Command{
		Use:   "approve NAME [RUNBOOK | PLAN]",
		Short: "Say yes to a step that waits for a person, from anywhere",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if by == "" {
				return usageError("Add --by WHO.", "an approval needs the name of the person")
			}
			target, err := a.openServer(cmd.Context(), args[1:])
			if err != nil {
				return err
			}
			if err := steps.Approve(cmd.Context(), target, args[0], by); err != nil {
				return noRun(err)
			}
			a.summary.Message = args[0] + " is approved by " + by
			return nil
		},
	}
	cmd.Flags().StringVar(&by, "by", "", "who approves")
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	return cmd
}

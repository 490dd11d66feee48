package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/steps"
)

func newFinish(a *app) *cobra.Command {
	var o steps.FinishOptions
	var check, yes bool
	cmd := &cobra.Command{
		Use:   "finish [RUNBOOK | PLAN]",
		Short: "Give up the way back and remove what the run made",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.finish(cmd.Context(), args, o, check, yes) },
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withSteal(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	cmd.Flags().BoolVar(&o.Now, "now", false, "before rollback { keep_for } is over")
	cmd.Flags().BoolVar(&o.WithoutSource, "without-source", false, "the source is gone; clean the target alone")
	cmd.Flags().BoolVar(&check, "check", false, "say what would be removed, and remove nothing")
	cmd.Flags().BoolVarP(&yes, "auto-approve", "y", false, "do not ask")
	return cmd
}

func (a *app) finish(ctx context.Context, args []string, o steps.FinishOptions, check, yes bool) error {
	s, err := a.openRun(ctx, args, steps.OpenOptions{WithoutSource: o.WithoutSource, AnyPlace: true})
	if err != nil {
		return err
	}
	defer s.env.Journal.Close(ctx)
	p, _, err := steps.PlanFinish(ctx, s.env, o)
	if err != nil {
		return err
	}
	if check || !yes && !a.json {
		if err := a.print(p, planForm{json: a.json}); err != nil || check {
			return err
		}
	}
	if err := a.mayAct(ctx, yes, "There is no way back afterwards. Only the word yes does it: "); err != nil {
		return err
	}
	w := steps.WalkOptions{Show: a.show()}
	if a.interactive() && !a.json {
		w.Ask = a.askApproval
	}
	a.summary.Outcomes, err = steps.Finish(ctx, s.env, o, w)
	if err == nil {
		a.summary.Message = "finished: nothing of ours is left on the target"
	}
	return err
}

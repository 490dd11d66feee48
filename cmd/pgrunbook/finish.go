package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps"
)

// finishFlags are the flags of finish that are the program's own.
type finishFlags struct {
	check, yes bool
	approve    []string
	by         string
}

func newFinish(a *app) *cobra.Command {
	var o steps.FinishOptions
	var f finishFlags
	cmd := &cobra.Command{
		Use:   "finish [RUNBOOK | PLAN]",
		Short: "Give up the way back and remove what the run made",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.finish(cmd.Context(), args, o, f) },
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withSteal(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	cmd.Flags().BoolVar(&o.Now, "now", false, "before rollback { keep_for } is over")
	cmd.Flags().BoolVar(&o.WithoutSource, "without-source", false, "the source is gone; clean the target alone")
	cmd.Flags().BoolVar(&f.check, "check", false, "say what would be removed, and remove nothing")
	cmd.Flags().BoolVarP(&f.yes, "auto-approve", "y", false, "do not ask")
	cmd.Flags().StringArrayVar(&f.approve, "approve", nil, "record the approval NAME first; needs --by")
	cmd.Flags().StringVar(&f.by, "by", "", "who approves")
	return cmd
}

func (a *app) finish(ctx context.Context, args []string, o steps.FinishOptions, f finishFlags) error {
	if len(f.approve) > 0 && f.by == "" {
		return usageError("Add --by WHO.", "--approve needs the name of the person")
	}
	s, err := a.openRun(ctx, args, steps.OpenOptions{WithoutSource: o.WithoutSource, AnyPlace: true})
	if err != nil {
		return err
	}
	defer s.env.Journal.Close(ctx)
	p, _, err := steps.PlanFinish(ctx, s.env, o)
	if err != nil {
		return err
	}
	if f.check || !f.yes && !a.json {
		if err := a.print(p, planForm{json: a.json}); err != nil || f.check {
			return err
		}
	}
	if err := a.mayAct(ctx, f.yes, "There is no way back afterwards. Only the word yes does it: "); err != nil {
		return err
	}
	w := a.walkBack(backFlags{approve: f.approve, by: f.by})
	a.summary.Outcomes, err = steps.Finish(ctx, s.env, o, w)
	if engine.ClassOf(err) == engine.ClassApproval {
		a.summary.Next = nextAfter(err, "the same command")
	}
	if err == nil {
		a.summary.Message = "finished: nothing of ours is left on the target"
	}
	return err
}

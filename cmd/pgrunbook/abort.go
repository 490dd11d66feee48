package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps"
)

func newAbort(a *app) *cobra.Command {
	var o steps.AbortOptions
	var yes bool
	cmd := &cobra.Command{
		Use:   "abort [RUNBOOK | PLAN]",
		Short: "Give the run up before the flip; the source is left as it was found",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(cmd *cobra.Command, args []string) error { return a.abort(cmd.Context(), args, o, yes) },
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withSteal(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	cmd.Flags().BoolVarP(&yes, "auto-approve", "y", false, "do not ask")
	cmd.Flags().BoolVar(&o.DropTarget, "drop-target", false, "drop what the schema phase made on the target, rows included")
	cmd.Flags().BoolVar(&o.WithoutTarget, "without-target", false, "the target is gone; clean the source alone")
	cmd.Flags().BoolVar(&o.WithoutPoolers, "without-poolers", false, "a pooler is gone for good; name those that may still lead to the target, and go on")
	cmd.Flags().BoolVar(&o.WithoutSource, "without-source", false, "the source is gone; clean the target alone")
	return cmd
}

func (a *app) abort(ctx context.Context, args []string, o steps.AbortOptions, yes bool) error {
	if err := a.mayAct(ctx, yes, "Give the run up? Only the word yes does it: "); err != nil {
		return err
	}
	if o.WithoutTarget {
		o.Steal = a.steal
		path, err := findRunbook(args)
		if err != nil {
			return err
		}
		s, err := a.open(ctx, []string{path})
		if err != nil {
			return err
		}
		err = steps.AbortRun(ctx, s.env, o, a.show())
		a.aborted(err)
		return err
	}
	s, err := a.openRun(ctx, args, steps.OpenOptions{WithoutSource: o.WithoutSource, AnyPlace: true, Aborted: o.DropTarget})
	if err != nil {
		return err
	}
	defer s.env.Journal.Close(ctx)
	err = steps.AbortRun(ctx, s.env, o, a.show())
	a.aborted(err)
	return err
}

func (a *app) aborted(err error) {
	if err == nil {
		a.summary.Message = "the run is aborted; the application writes on the source"
	}
}

// mayAct asks for a yes, or demands --auto-approve where nobody can be asked.
func (a *app) mayAct(ctx context.Context, yes bool, question string) error {
	if yes {
		return nil
	}
	if !a.interactive() || a.json {
		return engine.Errorf(engine.ClassApproval, "Pass --auto-approve.", "no terminal to ask on, and no --auto-approve")
	}
	return a.askYes(ctx, question)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
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
	if f.check && errors.Is(err, steps.ErrNoRun) {
		return a.finished(ctx, args, err)
	}
	if errors.Is(err, errFinished) { // by a finish that could not say so any more
		a.summary.Message = "finished already: nothing is to be done"
		return nil
	}
	if err != nil {
		return err
	}
	defer s.env.Journal.Close(ctx)
	p, _, err := steps.PlanFinish(ctx, s.env, o)
	if err != nil {
		return err
	}
	if f.check || !f.yes && !a.json {
		if err := a.print(p, planForm{json: a.json, whole: true}); err != nil || f.check {
			return err
		}
	}
	if err := a.mayAct(ctx, f.yes, "There is no way back afterwards. Only the word yes does it: "); err != nil {
		return err
	}
	w := a.walkBack(backFlags{approve: f.approve, by: f.by})
	a.summary.Outcomes, err = steps.Finish(ctx, s.env, o, w, func(c steps.Certificate) error {
		defer a.show().Suspend()() // a live block would be drawn into it
		return a.writeCertificate(c, a.json)
	})
	if engine.ClassOf(err) == engine.ClassApproval {
		a.summary.Next = nextAfter(err, "the same command")
	}
	if err == nil {
		a.summary.Message = "finished: nothing of ours is left on the target"
		if o.WithoutSource {
			a.summary.Message = "finished: the journal alone is left on the target, so that status knows if the source comes back; DROP SCHEMA pgrunbook CASCADE removes it"
		}
	}
	return err
}

// finished says what both sides still hold once the run is over: on the source the closed gate.
func (a *app) finished(ctx context.Context, args []string, cause error) error {
	asJSON := a.json
	a.json = false // one object
	target, source, err := a.openServers(ctx, args)
	if err != nil {
		return err
	}
	onTarget, err := steps.ListOurs(ctx, target)
	if err != nil || source == nil {
		return errors.Join(cause, err)
	}
	l, err := steps.ReadLeft(ctx, source)
	var said, next string
	switch {
	case err == nil && l == nil && len(onTarget) == 0: // finish { source = "open" }, or somebody took the gate off
		l, said, next = steps.NothingLeft(), "nothing of ours is left on either side: a run is finished, or there was none", "nothing"
	case err != nil || l == nil || !l.Finished:
		return errors.Join(cause, err)
	default:
		said, next = fmt.Sprintf("run %s is finished", l.Run), nothingNext(l)
	}
	if asJSON {
		return view.WriteLine(a.stdout, view.LineLeft, said, struct {
			*steps.Left
			Back     *view.StatusBack `json:"rollback"`
			OnTarget []steps.Ours     `json:"on_target"`
		}{l, backView(&l.Back), onTarget}, time.Now())
	}
	fmt.Fprintf(a.stdout, "%s.\n\n", strings.ToUpper(said[:1])+said[1:])
	for _, side := range []struct {
		name string
		list []steps.Ours
	}{{"target", onTarget}, {"source", l.Objects}} {
		if len(side.list) == 0 {
			fmt.Fprintf(a.stdout, "  %s  nothing of ours\n", side.name)
		}
		for _, o := range side.list {
			fmt.Fprintf(a.stdout, "  %s  %s\n", side.name, o)
		}
	}
	_, err = fmt.Fprintf(a.stdout, "\nNext: %s\n", next)
	return err
}

// nothingNext is what to type after a finished run. The statement that takes the gate off stands apart: whoever
// types it without need has two writable sides.
func nothingNext(l *steps.Left) string {
	return "nothing; this takes the source's gate off, and then the source takes writes beside the target, which nothing carries over: " + l.Remove
}

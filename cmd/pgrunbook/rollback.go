package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps"
)

// backFlags are the flags of rollback.
type backFlags struct {
	yes     bool
	plan    bool
	approve []string
	by      string

	alone  bool
	accept bool
	unlike bool // both sides differ, or may
}

func newRollback(a *app) *cobra.Command {
	var f backFlags
	cmd := &cobra.Command{
		Use:   "rollback [RUNBOOK | PLAN]",
		Short: "Let the source take writes again, with everything that was written to the target",
		Long: "rollback is the cutover with the sides swapped: it carries back what was written to the target, holds writes\n" +
			"for at most max_write_block, and flips. Where it is not possible it says why. Afterwards apply can cut over again.\n" +
			"Where verify found differences it refuses; with --accept-differences it goes back with them, and records by whom.\n" +
			"With --without-target it opens the source alone and gives up what was written to the target and not carried back.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.rollback(cmd.Context(), args, f) },
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withSteal(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	cmd.Flags().BoolVarP(&f.yes, "auto-approve", "y", false, "do not ask")
	cmd.Flags().BoolVar(&f.plan, "check", false, "say whether it is possible and what it would do, and do nothing")
	cmd.Flags().StringArrayVar(&f.approve, "approve", nil, "record the approval NAME first; needs --by")
	cmd.Flags().StringVar(&f.by, "by", "", "who approves or accepts")
	cmd.Flags().BoolVar(&f.unlike, "accept-differences", false, "go back although both sides differ, or our triggers on the source were touched; needs --by")
	cmd.Flags().BoolVar(&f.alone, "without-target", false, "the target is gone for good; give up what was written there")
	cmd.Flags().BoolVar(&f.accept, "accept-loss", false, "with --without-target and --auto-approve: the loss is known and accepted")
	return cmd
}

func (a *app) rollback(ctx context.Context, args []string, f backFlags) error {
	if (len(f.approve) > 0 || f.unlike) && f.by == "" {
		return usageError("Add --by WHO.", "--approve and --accept-differences need the name of the person")
	}
	if f.unlike && f.alone {
		return usageError("Leave it out: without the target nothing is compared.", "--accept-differences is for a rollback with the target")
	}
	if f.alone {
		return a.rollbackAlone(ctx, args, f)
	}
	if f.accept {
		return usageError("Leave it out: rollback loses nothing.", "--accept-loss is for --without-target")
	}
	s, err := a.openRun(ctx, args, steps.OpenOptions{})
	if err != nil {
		return err
	}
	defer s.env.Journal.Close(ctx)
	if f.unlike {
		s.env.AcceptDifferences = f.by
	}
	p, _, err := steps.PlanBack(ctx, s.env)
	if err != nil {
		if !f.plan && engine.ClassOf(err) == engine.ClassDifferences {
			a.summary.Next = nextBack(err, s.path, f)
		}
		return err
	}
	if f.plan || !f.yes && !a.json {
		if err := a.print(p, planForm{json: a.json}); err != nil || f.plan {
			return err
		}
	}
	if err := a.mayAct(ctx, f.yes, "Writes go back to the source. Only the word yes does it: "); err != nil {
		return err
	}
	w := a.walkBack(f)
	a.summary.Outcomes, err = steps.Rollback(ctx, s.env, w)
	if err != nil {
		a.summary.Next = nextBack(err, s.path, f)
		return err
	}
	a.summary.Message = "rolled back: the source takes writes"
	again := "pgrunbook apply " + s.path
	switch {
	case s.path == fromTarget:
		again = "pgrunbook apply"
	case s.plan != nil: // it is of the time before
		again = "pgrunbook apply " + s.plan.Runbook.Path
	}
	a.summary.Next = again + " cuts over again; pgrunbook abort gives the run up"
	return nil
}

// nextBack is what to type after a rollback that failed. Where both sides differ, it would fail again.
func nextBack(err error, path string, f backFlags) string {
	again := "pgrunbook rollback " + path
	if f.unlike {
		again = fmt.Sprintf("pgrunbook rollback --accept-differences --by %q %s", f.by, path)
	}
	if engine.ClassOf(err) == engine.ClassDifferences {
		return fmt.Sprintf("pgrunbook verify %s, once what differs is mended as it says; %s goes on where both sides are equal; or pgrunbook finish, to stay", path, again)
	}
	return nextAfter(err, again)
}

func (a *app) walkBack(f backFlags) steps.WalkOptions {
	w := steps.WalkOptions{Show: a.show(), Steal: a.steal}
	for _, name := range f.approve {
		w.Approve = append(w.Approve, engine.Approval{Name: name, By: f.by})
	}
	if a.interactive() && !a.json {
		w.Ask = a.askApproval
	}
	return w
}

// rollbackAlone opens the source without the target.
func (a *app) rollbackAlone(ctx context.Context, args []string, f backFlags) error {
	asJSON := a.json
	a.json = asJSON && !f.plan // what --check says is one object
	path, err := findRunbook(args)
	if err != nil {
		return err
	}
	s, err := a.open(ctx, []string{path})
	if err != nil {
		return err
	}
	loss, err := steps.PlanWithoutTarget(ctx, s.env)
	if err != nil {
		return err
	}
	if f.plan && asJSON {
		return view.WriteLine(a.stdout, view.LineLoss, "what a rollback without the target gives up", loss, time.Now())
	}
	if !a.json {
		fmt.Fprint(a.stdout, loss)
	}
	if f.plan {
		return nil
	}
	if f.yes && !f.accept {
		return engine.Errorf(engine.ClassApproval, "Read what rollback --without-target --check says; then add --accept-loss.", "--auto-approve does not accept a loss of data")
	}
	if err := a.mayAct(ctx, f.yes, "The target is gone for good, no application can reach it, and what is lost is accepted? Only the word yes does it: "); err != nil {
		return err
	}
	a.summary.Outcomes, err = steps.RollbackWithoutTarget(ctx, s.env, a.walkBack(f))
	if err != nil {
		a.summary.Next = "pgrunbook rollback --without-target " + path
		return err
	}
	a.summary.Message = "rolled back without the target: the source takes writes"
	a.summary.Next = "pgrunbook abort --without-target " + path + " takes everything of ours off the source"
	return nil
}

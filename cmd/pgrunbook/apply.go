package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps"
)

// applyFlags are the flags of apply.
type applyFlags struct {
	until       string
	approve     []string
	by          string
	autoApprove bool
}

func newApply(a *app) *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use:   "apply [RUNBOOK | PLAN]",
		Short: "Walk the runbook; go on where it stopped",
		Long: "apply RUNBOOK plans, shows the plan and asks for the word yes. apply PLAN runs a saved plan and asks nothing.\n" +
			"A run that stopped anywhere is continued by the same command; there is no flag for it.\n\n" + exitHelp(),
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.apply(cmd.Context(), args, f) },
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	cmd.Flags().StringVar(&f.until, "until", "", "stop after this step (its name in the plan)")
	cmd.Flags().StringArrayVar(&f.approve, "approve", nil, "record the approval NAME first; needs --by")
	cmd.Flags().StringVar(&f.by, "by", "", "who approves")
	cmd.Flags().BoolVarP(&f.autoApprove, "auto-approve", "y", false, "do not ask whether to begin")
	a.withSteal(cmd)
	return cmd
}

func (a *app) apply(ctx context.Context, args []string, f applyFlags) error {
	if len(f.approve) > 0 && f.by == "" {
		return usageError("Add --by WHO.", "--approve needs the name of the person")
	}
	s, err := a.open(ctx, args)
	if err != nil {
		return err
	}
	amend, err := a.accept(ctx, s, f)
	if err != nil || s.env.Plan == nil {
		return err
	}
	if _, known := s.env.Plan.Step(engine.StepID(f.until)); f.until != "" && !known {
		return usageError("pgrunbook plan lists them.", "the plan has no step %q", f.until)
	}
	for _, name := range f.approve {
		if err := steps.CheckApproval(s.env.Plan, name); err != nil {
			return err
		}
	}
	err = steps.OpenRun(ctx, s.env, steps.OpenOptions{ToolVersion: version(), Steal: a.steal, Amend: amend, Redact: a.redact, Stale: s.stale})
	if err != nil {
		return err
	}
	defer s.env.Journal.Close(ctx)
	o := steps.WalkOptions{Until: engine.StepID(f.until), Show: a.show()}
	for _, name := range f.approve {
		o.Approve = append(o.Approve, engine.Approval{Name: name, By: f.by})
	}
	if a.interactive() && !a.json {
		o.Ask = a.askApproval
	}
	a.summary.Outcomes, err = steps.Walk(ctx, s.env, o)
	a.closing(s, f, err)
	return err
}

// accept settles which plan is applied: the run's own, a changed one, a saved one or a new one.
// env.Plan stays nil where there is nothing to do. amend means that the run takes the plan in place
// of its own.
func (a *app) accept(ctx context.Context, s *subject, f applyFlags) (amend bool, err error) {
	run, err := steps.LookForRun(ctx, s.env.Target)
	if err != nil {
		return false, steps.Refused(ctx, s.env, err)
	}
	mine := run != nil && run.Name == s.rb.Name
	if s.plan != nil && s.path != fromTarget {
		if err := a.fresh(s, run); err != nil {
			return false, err
		}
	}
	if mine && !run.Active() && s.plan == nil {
		a.summary.Message = fmt.Sprintf("run %s of %s is %s: nothing to do", run.ID, run.Name, run.State)
		if run.State != "aborted" {
			a.summary.Next = "nothing; to begin anew with this target, DROP SCHEMA pgrunbook CASCADE there takes the journal of the finished run away; then the same command"
			return false, nil
		}
	}
	switch {
	case s.plan != nil && run.Active():
		return a.acceptSaved(ctx, s, run)
	case s.plan != nil:
		if s.plan.Blocking() {
			return false, preflightFailed(s.plan)
		}
		s.env.Plan = s.plan
		return false, steps.CheckDrift(ctx, s.env, s.plan)
	case mine && run.Active() && run.SameRunbook(s.env):
		s.env.Plan = run.Plan
		a.logger().Info(fmt.Sprintf("run %s goes on: %d of %d steps are done", run.ID, run.Done, run.All))
		return false, nil
	}
	return a.acceptNew(ctx, s, f)
}

// acceptSaved continues a run with a saved plan: its own, or one that was planned in mid-run from a
// changed runbook.
func (a *app) acceptSaved(ctx context.Context, s *subject, run *steps.Existing) (amend bool, err error) {
	if run.Name == s.plan.Name && s.plan.Digest() != run.Plan.Digest() && s.plan.Created.Equal(run.Plan.Created) {
		p, err := steps.AmendRun(ctx, s.env, version())
		if err != nil {
			return false, err
		}
		amend = p.Digest() == s.plan.Digest()
	}
	s.env.Plan, s.env.Scope = s.plan, nil // where it differs, the journal says in what
	return amend, nil
}

// acceptNew plans, shows the plan and asks for a yes.
func (a *app) acceptNew(ctx context.Context, s *subject, f applyFlags) (amend bool, err error) {
	if !f.autoApprove && (!a.interactive() || a.json) {
		return false, engine.Errorf(engine.ClassApproval, "Pass a saved plan (pgrunbook plan --out F, then pgrunbook apply F), or --auto-approve.",
			"no terminal to ask on, and neither a saved plan nor --auto-approve")
	}
	p, run, err := a.makePlan(ctx, s)
	if err != nil {
		return false, err
	}
	if !a.json {
		if err := a.print(p, planForm{}); err != nil {
			return false, err
		}
	}
	if p.Blocking() {
		return false, preflightFailed(p)
	}
	if !f.autoApprove {
		if err := a.askYes(ctx, "Apply this plan? Only the word yes begins it: "); err != nil {
			return false, err
		}
		a.began = time.Now() // a person's thinking is no part of the walk
	}
	s.env.Plan, s.env.Scope = p, nil
	return run != nil, nil
}

// approveLine is what the hint of an error says to type for the approval that was missing.
var approveLine = regexp.MustCompile(`pgrunbook approve \S+ --by WHO`)

// nextAfter says what to type after a command that failed: again, once what was missing is approved.
func nextAfter(err error, again string) string {
	if approve := approveLine.FindString(engine.HintOf(err)); approve != "" {
		return approve + ", then " + again
	}
	if engine.ClassOf(err) == engine.ClassAmbiguous { // the same command would only say it again, or worse
		return "what is said above; pgrunbook status shows who may write; only then " + again
	}
	return again
}

// closing says how it ended and what to type next.
func (a *app) closing(s *subject, f applyFlags, err error) {
	again := "pgrunbook apply"
	if s.path != fromTarget {
		again += " " + s.path
	}
	var aborting *steps.AbortBegunError
	done := 0
	for _, o := range a.summary.Outcomes {
		if o.State == engine.StepDone {
			done++
		}
	}
	switch {
	case errors.As(err, &aborting):
		a.summary.Next = aborting.Command
	case err != nil:
		a.summary.Next = nextAfter(err, again)
		if engine.ClassOf(err) == engine.ClassDifferences { // the same command finds them again
			a.summary.Next = strings.Replace(again, "apply", "verify", 1) + ", once what differs is mended; " + again + " goes on where both sides are equal"
		}
		if errors.As(err, new(signalError)) {
			a.summary.Message = "what is done is kept: the same command goes on from here"
		}
	case done < len(a.summary.Outcomes):
		a.summary.Message, a.summary.Next = "stopped after "+f.until+", as asked", again
	case !s.rb.Cutover.Enabled:
		a.summary.Message = "every step is done: the source takes writes, the target was near it when this ended"
		a.summary.Next = again + " --until catch_up, for one more round"
	default:
		a.summary.Message = "every step is done: the target takes writes"
		a.summary.Next = "pgrunbook finish, once the way back is no longer needed"
	}
}

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps"
)

func newPlan(a *app) *cobra.Command {
	var form planForm
	var out string
	var detailed bool
	cmd := &cobra.Command{
		Use:   "plan [RUNBOOK]",
		Short: "Look at both servers and say what apply will do",
		Long: "plan reads both servers in sessions that cannot write, runs the preflight and prints every step with its\n" +
			"statements, hazards and estimates. With --out it saves the plan: apply FILE then runs exactly that.\n\n" + exitHelp(),
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.plan(cmd.Context(), args, form, out, detailed) },
	}
	a.withVars(cmd)
	form.flags(cmd)
	cmd.Flags().StringVarP(&out, "out", "o", "", "save the plan to a file")
	cmd.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit 2 when work is pending, 0 when there is none")
	a.withJSON(cmd, "the plan as JSON on stdout, then a summary line")
	return cmd
}

func (a *app) plan(ctx context.Context, args []string, form planForm, out string, detailed bool) error {
	form.json = a.json
	path, err := findRunbook(args)
	if err != nil {
		return err
	}
	s, err := a.open(ctx, []string{path})
	if err != nil {
		return err
	}
	if s.plan != nil {
		return usageError("Print it: pgrunbook show "+path, "%s is a saved plan, not a runbook", path)
	}
	p, run, err := a.makePlan(ctx, s)
	if err != nil {
		return err
	}
	if err := a.print(p, form); err != nil {
		return err
	}
	if out != "" {
		if err := writePlan(out, p); err != nil {
			return err
		}
		a.summary.Message = "saved to " + out
	}
	if p.Blocking() {
		return preflightFailed(p)
	}
	a.summary.Next = "pgrunbook apply " + path
	if out != "" {
		a.summary.Next = "pgrunbook apply " + out
	}
	pending := run == nil || run.Done < run.All || !run.SameRunbook(s.env)
	if !pending {
		a.summary.Message, a.summary.Next = "every step is done", "pgrunbook finish"
	}
	if detailed && pending {
		a.exit = exitPending
	}
	return nil
}

// makePlan plans a new run, or what is left of the one on the target.
func (a *app) makePlan(ctx context.Context, s *subject) (*engine.Plan, *steps.Existing, error) {
	run, err := steps.LookForRun(ctx, s.env.Target)
	if err != nil {
		p, err := steps.PlanRefused(ctx, s.env, version(), err)
		return p, nil, err
	}
	if !run.Active() || run.Name != s.rb.Name {
		p, err := steps.MakePlan(ctx, s.env, version())
		return p, nil, err
	}
	a.logger().Info(fmt.Sprintf("run %s goes on: %d of %d steps are done", run.ID, run.Done, run.All))
	p := run.Plan
	if !run.SameRunbook(s.env) {
		if p, err = steps.AmendRun(ctx, s.env, version()); err != nil {
			return nil, run, err
		}
	}
	if p, err = steps.Recheck(ctx, s.env, p, run.Owner); p != nil {
		p.Flips = run.Flips
	}
	return p, run, err
}

func preflightFailed(p *engine.Plan) error {
	n := 0
	for _, f := range p.Findings {
		if f.Severity == engine.SeverityError {
			n++
		}
	}
	return engine.Errorf(engine.ClassPreflight, "Each finding says what to type; then plan again.", "preflight found %s", engine.Plural(n, "error"))
}

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
	"github.com/pgrunbook/pgrunbook/steps"
)

func newFollow(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "follow [RUNBOOK | PLAN]",
		Short: "Carry the target's changes back to the closed source, until stopped",
		Long:  "follow makes reverse passes after a cutover, so that a rollback finds little to do. Ctrl-C ends it.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			s, err := a.openRun(ctx, args, steps.OpenOptions{})
			if err != nil {
				return err
			}
			defer s.env.Journal.Close(ctx)
			err = steps.FollowBack(ctx, s.env, a.show())
			var sig signalError
			if errors.As(err, &sig) {
				a.summary.Message, a.summary.Next = "stopped following", "pgrunbook rollback "+s.path+", or pgrunbook finish"
			}
			return err
		},
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withSteal(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	return cmd
}

func newRehearse(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rehearse [RUNBOOK | PLAN]",
		Short: "Make the freeze up to the switch on the live pair, let it go, and say what it cost",
		Long: "rehearse holds writes as the cutover would, makes the final pass and sets the sequences, and lets writers go on\n" +
			"at the source. Nothing is repointed. The gate must stand: pgrunbook apply --until arm.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, asJSON := cmd.Context(), a.json
			a.json = false // one object, not the stream of events
			s, err := a.openRun(ctx, args, steps.OpenOptions{})
			if err != nil {
				return err
			}
			defer s.env.Journal.Close(ctx)
			r, err := steps.Rehearse(ctx, s.env, a.show())
			if err != nil {
				return err
			}
			blocked := fmt.Sprintf("writes were blocked for %s of %s, %d rows carried", r.Blocked.Round(time.Millisecond), r.Budget, r.Rows)
			if asJSON {
				return view.WriteLine(a.stdout, view.LineRehearsal, blocked, r, time.Now())
			}
			last := time.Duration(0)
			for _, m := range r.Marks {
				fmt.Fprintf(a.stdout, "%-10s %8s\n", m.Name, (m.After - last).Round(100*time.Microsecond))
				last = m.After
			}
			_, err = fmt.Fprintf(a.stdout, "%s\nof the cutover: %s\n", blocked, r.Predicted)
			return err
		},
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withSteal(cmd)
	a.withJSON(cmd, "one JSON object on stdout")
	return cmd
}

package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
	"github.com/pgrunbook/pgrunbook/engine"
)

// planForm says how a plan is printed.
type planForm struct {
	json     bool
	markdown bool
	maxBytes int
	whole    bool // every action, as with --verbose
}

func (f *planForm) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.markdown, "markdown", false, "as markdown, for a comment on a change request")
	cmd.Flags().IntVar(&f.maxBytes, "max-bytes", 60000, "longest markdown; verdict and risks are kept")
}

func newShow(a *app) *cobra.Command {
	var f planForm
	cmd := &cobra.Command{
		Use:   "show PLAN",
		Short: "Print a saved plan",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			a.json = false // the result is the plan, not a stream
			p, err := readPlan(args[0])
			if err != nil {
				return err
			}
			if p == nil {
				return usageError("Make one: pgrunbook plan --out F", "%s is no saved plan", args[0])
			}
			return a.print(p, f)
		},
	}
	f.flags(cmd)
	cmd.Flags().BoolVar(&f.json, "json", false, "as JSON, with digest and verdict")
	return cmd
}

// print writes a plan to stdout; in a stream of JSON lines it is one of type plan.
func (a *app) print(p *engine.Plan, f planForm) error {
	switch {
	case f.json && a.json:
		return view.WritePlanLine(a.stdout, p, time.Now())
	case f.json:
		return view.WritePlanJSON(a.stdout, p)
	case f.markdown:
		return view.WritePlanMarkdown(a.stdout, p, f.maxBytes)
	}
	return view.WritePlan(a.stdout, p, view.PlanOptions{Verbose: a.verbose || f.whole, Width: view.Columns(a.rawOut)})
}

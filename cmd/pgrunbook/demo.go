package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/examples"
	"github.com/pgrunbook/pgrunbook/internal/demo"
)

func newDemo(a *app) *cobra.Command {
	o := demo.Options{Runbook: examples.Demo}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Migrate between two throw-away servers under live writes, and prove that nothing was lost",
		Long: "demo starts two PostgreSQL servers of different majors, fills one, lets clients write to it all the time,\n" +
			"and walks a runbook through plan, apply and cutover. Then it compares every row, and every commit that\n" +
			"a client was told of, without any of pgrunbook's own code. Nothing is left behind.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out, o.Run = a.stderr, runSelf
			result, err := demo.Run(cmd.Context(), o)
			if errors.Is(err, demo.ErrDifferent) {
				fmt.Fprintln(a.stdout, result)
				return &engine.Error{Class: engine.ClassDifferences, Op: "demo", Err: err, Hint: "The rows are named above; please report this."}
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, result)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Keep, "keep", false, "leave the servers up until Ctrl-C, and say how to look around")
	f.IntVar(&o.Scale, "scale", 10, "pgbench scale of the source; 1 is 100,000 rows")
	f.IntVar(&o.Clients, "clients", 4, "clients that write all the time and keep a ledger")
	f.IntVar(&o.Source, "source-major", 0, "major version of the source (default 15, or the oldest at hand)")
	f.IntVar(&o.Target, "target-major", 0, "major version of the target (default the newest at hand)")
	return cmd
}

// demoVariable tells a command that the demo runs it: nobody types anything after it.
const demoVariable = "PGRUNBOOK_OF_DEMO"

func (a *app) ofDemo() bool { return a.env(demoVariable) != "" }

// runSelf runs this program in a process of its own, as a person would.
func runSelf(ctx context.Context, dir string, env []string, args ...string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), demoVariable+"=1"), env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A Ctrl-C reaches everybody in the terminal's group. With ours the child would get two, and the
	// second one ends it at once, in the middle of a freeze too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

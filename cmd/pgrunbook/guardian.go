package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/steps"
)

// newGuardian is not for people: a freeze starts it, to end a flip whose runner died.
func newGuardian(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "guardian",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Where the runner's end of a pipe is gone, so may be the terminal's.
			signal.Ignore(syscall.SIGPIPE)
			return steps.Guard(context.WithoutCancel(cmd.Context()), a.stdin, a.stdout, a.logger())
		},
	}
}

// guardianCommand starts this program as the guardian; a program that cannot find itself has none.
func guardianCommand() []string {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	return []string{self, "guardian"}
}

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps"
)

func newPause(a *app) *cobra.Command {
	return a.pausing("pause [RUNBOOK | PLAN]", "Make the runner stop at its next safe point and wait", true)
}

func newUnpause(a *app) *cobra.Command {
	return a.pausing("unpause [RUNBOOK | PLAN]", "Let a paused run go on", false)
}

func (a *app) pausing(use, short string, paused bool) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, source, err := a.openServers(cmd.Context(), args)
			if err != nil {
				return err
			}
			runs, err := steps.Pause(cmd.Context(), target, whoAmI(), paused)
			if err != nil {
				return a.ended(cmd.Context(), target, source, err)
			}
			a.summary.Message = "paused within seconds; capture goes on"
			if !runs {
				a.summary.Message = "no command works on the run now: the next one waits at its first safe point; capture goes on"
			}
			a.summary.Next = "pgrunbook unpause"
			if !paused {
				a.summary.Message, a.summary.Next = "the run goes on", "pgrunbook status --watch"
			}
			return nil
		},
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	return cmd
}

func newSet(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set NAME=VALUE... [RUNBOOK | PLAN]",
		Short: "Change a tunable of the run while it works: workers, or a limit",
		Long: `Change a tunable of the run while it works; it takes effect within seconds.

  workers       sessions on each side; 0 goes back to the runbook's number
  copy_rate     bytes per second that are read from the source, such as 20MiB/s
  delta_size, replica_lag, sessions
                the max of this limit; it does what the runbook's limit does, or pauses

A limit set to "off" is the runbook's again, one set to "unlimited" is none.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.set(cmd.Context(), args) },
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	return cmd
}

// tunables are what set may change, each with its check: the number of workers and the limits.
func tunables() map[string]func(value string, c *journal.Control) error {
	list := map[string]func(value string, c *journal.Control) error{"workers": setWorkers}
	for _, kind := range runbook.LimitKinds() {
		list[kind] = func(value string, c *journal.Control) error { return setLimit(kind, value, c) }
	}
	return list
}

func setWorkers(value string, c *journal.Control) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > 64 {
		return usageError("0 goes back to the runbook's number.", "workers is a number from 0 to 64, not %q", value)
	}
	c.Workers = n
	return nil
}

func setLimit(kind, value string, c *journal.Control) error {
	if c.Settings == nil {
		c.Settings = map[string]string{}
	}
	switch value {
	case "off", "0":
		delete(c.Settings, kind)
		return nil
	case steps.Unlimited:
	default:
		if _, err := runbook.ParseLimit(kind, value); err != nil {
			return usageError(`"off" goes back to the runbook's limit, "unlimited" is none.`, "%s: %w", kind, err)
		}
	}
	c.Settings[kind] = value
	return nil
}

func (a *app) set(ctx context.Context, args []string) error {
	var settings, rest []string
	for _, arg := range args {
		if strings.Contains(arg, "=") {
			settings = append(settings, arg)
		} else {
			rest = append(rest, arg)
		}
	}
	if len(settings) == 0 || len(rest) > 1 {
		return usageError("Write for example: pgrunbook set workers=8", "what is to be set?")
	}
	var probe journal.Control
	if err := setAll(settings, &probe); err != nil {
		return err
	}
	target, err := a.openServer(ctx, rest)
	if err != nil {
		return err
	}
	_, err = steps.SetControl(ctx, target, whoAmI(), func(c *journal.Control) {
		_ = setAll(settings, c) // checked above
	})
	if err != nil {
		return noRun(err)
	}
	a.summary.Message = "set " + strings.Join(settings, ", ") + "; it takes effect within seconds"
	return nil
}

func setAll(settings []string, c *journal.Control) error {
	known := tunables()
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		set := known[name]
		if set == nil {
			names := slices.Sorted(maps.Keys(known))
			hint := "Tunables are: " + strings.Join(names, ", ") + ". Others change in the runbook; apply it again."
			if near := runbook.SuggestKind(name, names); near != "" {
				hint = fmt.Sprintf("Did you mean %q? %s", near, hint)
			}
			return usageError(hint, "%q cannot be set", name)
		}
		if err := set(value, c); err != nil {
			return err
		}
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

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
			p, err := steps.Pause(cmd.Context(), target, whoAmI(), paused)
			if err != nil {
				return a.ended(cmd.Context(), target, source, err)
			}
			a.summary.Message, a.summary.Next = unpausedText(p), withFile("pgrunbook status", args)
			if paused {
				a.summary.Message, a.summary.Next = pausedText(p), withFile("pgrunbook unpause", args)
			}
			return nil
		},
	}
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withJSON(cmd, "one event a line on stdout, the last a summary")
	return cmd
}

// pausedText says when a pause was asked for, by whom, and whether it has taken effect.
func pausedText(p steps.Paused) string {
	text := fmt.Sprintf("pause asked for by %s at %s", p.By, p.Asked.UTC().Format(time.RFC3339))
	step := ""
	if p.Step != "" {
		step = fmt.Sprintf(" in step %s", p.Step)
	}
	switch {
	case p.Holder == nil:
		text += "; no command works on the run now: the next one waits at its first safe point"
	case p.Heard:
		text += fmt.Sprintf(", and heard by %s%s: it stands still once what is under way there has ended", processText(p.Holder), step)
	default:
		text += fmt.Sprintf(", not heard yet: %s goes on to its next safe point%s, and pgrunbook status says whether it has heard", processText(p.Holder), step)
	}
	return text + "; capture goes on"
}

func unpausedText(p steps.Paused) string {
	switch {
	case !p.Was:
		return "it was not paused"
	case p.Holder == nil:
		return "paused no more; no command works on the run now"
	default:
		return fmt.Sprintf("%s goes on within seconds", processText(p.Holder))
	}
}

func processText(h *journal.Holder) string {
	return fmt.Sprintf("process %d of %s on %s", h.PID, h.User, h.Host)
}

func newSet(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set [NAME=VALUE...] [RUNBOOK | PLAN]",
		Short: "Change a tunable of the run while it works: workers, or a limit; without one, show them",
		Long: `Change a tunable of the run while it works; it takes effect within seconds. Without
NAME=VALUE it shows what holds now.

  workers       sessions on each side; 0 goes back to the runbook's number
  copy_rate     bytes per second that are read from the source, such as 20MiB/s
  delta_size, replica_lag, sessions
                the max of this limit; it does what the runbook's limit does, or pauses

A limit set to "off" is the runbook's again, one set to "unlimited" is none.`,
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
	if len(rest) > 1 || len(rest) == 1 && tunables()[rest[0]] != nil {
		return usageError("Write for example: pgrunbook set workers=8", "what is to be set?")
	}
	if len(settings) == 0 {
		return a.showTunables(ctx, rest)
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

// showTunables prints what holds now, and how it is changed.
func (a *app) showTunables(ctx context.Context, args []string) error {
	target, err := a.openServer(ctx, args)
	if err != nil {
		return err
	}
	list, last, err := steps.Tunables(ctx, target)
	if err != nil {
		return noRun(err)
	}
	var lines, pairs []string
	for _, t := range list {
		line := fmt.Sprintf("  %-12s %-20s", t.Name, t.Value)
		if t.Runbook != "" {
			line += " set; in the runbook: " + t.Runbook
		}
		lines, pairs = append(lines, strings.TrimRight(line, " ")), append(pairs, t.Name+"="+t.Value)
	}
	if a.json {
		a.summary.Message = strings.Join(pairs, "; ")
		return nil
	}
	if last.By != "" {
		lines = append(lines, fmt.Sprintf("\nLast set, paused or let go on by %s at %s.", last.By, last.At.UTC().Format(time.RFC3339)))
	}
	_, err = fmt.Fprintln(a.stdout, strings.Join(lines, "\n"))
	a.summary.Next = withFile("pgrunbook set NAME=VALUE", args)
	return err
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

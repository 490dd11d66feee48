package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
	"github.com/pgrunbook/pgrunbook/steps"
)

// watchEvery is how often status --watch looks.
const watchEvery = 2 * time.Second

func newStatus(a *app) *cobra.Command {
	watch, certificate := false, false
	cmd := &cobra.Command{
		Use:   "status [RUNBOOK | PLAN]",
		Short: "Say who may write, how far the run is, and what to type",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if certificate {
				return a.certificate(cmd.Context(), args)
			}
			return a.status(cmd.Context(), args, watch)
		},
	}
	cmd.Flags().BoolVar(&certificate, "certificate", false, "the record of the latest freeze: drain, proof, final pass, times")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "look again every two seconds, until the run ends")
	a.withVars(cmd)
	a.withTarget(cmd)
	a.withJSON(cmd, "one JSON object on stdout for each look")
	return cmd
}

func (a *app) status(ctx context.Context, args []string, watch bool) error {
	asJSON := a.json
	a.json = false // each look is one object
	target, source, err := a.openServers(ctx, args)
	if err != nil {
		return err
	}
	for {
		st, err := steps.ReadStatus(ctx, target, source)
		if errors.Is(err, steps.ErrNoRun) && source != nil {
			return a.left(ctx, source, asJSON, err)
		}
		if err != nil {
			return noRun(err)
		}
		st.Type = withFile(st.Type, args)
		if watch && !asJSON && terminal(a.rawOut) {
			fmt.Fprint(a.rawOut, "\x1b[H\x1b[2J") // home, clear
		}
		if asJSON {
			err = view.WriteStatusJSON(a.stdout, statusView(st), st.At)
		} else {
			err = view.WriteStatus(a.stdout, statusView(st), view.PlanOptions{Verbose: a.verbose, Width: view.Columns(a.rawOut)})
		}
		if err != nil || !watch || st.State != "active" {
			return err
		}
		select {
		case <-ctx.Done():
			var sig signalError
			if errors.As(context.Cause(ctx), &sig) {
				return &shownError{code: sig.code(), err: sig}
			}
			return context.Cause(ctx)
		case <-time.After(watchEvery):
		}
	}
}

// typed are the commands of a run in what status says to type, each up to where a file is named.
var typed = regexp.MustCompile(`pgrunbook (?:approve \S+ --by WHO|set NAME=VALUE|(?:apply|rollback|verify|finish|abort|unpause|plan|status)(?: --[a-z-]+)*)`)

// withFile names the file of args in what is to be typed, where the directory does not say which it is.
func withFile(next string, args []string) string {
	if len(args) == 0 {
		return next
	}
	if only, err := findRunbook(nil); err == nil && filepath.Clean(only) == filepath.Clean(args[0]) {
		return next
	}
	return typed.ReplaceAllString(next, "$0 "+strings.ReplaceAll(args[0], "$", "$$"))
}

// left says what the source still holds of a run that the target knows nothing of: after finish its
// closed gate.
func (a *app) left(ctx context.Context, source *steps.Server, asJSON bool, cause error) error {
	l, err := steps.ReadLeft(ctx, source)
	if err != nil || l == nil {
		return noRun(cause)
	}
	gate := "open"
	if l.Closed {
		gate = "closed"
	}
	if asJSON {
		return view.WriteLine(a.stdout, view.LineLeft, fmt.Sprintf("the target has no run; the source has what run %s left, and is %s", l.Run, gate), struct {
			*steps.Left
			Back *view.StatusBack `json:"rollback"`
		}{l, backView(&l.Back)}, time.Now())
	}
	if l.Finished {
		fmt.Fprintf(a.stdout, "Run %s is finished; the source is %s.\n\n", l.Run, gate)
	} else {
		fmt.Fprintf(a.stdout, "The target has no run; the source holds run %s, and is %s.\n\n", l.Run, gate)
	}
	fmt.Fprintf(a.stdout, "  old side the source: %s\n", view.RefusedText(l.Refused, l.ReadOnly))
	for _, c := range l.Connected {
		fmt.Fprintf(a.stdout, "  old side still connected to the source: %s\n", c)
	}
	fmt.Fprintf(a.stdout, "  rollback not possible: %s\n", l.Back.Why)
	next := l.Remove
	if l.Finished {
		next = nothingNext(l)
	}
	_, err = fmt.Fprintf(a.stdout, "\nNext: %s\n", next)
	return err
}

// certificate prints the record of the latest freeze.
func (a *app) certificate(ctx context.Context, args []string) error {
	asJSON := a.json
	a.json = false
	target, _, err := a.openServers(ctx, args)
	if err != nil {
		return err
	}
	c, err := steps.ReadCertificate(ctx, target)
	if err != nil {
		return noRun(err)
	}
	return a.writeCertificate(c, asJSON)
}

func (a *app) writeCertificate(c steps.Certificate, asJSON bool) error {
	if asJSON {
		return view.WriteLine(a.stdout, view.LineCertificate, fmt.Sprintf("freeze from %s to %s", c.From, c.To), c, time.Now())
	}
	_, err := fmt.Fprint(a.stdout, c)
	return err
}

// statusView puts a status into the view's words.
func statusView(st steps.Status) view.Status {
	v := view.Status{
		Writes: string(st.Writes), Since: st.Since, Run: st.Run, Name: st.Runbook, State: string(st.State), Started: st.Started, Phase: st.Phase, Step: st.Step, Next: st.Type,
	}
	if h := st.Holder; h != nil && h.Alive {
		v.Holder = fmt.Sprintf("process %d of %s on %s since %s", h.PID, h.User, h.Host, h.Since.UTC().Format(time.RFC3339))
	}
	if st.Paused {
		v.Paused = "by " + st.By
	}
	if st.LagSeconds != nil {
		v.Lag, v.LagKnown = time.Duration(*st.LagSeconds*float64(time.Second)), true
	}
	v.Passed = st.Passed
	v.Pending, v.PendingAt = st.Pending, st.PendingAt
	if st.Predicted.WriteBlock > 0 {
		v.Predicted = &st.Predicted
	}
	v.Back = backView(st.Back)
	for _, note := range append([]string{st.Apart, st.Shut, st.Held, st.Waiting, st.SourceNote}, st.Blockers...) {
		if note != "" && (note == st.Waiting || !strings.Contains(st.Waiting, note)) { // who is in the way is mostly named there
			v.Notes = append(v.Notes, note)
		}
	}
	v.After = afterView(st.After)
	for _, s := range st.Steps {
		step := view.StatusStep{ID: s.ID, State: s.State, Error: s.Error, Again: s.Again}
		if !s.Ended.IsZero() {
			step.Elapsed = s.Ended.Sub(s.Started)
		}
		v.Steps = append(v.Steps, step)
	}
	for _, t := range st.Tables {
		v.Tables = append(v.Tables, view.StatusTable{Name: t.Name, State: t.State, Rows: t.Rows, Bytes: t.Bytes, BytesAll: t.BytesAll})
	}
	return v
}

func afterView(a *steps.AfterFlip) *view.StatusAfter {
	if a == nil {
		return nil
	}
	v := &view.StatusAfter{Old: string(a.Old), Refused: a.Refused, ReadOnly: a.ReadOnly, Standbys: a.Standbys}
	for _, c := range a.Connected {
		v.Connected = append(v.Connected, c.String())
	}
	v.Back = backView(a.Back)
	return v
}

func backView(b *steps.Back) *view.StatusBack {
	if b == nil {
		return nil
	}
	return &view.StatusBack{
		Possible: b.Possible, Why: b.Why, Hint: b.Hint, Rows: b.Pending, Takes: b.Estimate, Seconds: b.Estimate.Seconds(),
		Measured: b.Measured, Since: b.Since, Proved: b.Proved, Unasked: b.Unasked,
	}
}

package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps"
)

// app is one invocation: its outputs, its environment and the flags that all commands share.
type app struct {
	stdin  io.Reader
	lines  lineReader // of stdin
	stdout io.Writer  // masked
	stderr io.Writer  // masked
	rawOut io.Writer  // to see whether it is a terminal
	rawErr io.Writer
	getenv func(string) (string, bool)
	began  time.Time

	secrets  []string
	redactor atomic.Pointer[steps.Redactor]

	noColor  bool
	verbose  bool
	quiet    bool
	input    bool
	json     bool
	vars     []string
	varFiles []string
	target   string
	steal    bool

	viewing sync.Mutex // of who is not the command's own goroutine
	view    view.View
	summary view.Summary
	exit    int // of a command that ended well
}

func newApp(stdin io.Reader, stdout, stderr io.Writer, getenv func(string) (string, bool)) *app {
	a := &app{stdin: stdin, rawOut: stdout, rawErr: stderr, getenv: getenv, began: time.Now(), input: true}
	a.stdout, a.stderr = maskedWriter{a, stdout}, maskedWriter{a, stderr}
	return a
}

// maskedWriter masks with the secrets known at the time of the write.
type maskedWriter struct {
	a *app
	w io.Writer
}

func (m maskedWriter) Write(p []byte) (int, error) {
	return m.a.redactor.Load().Writer(m.w).Write(p)
}

func (a *app) redact(text string) string { return a.redactor.Load().String(text) }

// hide masks secrets from now on.
func (a *app) hide(secrets ...string) {
	a.secrets = append(a.secrets, secrets...)
	a.redactor.Store(steps.NewRedactor(a.secrets))
}

// env gives an environment variable, or "".
func (a *app) env(name string) string {
	v, _ := a.getenv(name)
	return v
}

func (a *app) color() string {
	if a.noColor {
		return "never"
	}
	return "auto"
}

func (a *app) mode() view.Mode {
	switch {
	case a.json:
		return view.JSON
	case a.quiet:
		return view.Quiet
	default:
		return view.Auto
	}
}

// show opens the view that shows what happens from now on. execute closes it.
func (a *app) show() view.View {
	if a.view == nil {
		stderr := a.stderr
		if terminal(a.rawErr) {
			stderr = a.rawErr // the view must see that it is one
		}
		o := view.Options{Mode: a.mode(), Stdout: a.stdout, Stderr: stderr, Color: a.color(), Verbose: a.verbose, Version: version(), Getenv: a.env, Redact: a.redact}
		if fps := a.env("PGRUNBOOK_PROGRESS_FPS"); fps != "" {
			_, _ = fmt.Sscan(fps, &o.FPS) // what is no number means the default
		}
		v := view.New(o)
		a.viewing.Lock()
		defer a.viewing.Unlock()
		a.view = v
	}
	return a.view
}

// notice tells a person something, whatever the command is doing. The last one does not wait for the
// view, in which a question may be open. It is called from any goroutine.
func (a *app) notice(text string, last bool) {
	a.viewing.Lock()
	v := a.view
	a.viewing.Unlock()
	if v == nil || last {
		_, _ = fmt.Fprintln(a.stderr, text)
		return
	}
	slog.New(v.Handler()).Warn(text)
}

// logger is for diagnostics; it writes where the view does.
func (a *app) logger() *slog.Logger { return slog.New(a.show().Handler()) }

// complain shows an error of a command without a view.
func (a *app) complain(err error) {
	if err == nil {
		return
	}
	if shown, ok := err.(*shownError); ok && shown != nil { //nolint:errorlint // only the outermost was shown
		return
	}
	color := !a.noColor && view.UseColor(a.color(), terminal(a.rawErr), a.env)
	log := slog.New(view.LogHandler(a.stderr, view.LogOptions{Color: color}))
	log.Error(engine.Text(err))
	if hint := engine.HintOf(err); hint != "" {
		log.Info(hint)
	}
}

// interactive reports whether a person can be asked.
func (a *app) interactive() bool {
	if !a.input || a.env("PGRUNBOOK_INPUT") == "0" || isTrue(a.env("CI")) {
		return false
	}
	if !terminal(a.stdin) {
		return false
	}
	prompt, done, err := a.prompt()
	if err == nil {
		done()
	}
	return err == nil && prompt != nil
}

// prompt gives where a question is seen: stderr, or the terminal itself when stderr goes elsewhere.
func (a *app) prompt() (w io.Writer, done func(), err error) {
	if terminal(a.rawErr) {
		return a.stderr, func() {}, nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	return maskedWriter{a, tty}, func() { _ = tty.Close() }, nil
}

func isTrue(s string) bool {
	s = strings.ToLower(s)
	return s != "" && s != "0" && s != "false"
}

func terminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && (isatty.IsTerminal(file.Fd()) || isatty.IsCygwinTerminal(file.Fd()))
}

// newRoot makes the command tree.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "pgrunbook",
		Short:         "Move a live PostgreSQL database by a reviewed runbook",
		Long:          "pgrunbook moves a live PostgreSQL database to another server by walking a reviewed runbook.\n\n" + exitHelp(),
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("See pgrunbook --help.", "unknown command %q", args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetIn(a.stdin)
	root.SetVersionTemplate("pgrunbook {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("See "+cmd.CommandPath()+" --help.", "%w", err)
	})
	f := root.PersistentFlags()
	f.BoolVar(&a.noColor, "no-color", false, "no colours (also NO_COLOR)")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "show everything: each table, statement and skipped step")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "only warnings, errors and the closing lines")
	f.BoolVar(&a.input, "input", true, "ask on the terminal where a person is needed (also PGRUNBOOK_INPUT=0, CI)")
	for _, build := range []func(*app) *cobra.Command{
		newInit, newValidate, newFmt, newPlan, newShow, newApply, newApprove, newStatus, newVerify,
		newPause, newUnpause, newSet, newAbort, newRollback, newFollow, newRehearse, newFinish, newDemo, newGuardian, newVersion,
	} {
		cmd := build(a)
		if check := cmd.Args; check != nil {
			cmd.Args = func(cmd *cobra.Command, args []string) error {
				if err := check(cmd, args); err != nil {
					return usageError("Usage: "+cmd.UseLine(), "%w", err)
				}
				return nil
			}
		}
		root.AddCommand(cmd)
	}
	return root
}

// withVars adds the flags that give a runbook's variables.
func (a *app) withVars(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&a.vars, "var", nil, "value of a variable, NAME=VALUE; PGRUNBOOK_VAR_NAME for secrets")
	cmd.Flags().StringArrayVar(&a.varFiles, "var-file", nil, "file of variable values")
}

// withTarget adds the flag that names the target where no runbook is at hand.
func (a *app) withTarget(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.target, "target", "", "the target server, without a password: postgresql://..., or service=NAME (also PGRUNBOOK_TARGET_URL)")
}

// withSteal adds the flag of commands that take the run's locks.
func (a *app) withSteal(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.steal, "steal-lock", false, "end the runner that holds the run, if its machine is gone")
}

func (a *app) withJSON(cmd *cobra.Command, what string) {
	cmd.Flags().BoolVar(&a.json, "json", false, what)
}

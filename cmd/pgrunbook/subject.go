package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps"
)

// fromTarget is the path of a subject that was read from the run on the target.
const fromTarget = "--target"

// subject is what a run command works on: a runbook, a saved plan, or a run that is there.
type subject struct {
	rb   *runbook.Runbook
	plan *engine.Plan // the saved plan; nil for a runbook
	path string
	env  *steps.Env

	stale error // how the files beside the runbook differ from the reviewed ones, where a flip is to be ended all the same
}

// options says where a runbook's values come from.
func (a *app) options(validate bool) (runbook.Options, error) {
	vars := map[string]string{}
	for _, v := range a.vars {
		name, value, ok := strings.Cut(v, "=")
		if !ok || name == "" {
			return runbook.Options{}, usageError("Write for example: --var workers=8", "--var %q is not NAME=VALUE", v)
		}
		vars[name] = value
	}
	return runbook.Options{Vars: vars, VarFiles: a.varFiles, Getenv: a.getenv, Validate: validate, ToolVersion: version()}, nil
}

// loadRunbook reads a runbook with its steps and shows what is wrong with it. Warnings are shown
// and do not stop.
func (a *app) loadRunbook(path string) (*runbook.Runbook, error) {
	o, err := a.options(false)
	if err != nil {
		return nil, err
	}
	rb, diags := runbook.Load(path, o)
	a.hide(rb.Secrets()...)
	if err := secretArgument(rb, o.Vars); err != nil {
		return rb, err
	}
	diags = append(diags, steps.Check(rb)...)
	a.hide(rb.Secrets()...) // steps may compute secrets
	if err := a.writeDiagnostics(rb, diags); err != nil {
		return rb, err
	}
	if diags.HasErrors() {
		return rb, diagnosticsError(path, diags)
	}
	return rb, nil
}

// secretArgument refuses a sensitive value on the command line, but for a connection string that has no password.
func secretArgument(rb *runbook.Runbook, vars map[string]string) error {
	for _, v := range rb.Variables {
		value, given := vars[v.Name]
		address := strings.Contains(value, "://") || strings.Contains(value, "=")
		if v.Sensitive && given && value != "" && (!address || len(steps.Passwords(value)) > 0) {
			return usageError("Set PGRUNBOOK_VAR_"+v.Name+" in the environment, or write the value in a file for --var-file.",
				"--var %s has a sensitive value, which every user of this machine can read in the process list", v.Name)
		}
	}
	return nil
}

// diagnosticsError stands for diagnostics that were shown.
func diagnosticsError(path string, diags hcl.Diagnostics) error {
	n := len(diags.Errs())
	return &shownError{code: exitUsage, err: engine.Errorf(engine.ClassRunbook, "Mend what is shown, and run the same command again.", "%s has %s", path, engine.Plural(n, "error"))}
}

// findRunbook gives the argument, or the only runbook of the working directory.
func findRunbook(args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	var found []string
	for _, pattern := range []string{"*.runbook.hcl", "*.runbook.hcl.json"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("looking for runbooks: %w", err)
		}
		found = append(found, names...)
	}
	switch len(found) {
	case 0:
		return "", usageError("Name one, or write one for a live source: pgrunbook init", "there is no *.runbook.hcl in this directory")
	case 1:
		return found[0], nil
	}
	return "", usageError("Name one of them.", "there are %d runbooks in this directory: %s", len(found), strings.Join(found, ", "))
}

// open reads the file that a run command names, runbook or plan, and prepares both servers.
func (a *app) open(ctx context.Context, args []string) (*subject, error) {
	if a.useTarget(args) {
		return a.openTarget(ctx)
	}
	path, err := findRunbook(args)
	if err != nil {
		return nil, err
	}
	s := &subject{path: path}
	if s.plan, err = readPlan(path); err != nil {
		return nil, err
	}
	if s.plan != nil {
		if len(a.vars)+len(a.varFiles) > 0 {
			return nil, errVarsOfPlan()
		}
		if s.rb, err = steps.LoadPlan(s.plan, runbook.Options{Getenv: a.getenv}); s.rb != nil {
			a.hide(s.rb.Secrets()...)
		}
	} else {
		s.rb, err = a.loadRunbook(path)
	}
	return a.prepare(ctx, s, err)
}

// prepare gives s both servers; err is how its runbook was read. Changed files keep nobody from ending a flip
// that is open.
func (a *app) prepare(ctx context.Context, s *subject, err error) (*subject, error) {
	stale := s.plan != nil && engine.ClassOf(err) == engine.ClassStale
	if err != nil && !stale {
		return nil, err
	}
	env, envErr := steps.NewEnv(s.rb, a.logger(), a.show())
	if envErr != nil {
		return nil, errors.Join(err, envErr)
	}
	env.Guardian = guardianCommand()
	s.env = env
	if stale {
		run, lookErr := steps.LookForRun(ctx, env.Target)
		if lookErr != nil || !run.FlipOpen() {
			return nil, err
		}
		a.logger().Warn(err.Error() + "; a flip is open: it is ended first, with what was reviewed")
		s.stale = err
	}
	return s, nil
}

func errVarsOfPlan() error {
	return usageError("Leave --var out, or plan again with it.", "a saved plan has its variables already")
}

// useTarget reports whether the target alone says what to work on.
func (a *app) useTarget(args []string) bool {
	return len(args) == 0 && (a.target != "" || a.env("PGRUNBOOK_TARGET_URL") != "")
}

// openTarget takes plan and runbook from the run on the target.
func (a *app) openTarget(ctx context.Context) (*subject, error) {
	url, err := a.targetURL()
	if err != nil {
		return nil, err
	}
	target, err := steps.NewServer(engine.Target, url, "")
	if err != nil {
		return nil, err
	}
	p, err := steps.AcceptedPlan(ctx, target)
	if err != nil {
		return nil, noRun(err)
	}
	s := &subject{plan: p, path: fromTarget}
	o := runbook.Options{Getenv: a.getenv, TargetURL: url, SourceURL: a.env("PGRUNBOOK_SOURCE_URL")}
	a.hide(steps.Passwords(o.SourceURL)...)
	if s.rb, err = steps.LoadPlan(p, o); s.rb != nil {
		a.hide(s.rb.Secrets()...)
	}
	return a.prepare(ctx, s, err)
}

// targetURL gives the connection string of --target or of the environment. One with a password
// would stand in the process list.
func (a *app) targetURL() (string, error) {
	if a.target == "" {
		url := a.env("PGRUNBOOK_TARGET_URL")
		a.hide(steps.Passwords(url)...)
		return url, nil
	}
	if secrets := steps.Passwords(a.target); len(secrets) > 0 {
		a.hide(secrets...)
		return "", usageError("Set PGRUNBOOK_TARGET_URL, keep the password in ~/.pgpass, or use --target service=NAME.",
			"--target has a password, which every user of this machine can read in the process list")
	}
	return a.target, nil
}

// noRun says what to type where a target has no run.
func noRun(err error) error {
	if errors.Is(err, steps.ErrNoRun) {
		return engine.Errorf(engine.ClassFailed, "Begin one: pgrunbook apply RUNBOOK", "%w", err)
	}
	return err
}

// errFinished says that there is no run on the target since it is finished.
var errFinished = fmt.Errorf("is finished: %w", steps.ErrNoRun)

// ended says of a target without an active run how its last one ended, as far as a side knows it; source may
// be nil.
func (a *app) ended(ctx context.Context, target, source *steps.Server, err error) error {
	if !errors.Is(err, steps.ErrNoRun) {
		return err
	}
	if e, lookErr := steps.LookForRun(ctx, target); lookErr == nil && e != nil {
		hint := "Nothing is to be done: pgrunbook status"
		switch {
		case e.Active():
			return engine.Errorf(engine.ClassFailed, "Run the same command again.", "run %s was begun while this command looked for one: %w", e.ID, err)
		case e.State == "aborted":
			hint = "A new one begins with pgrunbook plan. What the run made on the target goes with pgrunbook abort --drop-target"
		case e.State == "finished":
			return engine.Errorf(engine.ClassFailed, hint, "run %s %w", e.ID, errFinished)
		}
		return engine.Errorf(engine.ClassFailed, hint, "run %s is %s: %w", e.ID, e.State, steps.ErrNoRun)
	}
	if source == nil {
		return noRun(err)
	}
	if l, lookErr := steps.ReadLeft(ctx, source); lookErr == nil && l != nil && l.Finished {
		return engine.Errorf(engine.ClassFailed, "Nothing is to be done: pgrunbook status", "run %s %w", l.Run, errFinished)
	}
	return noRun(err)
}

// readPlan reads a saved plan; nil is a file that is none.
func readPlan(path string) (*engine.Plan, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usageError("Name a runbook or a saved plan that exists.", "%s does not exist", path)
	}
	if err != nil {
		return nil, usageError("Name a file that can be read.", "%w", err)
	}
	var head struct {
		Format      int             `json:"format"`
		ToolVersion string          `json:"tool_version"`
		Steps       json.RawMessage `json:"steps"`
	}
	if json.Unmarshal(data, &head) != nil || head.Format == 0 {
		return nil, nil //nolint:nilnil // a runbook, in either syntax
	}
	if head.Format > engine.PlanFormat {
		return nil, usageError("Use pgrunbook "+head.ToolVersion+" or newer, or plan again.", "%s has plan format %d, this build reads up to %d", path, head.Format, engine.PlanFormat)
	}
	p := &engine.Plan{}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, usageError("Plan again.", "%s is a damaged plan: %w", path, err)
	}
	return p, nil
}

// writePlan saves a plan for its owner's eyes: it holds no secret, but names everything.
func writePlan(path string, p *engine.Plan) error {
	data, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return fmt.Errorf("writing the plan as JSON: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".pgrunbook-plan-*") // mode 0600
	if err != nil {
		return fmt.Errorf("saving the plan: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone after the rename
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("saving the plan: %w", err)
	}
	return nil
}

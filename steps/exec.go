package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// execGrace is how long a command that is being stopped may tidy up before it is killed.
const execGrace = 300 * time.Millisecond

// execStep runs a command of the runbook. It never goes through a shell.
type execStep struct {
	person
	dir     string
	argv    []string
	undo    []string
	vars    map[string]runbook.Secret
	timeout time.Duration
	pinned  []string // files beside the runbook that the commands name
}

func decodeExec(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics) {
	body := runbook.DecodeBody(b)
	s := &execStep{
		dir:     b.Dir,
		argv:    body.Strings("command"), // no sensitive word: every user of the machine can read arguments
		undo:    body.Strings("undo"),
		vars:    body.SensitiveMap("env"),
		timeout: body.Duration("timeout", 0),
	}
	body.Require("command")
	for _, name := range []string{"command", "undo"} {
		argv := s.argv
		if name == "undo" {
			argv = s.undo
		}
		if body.Known(name) && (len(argv) == 0 || strings.TrimSpace(argv[0]) == "") {
			body.Errorf(name, "No program", `The first element of %s is the program, for example %s = ["./dns.sh", "rds"].`, name, name)
		}
	}
	for _, name := range sortedKeys(s.vars) {
		if strings.HasPrefix(name, "PGRUNBOOK_") || name == "" || strings.ContainsAny(name, "=\x00") {
			body.Errorf("env", "Bad name of an environment variable", "%q cannot be set here. Names that start with PGRUNBOOK_ are set by pgrunbook, and a name holds no equals sign.", name)
		}
	}
	s.pin(body, b)
	s.person = newPerson(env, place, b, s.argv, s.undo, s.vars, s.timeout)
	return s, body.Done()
}

// pin makes the files that the commands name as "./x" part of what was reviewed. What is not
// there, or no file, is left to the command.
func (s *execStep) pin(body *runbook.Body, b runbook.StepBlock) {
	for _, word := range append(slices.Clone(s.argv), s.undo...) {
		name := filepath.ToSlash(filepath.Clean(word))
		if !strings.HasPrefix(word, "./") || slices.Contains(s.pinned, name) {
			continue
		}
		info, err := os.Stat(filepath.Join(s.dir, name))
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if _, err := b.ReadFile(name); err != nil {
			body.Errorf("command", "Cannot read a file of the command", "%s.", err)
			continue
		}
		s.pinned = append(s.pinned, name)
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (s *execStep) command() string      { return "exec " + s.name + ": " + commandLine(s.argv) }
func (s *execStep) limit() time.Duration { return s.timeout }

// Plan shows the command line, quoted for reading.
func (s *execStep) Plan(context.Context) (engine.StepPlan, error) {
	line := commandLine(s.argv)
	p := s.plan("run "+line, "", engine.Action{On: engine.Runner, SQL: line, Reverse: commandLine(s.undo)})
	if s.timeout > 0 {
		p.Why = "killed with its children after " + s.timeout.String()
	}
	p.Hazards = []engine.Hazard{{Kind: engine.HazardExternal, Object: s.argv[0], Text: "runs a command; after a crash in the middle it runs again"}}
	for _, argv := range [][]string{s.argv, s.undo} {
		if why := s.missing(argv); why != "" {
			p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardExternal, Object: argv[0], Text: "not here now, so the step would fail: " + why})
		}
	}
	return p, nil
}

// missing says why the program could not be run here; a plan may be made on another machine than
// the one that applies it, so it is no error.
func (s *execStep) missing(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	name := argv[0]
	if strings.Contains(name, "/") && !filepath.IsAbs(name) {
		name = filepath.Join(s.dir, name)
		if abs, err := filepath.Abs(name); err == nil {
			name = abs
		}
	}
	if _, err := exec.LookPath(name); err != nil {
		var e *exec.Error
		if errors.As(err, &e) {
			err = e.Err // without the path, which differs from machine to machine
		}
		return s.redact.String(err.Error())
	}
	return ""
}

// Apply runs the command.
func (s *execStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	return s.run(ctx, s.argv, false, cp)
}

// Undo runs the undo command, where there is one.
func (s *execStep) Undo(ctx context.Context, cp engine.Checkpoint) error {
	if len(s.undo) == 0 {
		return nil
	}
	return s.run(ctx, s.undo, true, cp)
}

func (s *execStep) run(ctx context.Context, argv []string, undo bool, cp engine.Checkpoint) error {
	if err := s.unchanged(argv); err != nil {
		return err
	}
	outer := ctx
	if s.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("it took longer than its timeout of %s", s.timeout))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = s.dir, s.environ(undo)
	var last tail
	err := runGroup(cmd, toldOf(ctx), func(stream, line string, cut bool) {
		if cut {
			line = s.redact.Cut(line)
		} else {
			line = s.redact.String(line)
		}
		last.add(stream, line)
		cp.Emit(engine.Event{Kind: engine.EventNote, Object: stream, Message: line})
	})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return s.fail(outer, "running", commandLine(argv), "Mend what the command says and run the same command again.", last.said(err))
}

// unchanged refuses what a file is gone for, and compares the pinned files with the accepted plan right before they run.
func (s *execStep) unchanged(argv []string) error {
	if err := notGone(argv...); err != nil {
		return err
	}
	for _, name := range sortedKeys(s.vars) {
		if err := notGone(s.vars[name].Reveal()); err != nil {
			return err
		}
	}
	if s.env.Plan == nil {
		return nil
	}
	for _, name := range s.pinned {
		want, ok := s.env.Plan.Runbook.Files[name]
		data, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
		if ok && fileDigest(data) != want {
			return engine.Errorf(engine.ClassStale, "Put the reviewed file back, or plan again.", "%s is not the file that the plan was made with", name)
		}
	}
	return nil
}

func fileDigest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// environ is the whole environment of a command: nothing of ours leaks into it.
func (s *execStep) environ(undo bool) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "LANG"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for _, name := range sortedKeys(s.vars) {
		env = append(env, name+"="+s.vars[name].Reveal())
	}
	add := func(name, value string) { env = append(env, "PGRUNBOOK_"+name+"="+value) }
	add("STEP", string(s.ID()))
	add("PHASE", string(s.place.Phase))
	if undo {
		add("UNDO", "1")
	}
	if s.env.Run.ID != "" {
		add("RUN", s.env.Run.ID)
		add("EPOCH", strconv.FormatInt(s.env.Run.Epoch, 10))
	}
	if s.env.Runbook != nil {
		add("RUNBOOK", s.env.Runbook.Name)
	}
	if s.env.Source != nil {
		add("SOURCE", s.env.Source.Address())
	}
	if s.env.Target != nil {
		add("TARGET", s.env.Target.Address())
	}
	return env
}

// commandLine writes argv as one would type it.
func commandLine(argv []string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		words[i] = w
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$`&|;<>()*?[]{}#~!") {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

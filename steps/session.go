package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/preflight"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Server is one side's server, for commands, which know no driver.
type Server = pg.Server

// NewEnv prepares both servers of a runbook. It connects to nothing.
func NewEnv(rb *runbook.Runbook, log *slog.Logger, sink engine.Sink) (*Env, error) {
	env := &Env{Runbook: rb, Log: log, Sink: sink, watch: &watch{}}
	var closed closedSides
	env.Source, closed.source = serverOf(rb, engine.Source, rb.Source)
	env.Target, closed.target = serverOf(rb, engine.Target, rb.Target)
	if err := closed.err(); err != nil {
		return nil, err
	}
	return env, nil
}

func serverOf(rb *runbook.Runbook, side engine.Side, s runbook.Server) (*pg.Server, error) {
	server, err := pg.New(pg.Config{
		Side: string(side), URL: s.URL, Service: s.Service, InheritEnv: s.InheritEnv,
		PasswordCommand: s.PasswordCommand, Dir: rb.Dir, ReplicaRoleFunction: s.ReplicaRoleFunction,
	})
	if err != nil {
		return nil, &engine.Error{
			Class: engine.ClassRunbook, Op: "preparing the", Object: string(side), Err: err,
			Hint: fmt.Sprintf("Look at the %s block of the runbook.", side),
		}
	}
	return server, nil
}

// NewServer prepares one side without a runbook: from a connection string, else a service.
func NewServer(side engine.Side, url, service string) (*pg.Server, error) {
	server, err := pg.New(pg.Config{Side: string(side), URL: url, Service: service})
	if err != nil {
		return nil, &engine.Error{Class: engine.ClassRunbook, Op: "preparing the", Object: string(side), Err: err, Hint: serviceHint(err)}
	}
	return server, nil
}

// serviceHint says what to do about a service that is not found; empty for other errors.
func serviceHint(err error) string {
	if strings.Contains(err.Error(), "its service cannot be read") {
		return "Write it there as [NAME] with host, dbname and user, or name another file in PGSERVICEFILE."
	}
	return ""
}

// Servers prepares the servers of a runbook that was read with Validate, as far as their addresses
// are known; a side whose address is not is nil.
func Servers(rb *runbook.Runbook) (target, source *Server, err error) {
	prepare := func(side engine.Side, s runbook.Server) *Server {
		if err != nil || !s.URLKnown && s.Service == "" && !s.InheritEnv {
			return nil
		}
		var server *Server
		server, err = serverOf(rb, side, s)
		return server
	}
	target, source = prepare(engine.Target, rb.Target), prepare(engine.Source, rb.Source)
	return target, source, err
}

// OpenOptions say how a run is opened.
type OpenOptions struct {
	ToolVersion string
	Steal       bool // end the runner that holds the run
	Amend       bool // env.Plan takes the place of the accepted one
	Redact      func(string) string

	WithoutSource bool // the source is gone: it is not locked
	Aborted       bool // where no run is active, the one that was aborted last
	AnyPlace      bool // also after a failover: for commands that trust nothing of what was copied

	// Stale is why env.Plan is not what was reviewed: an open flip is ended with the source, and this is returned.
	Stale error
}

// withoutTarget says what to type when the target, with its journal, never comes back.
const withoutTarget = "If the target is gone for good: pgrunbook abort --without-target before the cutover, pgrunbook rollback --without-target after it."

// OpenRun opens the run of env.Plan on the target, or makes it, takes the locks of both sides, and
// completes env for apply. Without a plan it continues the run that is there with its own plan.
// Close env.Journal when done; its Context ends with the locks.
func OpenRun(ctx context.Context, env *Env, o OpenOptions) (err error) {
	defer func() { err = env.placed(err) }()
	var run *journal.Run
	open := func(ctx context.Context) (err error) {
		run, err = journal.Open(ctx, env.Target, journal.OpenOptions{
			Plan: env.Plan, ToolVersion: o.ToolVersion, Amend: o.Amend, Steal: o.Steal, Redact: o.Redact, Aborted: o.Aborted,
		})
		return err
	}
	// The session may have been ended for a command that took the run over: with a plan, another try could begin a run
	// where that one has ended this one, and two that take it by force would end each other's sessions in turns.
	if env.Plan == nil && !o.Steal && !o.Aborted {
		open = repeated("opening the run", open)
	}
	err = open(ctx)
	if err != nil {
		return goneHint("opening the run", err, withoutTarget)
	}
	if err := run.GiveBack(ctx, env.adopt(run)); err != nil {
		run.Close(ctx)
		return err
	}
	if o.WithoutSource || run.Reopened { // an aborted run has nothing on the source, which may be another run's by now
		return nil
	}
	err = pinPlaces(ctx, env, o)
	if err == nil {
		err = run.LockSource(ctx, env.Source, o.Steal)
	}
	err = goneHint("opening the run", err, "If the source is gone for good: pgrunbook abort --without-source before the cutover, pgrunbook finish --without-source from its flip on.")
	if err == nil {
		settleFirst(ctx, env)
		undoFirst(ctx, env)
		err = refreshScope(ctx, env)
	}
	if err == nil && o.Stale != nil {
		err = errors.Join(settleFlip(ctx, env), o.Stale)
	}
	if err != nil {
		run.Close(ctx)
	}
	return err
}

// repeated gives what is tried again, a few times, where a session was lost: somebody ends sessions, or the network
// broke. A server that cannot be reached is said at once. The error is the last one, as it is.
func repeated(what string, try func(ctx context.Context) error) func(ctx context.Context) error {
	return func(ctx context.Context) (err error) {
		_ = pg.Retrier{Tries: surveyTries}.Do(ctx, what, func(ctx context.Context) error {
			if err = try(ctx); pg.IsConnLost(err) && !pg.NeverOpened(err) {
				return err
			}
			return nil
		})
		return err
	}
}

// settleFirst ends a flip that a dead runner and its guardian left open, before anything else: until
// then the application can write nowhere. What it cannot end now meets the command again, which has
// patience and says what is wrong.
func settleFirst(ctx context.Context, env *Env) {
	ctx, cancel := context.WithTimeout(ctx, settleTry)
	defer cancel()
	_ = settleFlip(ctx, env)
}

// undoFirst takes back what a runner that is no more had begun of a freeze: it keeps off if it wakes up, and
// not every command comes to a step that does so. What it cannot take back is said, and meets those that do.
func undoFirst(ctx context.Context, env *Env) {
	owner, err := env.Journal.Owner(ctx)
	if err == nil && owner.Side != journal.Unclear && env.Runbook != nil {
		err = tidy(ctx, env, owner.Side, false)
	}
	if err != nil {
		env.Log.Warn("clients may be left at the closed side", "err", err)
	}
}

// goneHint says what to type when a side cannot be reached, or not for what we do.
func goneHint(op string, err error, hint string) error {
	if err == nil || engine.HintOf(err) != "" {
		return err
	}
	if f, ok := preflight.Pooler(err); ok {
		return &engine.Error{Class: engine.ClassPreflight, Op: op, Err: err, Hint: f.Fix}
	}
	if !unreachable(err) {
		return err
	}
	return &engine.Error{Class: engine.ClassOf(err), Op: op, Err: err, Hint: hint}
}

// adopt fills env with what the journal knows of the run.
func (e *Env) adopt(run *journal.Run) error {
	if e.Runbook != nil && e.Runbook.Name != run.Name {
		return engine.Errorf(engine.ClassHeld, "Name that runbook, or another target.", "the run on this target is of runbook %q, not of %q", run.Name, e.Runbook.Name)
	}
	e.Journal, e.Plan = run, run.Plan
	e.Run = scope.Run{ID: run.ID, Mark: run.Mark, Epoch: run.Epoch, GateKey: run.GateKey}
	if e.Runbook != nil {
		e.Run.Message, e.Run.ClosedError = e.Runbook.Cutover.ClosedMessage, e.Runbook.Cutover.ClosedError
	}
	if e.Source != nil {
		e.Source = e.Source.ForRun(run.ID, run.Mark)
	}
	e.Target = e.Target.ForRun(run.ID, run.Mark)
	return e.readScope()
}

// readScope takes the scope from the plan.
func (e *Env) readScope() error {
	e.Scope = &scope.Scope{}
	if err := json.Unmarshal(e.Plan.Scope, e.Scope); err != nil {
		return fmt.Errorf("reading the tables of the plan: %w", err)
	}
	return nil
}

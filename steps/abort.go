package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// AbortOptions say what is left to abort.
type AbortOptions struct {
	DropTarget    bool // drop what the schema phase made on the target, rows included
	WithoutTarget bool // the target is gone: env needs the source alone
	WithoutSource bool // the source is gone
	Steal         bool // without the target: end the runner that holds the source
	// WithoutPoolers: one that cannot be pointed back to the source is gone for good; it is named.
	WithoutPoolers bool
}

// Abort gives a run up while writes are on the source. The application is free at once (our
// functions become no-ops), then the source is left as it was found and the target without our
// triggers; the journal says aborted. After the flip it refuses: then the way is rollback, or
// finish. It may be called again after any death.
//
// env comes from OpenRun; WithoutTarget wants only Source and reads the run from what it left there.
func Abort(ctx context.Context, env *Env, o AbortOptions) error {
	if o.WithoutTarget && (o.WithoutSource || o.DropTarget) {
		return engine.Errorf(engine.ClassRunbook, "Name one side that is gone.", "without the target there is only the source to clean")
	}
	emit := abortSink{env}
	env.withoutPoolers = o.WithoutPoolers
	if o.WithoutTarget {
		return abortSource(ctx, env, emit, true, o)
	}
	if env.Journal.Reopened { // the source was cleaned, and may be another run's by now
		_, err := env.Journal.Begin(ctx, abortMark{drop: o.DropTarget})
		if err == nil {
			err = abortTarget(ctx, env, emit, o.DropTarget)
		}
		return env.Journal.GiveBack(ctx, err)
	}
	if !o.WithoutSource {
		if err := settleFlip(ctx, env); err != nil {
			return err
		}
	}
	owner, err := env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	switch owner.Side {
	case engine.Source:
	case journal.Unclear:
		hint := "Let the same command settle it: pgrunbook apply"
		if o.WithoutSource {
			hint = stayWithoutSource
		}
		return &engine.Error{Class: engine.ClassAmbiguous, Op: "aborting", Err: errors.New("a flip is decided and not settled: it is not clear who takes writes"), Hint: hint}
	case engine.Target, engine.Runner:
		return &engine.Error{Op: "aborting", Err: errors.New("the target takes writes: leaving now would lose them"), Hint: "Go back with pgrunbook rollback, or end the migration with pgrunbook finish."}
	}
	records, err := env.Journal.Steps(ctx)
	if err != nil {
		return err
	}
	o.DropTarget = o.DropTarget || strings.HasSuffix(abortCommand(records), dropTarget) // part of it may be gone
	if o.WithoutSource {
		byHand(env, engine.Source, leftOf(ctx, env, engine.Source, false, true))
		_, err = env.Journal.Begin(ctx, abortMark{drop: o.DropTarget})
	} else if err = tidy(ctx, env, engine.Source, false); err == nil {
		err = abortSource(ctx, env, emit, false, o)
	}
	if errors.Is(err, errPoolersLeft) {
		hint := strings.TrimSpace(engine.HintOf(err) + " Once they lead to the source, run the same command again; if a pooler is gone for good: pgrunbook abort --without-poolers")
		return &engine.Error{Class: engine.ClassOf(err), Op: "aborting", Err: err, Hint: hint}
	}
	if err != nil {
		return err
	}
	return abortTarget(ctx, env, emit, o.DropTarget)
}

// abortSink gives the run's sink the shape of a checkpoint.
type abortSink struct{ env *Env }

func (s abortSink) Emit(e engine.Event) {
	if s.env.Sink != nil {
		s.env.Sink.Emit(e)
	}
}

func (s abortSink) note(format string, args ...any) {
	s.Emit(engine.Event{Kind: engine.EventNote, Message: fmt.Sprintf(format, args...)})
}

// abortSource takes everything of ours off the source. A closed gate there means that the flip
// happened, whatever a journal says.
func abortSource(ctx context.Context, env *Env, emit abortSink, alone bool, o AbortOptions) error {
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "abort"})
	if err != nil {
		return &engine.Error{Op: "aborting", Err: err, Hint: "If the source is gone for good: pgrunbook abort --without-source"}
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	run := env.Run
	if alone {
		found, err := runOfSource(ctx, conn, "aborting")
		if err != nil {
			return err
		}
		if found.ID == "" {
			emit.note("the source at %s holds nothing of a run; where one is expected, look whether that is the right source", env.Source.Address())
			return nil
		}
		run = found
		unlock, err := journal.LockAlone(ctx, env.Source, run.ID, run.Mark, o.Steal)
		if err != nil {
			return err
		}
		defer unlock()
		env.Source = env.Source.ForRun(run.ID, run.Mark)
	}
	if err := openForAbort(ctx, conn, run); err != nil {
		return err
	}
	if !alone {
		if _, err := env.Journal.Begin(ctx, abortMark{drop: o.DropTarget}); err != nil {
			return err
		}
	}
	if err := gate.Disarm(ctx, conn); err != nil {
		return sided(engine.Source, err)
	}
	failpoint.Hit("abort.disarmed")
	if err := gate.Remove(ctx, env.Source, run, waiting(emit, engine.Source, "take the gate off the source")); err != nil {
		return sided(engine.Source, err)
	}
	if err := capture.Remove(ctx, env.Source, run, waiting(emit, engine.Source, "remove capture from the source")); err != nil {
		return sided(engine.Source, err)
	}
	failpoint.Hit("abort.source")
	emit.note("the source is as it was found")
	return nil
}

// openForAbort refuses a source whose gate is not open. A run that died while it removed itself may
// have left no gate, or no key to hold.
func openForAbort(ctx context.Context, conn *pgx.Conn, run scope.Run) error {
	if _, err := capture.Owned(ctx, conn, run); err != nil {
		return sided(engine.Source, err)
	}
	at, err := gate.State(ctx, conn, run)
	if err != nil {
		return sided(engine.Source, err)
	}
	switch at {
	case gate.Open, gate.Absent:
		return nil
	case gate.Held:
		return &engine.Error{Class: engine.ClassHeld, Op: "aborting", Err: errors.New("a freeze holds the source's gate right now"), Hint: "Wait a second and run the same command again."}
	case gate.Closed:
	}
	return &engine.Error{
		Class: engine.ClassAmbiguous, Op: "aborting", Err: errors.New("the source's gate is closed: the flip happened, and the target may have taken writes"),
		Hint: "With the target at hand: pgrunbook status. If it is gone for good and its writes are given up: pgrunbook rollback --without-target",
	}
}

// abortTarget takes our triggers off the target, and what the schema phase made where that is
// wanted, then records the end. The gate goes last but one: until then nobody writes there.
func abortTarget(ctx context.Context, env *Env, emit abortSink, drop bool) error {
	if err := capture.Remove(ctx, env.Target, env.Run, waiting(emit, engine.Target, "remove capture from the target")); err != nil {
		return sided(engine.Target, err)
	}
	if drop {
		if err := undoSchema(ctx, env); err != nil {
			return sided(engine.Target, err)
		}
		emit.note("what the schema phase made on the target is dropped")
	}
	if err := writableTarget(ctx, env, emit); err != nil {
		return sided(engine.Target, err)
	}
	failpoint.Hit("abort.schema")
	if err := gate.Remove(ctx, env.Target, env.Run, waiting(emit, engine.Target, "take the gate off the target")); err != nil {
		return sided(engine.Target, err)
	}
	failpoint.Hit("abort.target")
	if err := env.Journal.Abort(ctx); err != nil {
		return err
	}
	emit.note("run %s is aborted; its journal stays on the target", env.Run.ID)
	if !drop && env.Runbook.Schema.Mode != "existing" {
		emit.note("what was made on the target stays, rows included: pgrunbook abort --drop-target drops it")
	}
	return nil
}

// writableTarget takes back what a flip away from the target set on its database: it would make a later run's
// target read-only.
func writableTarget(ctx context.Context, env *Env, emit abortSink) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Flip == nil || owner.Flip.From != engine.Target {
		return err
	}
	conn, err := env.Target.Connect(ctx, pg.Use{Name: "abort", Marked: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	statement, err := resetReadOnly(ctx, conn, "")
	if err != nil || statement == "" {
		return err
	}
	if _, err := conn.Exec(ctx, statement); err != nil { // as when it was set: who does not own the database is told
		emit.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: fmt.Sprintf("the target stays read-only by default, as a rollback made it: %v", err), Hint: statement})
	}
	return nil
}

// undoSchema lets the schema step drop what its cursor says that it made. The step is opened again
// for that, so that what a death leaves behind is dropped by the next call.
func undoSchema(ctx context.Context, env *Env) error {
	step := newSchema(env)
	undo, ok := step.(engine.Undoer)
	if !ok {
		return fmt.Errorf("step %s cannot be undone", step.ID())
	}
	if err := env.Journal.Reopen(ctx, step.ID(), true, "the run is being given up"); err != nil {
		return err
	}
	if _, err := env.Journal.Begin(ctx, step); err != nil {
		return err
	}
	err := dropJoined(ctx, env)
	if err == nil {
		err = undo.Undo(ctx, env.Journal.Checkpoint(step.ID(), abortSink{env}))
	}
	if err != nil {
		return errors.Join(err, env.Journal.End(ctx, step.ID(), err))
	}
	return env.Journal.Reopen(ctx, step.ID(), true, "what it had made was dropped")
}

// dropJoined drops what catch_up made on the target while the run was under way.
func dropJoined(ctx context.Context, env *Env) error {
	var c catchUpCursor
	found, err := env.Journal.Checkpoint(catchUpID, abortSink{env}).Load(ctx, &c)
	if err != nil || !found || len(c.Made)+len(c.Before) == 0 {
		return err
	}
	conn, err := env.Target.Connect(ctx, pg.Use{Name: "schema", Marked: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	made, err := c.made(ctx, conn)
	if err != nil {
		return err
	}
	return dump.DropMade(ctx, conn, made, waiting(abortSink{env}, engine.Target, "drop what catch_up made"))
}

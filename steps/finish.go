package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// FinishOptions say how a run is ended after its cutover.
type FinishOptions struct {
	Now           bool // before rollback { keep_for } is over
	WithoutSource bool // the source is gone
}

// command is how it is typed.
func (o FinishOptions) command() string {
	s := "pgrunbook finish"
	if o.WithoutSource {
		s += " --without-source"
	}
	if o.Now {
		s += " --now"
	}
	return s
}

// BuildFinish gives the steps of finish: the clean-up between those that people put around it.
// After the walk, call CloseRun.
func BuildFinish(env *Env, o FinishOptions) ([]engine.Step, hcl.Diagnostics) {
	hooks := env.Runbook.Hooks[string(engine.PhaseFinish)]
	before, d1 := people(env, Place{engine.PhaseFinish, Before}, hooks.Before)
	after, d2 := people(env, Place{engine.PhaseFinish, After}, hooks.After)
	return append(append(before, newFinish(env, o)), after...), append(d1, d2...)
}

// CloseRun removes the journal, the last object of ours on the target. It comes after the walk of
// BuildFinish's steps, which still records its end there. Without the source the journal stays, as finished:
// a source that comes back still looks like one whose target is gone, and only the journal says otherwise.
func CloseRun(ctx context.Context, env *Env, o FinishOptions) error {
	failpoint.Hit("finish.walked")
	if o.WithoutSource {
		return env.Journal.Finish(ctx)
	}
	return env.Journal.Drop(ctx)
}

// finishStep removes what the run made: everything on the target, and on the source everything but
// the closed gate, which keeps writers from a database that is no longer the one.
type finishStep struct {
	env  *Env
	o    FinishOptions
	told bool // what is there instead of the source
}

func newFinish(env *Env, o FinishOptions) engine.Step { return &finishStep{env: env, o: o} }

func (s *finishStep) ID() engine.StepID   { return "finish" }
func (s *finishStep) Phase() engine.Phase { return engine.PhaseFinish }

// Fingerprint covers nothing: what finish does may be chosen anew each time it is called.
func (s *finishStep) Fingerprint() string { return "finish/1" }

func (s *finishStep) open() bool { return s.env.Runbook.Finish.Source == "open" }

// Plan says what goes and what stays, by a look at both catalogs.
func (s *finishStep) Plan(ctx context.Context) (engine.StepPlan, error) {
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(), Title: "remove everything of ours from the target, and from the source all but the closed gate",
		Why: "the migration is over; the way back ends here",
		Hazards: []engine.Hazard{
			{Kind: engine.HazardOneWay, Text: "afterwards there is no way back to the source"},
			{Kind: engine.HazardLock, Text: "DROP TRIGGER takes ACCESS EXCLUSIVE, one table per transaction, with a lock_timeout of 300 ms"},
		},
	}
	var err error
	if p.Actions, err = removals(ctx, s.env, engine.Target, false); err != nil {
		return p, err
	}
	if !s.o.WithoutSource {
		list, err := removals(ctx, s.env, engine.Source, !s.open())
		if err != nil {
			return p, goneHint("finishing", err, "If the source is gone for good: pgrunbook finish --without-source")
		}
		p.Actions = append(p.Actions, list...)
	}
	switch {
	case s.o.WithoutSource:
		p.Title = "remove everything of ours from the target; the source is gone"
		owner, err := s.env.Journal.Owner(ctx)
		if err != nil {
			return p, err
		}
		if owner.Side == journal.Unclear {
			p.Actions = append([]engine.Action{{On: engine.Target, SQL: "ALTER SEQUENCE pgrunbook.gate_flag RESTART 0", Group: "let the target take writes: a flip is open, and nobody can say any more whether the source was closed"}}, p.Actions...)
			p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoss, Text: "what the source took after the hold, if it took anything, is gone with it; no application may ever reach it again"})
		}
	case s.open():
		p.Title = "remove everything of ours from both sides"
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoss, Text: "finish { source = \"open\" }: clients that still reach the source write there, and nobody carries that over"})
	}
	return p, nil
}

// Apply refuses before the cutover and before keep_for is over. It may be called again after any
// death: what is gone stays gone.
func (s *finishStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if err := s.allowed(ctx); err != nil {
		return err
	}
	if err := s.cleanTarget(ctx, cp); err != nil {
		return err
	}
	failpoint.Hit("finish.target")
	if s.o.WithoutSource {
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warning", Message: "the source was left alone: if it ever comes back, keep every application away from it until you have seen that its gate is closed; this takes off what is there: " + gate.RemoveStatement()})
		return nil
	}
	if err := s.cleanSource(ctx, cp); err != nil {
		return err
	}
	s.env.Journal.ReleaseSource(ctx) // a step in after may stop that server
	return nil
}

func (s *finishStep) allowed(ctx context.Context) error {
	settle := settleFlip
	if s.o.WithoutSource {
		settle = settleWithoutSource
	}
	if err := settle(ctx, s.env); err != nil {
		return err
	}
	owner, err := s.env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	if owner.Side == engine.Target {
		err := tidy(ctx, s.env, engine.Target, s.o.WithoutSource)
		if err != nil && !s.o.WithoutSource {
			return err
		}
		byHand(s.env, engine.Target, err) // a pooler that is gone keeps nobody from staying
	}
	if !s.o.WithoutSource {
		if err := flipLost(ctx, s.env); err != nil {
			return err
		}
	}
	if err := s.due(owner); err != nil {
		return err
	}
	if s.o.WithoutSource {
		found, err := givenUp(ctx, s.env, FinishOptions{Now: s.o.Now}.command())
		if err != nil || s.told {
			return err
		}
		s.told = true
		abortSink{s.env}.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: "the source is given up: " + strings.Join(found, "; ")})
		return nil
	}
	conn, err := s.env.Source.Connect(ctx, pg.Use{Name: "finish"})
	if err != nil {
		return &engine.Error{Op: "finishing", Err: err, Hint: "If the source is gone for good: pgrunbook finish --without-source"}
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	at, err := gate.State(ctx, conn, s.env.Run)
	if err != nil {
		return err
	}
	if at == gate.Closed || (at == gate.Absent && s.open()) { // absent: an earlier call took it off
		return nil
	}
	hint := "Find out who wrote to the source since the cutover (pgrunbook verify) before anything is removed."
	if at == gate.Absent {
		hint += " If it was built anew since, and nothing of it is wanted: " + FinishOptions{Now: s.o.Now, WithoutSource: true}.command()
	}
	return refuseFinish(engine.ClassAmbiguous, hint,
		"the source's gate is %s although the target takes writes", at)
}

// due refuses before the cutover, and while rollback { keep_for } runs.
func (s *finishStep) due(owner journal.Ownership) error {
	switch {
	case owner.Side == journal.Unclear:
		return refuseFinish(engine.ClassAmbiguous, "Let the same command settle it: pgrunbook apply", "a flip is decided and not settled: it is not clear who takes writes")
	case owner.Side != engine.Target || owner.Flip == nil:
		return refuseFinish(engine.ClassFailed, "Cut over first: pgrunbook apply. Or give up: pgrunbook abort", "writes are on the source: there is nothing to finish")
	}
	keep := s.env.Runbook.Rollback
	if left := keep.KeepFor - owner.Age; left > 0 && !s.o.Now && keep.Enabled {
		now := FinishOptions{Now: true, WithoutSource: s.o.WithoutSource}
		return refuseFinish(engine.ClassFailed, "Wait, or give up the way back: "+now.command(),
			"rollback { keep_for = %q } keeps the way back for another %s", keep.KeepFor, left.Round(time.Second))
	}
	return nil
}

func refuseFinish(class engine.Class, hint, format string, args ...any) error {
	return &engine.Error{Class: class, Op: "finishing", Err: fmt.Errorf(format, args...), Hint: hint}
}

func (s *finishStep) cleanTarget(ctx context.Context, cp engine.Checkpoint) error {
	wait := waiting(cp, engine.Target, "remove our triggers from the target")
	if err := capture.Remove(ctx, s.env.Target, s.env.Run, wait); err != nil {
		return sided(engine.Target, err)
	}
	if err := gate.Remove(ctx, s.env.Target, s.env.Run, wait); err != nil {
		return sided(engine.Target, err)
	}
	conn, err := s.env.Target.Connect(ctx, pg.Use{Name: "finish"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := nothingLeft(ctx, conn); err != nil {
		return sided(engine.Target, err)
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Message: "the target holds nothing of ours but the journal, which goes last"})
	return nil
}

func (s *finishStep) cleanSource(ctx context.Context, cp engine.Checkpoint) error {
	wait := waiting(cp, engine.Source, "remove our triggers from the source")
	if err := capture.Remove(ctx, s.env.Source, s.env.Run, wait); err != nil {
		return sided(engine.Source, err)
	}
	conn, err := s.env.Source.Connect(ctx, pg.Use{Name: "finish"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	writable, err := resetReadOnly(ctx, conn, s.env.Scope.ReadOnlyDefault)
	if err != nil {
		return err
	}
	if !s.open() {
		statement, err := removeGate(ctx, conn, s.env.Scope.ReadOnlyDefault)
		if err != nil {
			return err
		}
		cp.Emit(engine.Event{
			Kind: engine.EventNote, Hint: statement,
			Message: "the source keeps its closed gate; this one line takes it off, and then the source takes writes beside the target, which nothing carries over: " + statement,
		})
		return nil
	}
	if err := gate.Remove(ctx, s.env.Source, s.env.Run, wait); err != nil {
		return sided(engine.Source, err)
	}
	if writable != "" && s.env.Runbook.Cutover.ReadOnly {
		if _, err := conn.Exec(ctx, writable); err != nil {
			return sided(engine.Source, fmt.Errorf("running %s: %w", writable, err))
		}
	}
	return nothingLeft(ctx, conn)
}

// removeGate is the one line that takes off what finish leaves on the source, and makes it writable.
func removeGate(ctx context.Context, conn *pgx.Conn, own string) (string, error) {
	writable, err := resetReadOnly(ctx, conn, own)
	if err != nil || writable == "" {
		return gate.RemoveStatement(), err
	}
	// A plain session would be refused the DROP itself.
	return "BEGIN READ WRITE; " + gate.RemoveStatement() + "; " + writable + "; COMMIT", nil
}

const readOnlySQL = `
SELECT d.datname::text, coalesce((SELECT split_part(cfg, '=', 2) FROM pg_db_role_setting s, unnest(s.setconfig) AS cfg
         WHERE s.setdatabase = d.oid AND s.setrole = 0 AND split_part(cfg, '=', 1) = 'default_transaction_read_only'), '')
  FROM pg_database d WHERE d.datname = current_database()`

// resetReadOnly gives the statement that takes off what the cutover set on a database and gives
// back what its owner had set; empty where nothing is to be done.
func resetReadOnly(ctx context.Context, conn *pgx.Conn, own string) (string, error) {
	var database, now string
	if err := conn.QueryRow(ctx, readOnlySQL).Scan(&database, &now); err != nil {
		return "", fmt.Errorf("reading the database's settings: %w", err)
	}
	alter := "ALTER DATABASE " + pgx.Identifier{database}.Sanitize()
	switch {
	case now == own || own == "" && now == "off":
		return "", nil
	case own == "":
		return alter + " RESET default_transaction_read_only", nil
	}
	return alter + " SET default_transaction_read_only = " + pg.Literal(own), nil
}

// leftSQL looks for triggers of ours by name and by the schema of their function.
const leftSQL = `
SELECT coalesce(string_agg(quote_ident(t.tgname) || ' on ' || t.tgrelid::regclass::text, ', ' ORDER BY t.oid), '')
  FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'pgrunbook' OR t.tgname LIKE 'pgrunbook\_capture\_%' OR t.tgname = '!pgrunbook_gate'`

// nothingLeft proves by the catalog that no table carries a trigger of ours.
func nothingLeft(ctx context.Context, conn *pgx.Conn) error {
	var left string
	if err := conn.QueryRow(ctx, leftSQL).Scan(&left); err != nil {
		return fmt.Errorf("looking for what is left: %w", err)
	}
	if left == "" {
		return nil
	}
	return &engine.Error{Op: "removing our triggers", Err: errors.New("still there: " + left), Hint: "They are not this run's: drop them by hand if no other run uses them."}
}

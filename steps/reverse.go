package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// reverseStep prepares the way back before the freeze: capture on the target, and the proof, with
// a real row, that a pass may go to the source. Nobody writes to the target yet, so installing
// costs nobody anything (in a freeze it would cost 477 ms for 2,000 tables).
type reverseStep struct{ env *Env }

func newReverse(env *Env) engine.Step { return &reverseStep{env} }

// reverseID is the step's name.
const reverseID engine.StepID = "reverse"

func (s *reverseStep) ID() engine.StepID   { return reverseID }
func (s *reverseStep) Phase() engine.Phase { return engine.PhaseCutover }

// Fingerprint covers the tables that the way back carries, but for those that joined meanwhile.
func (s *reverseStep) Fingerprint() string {
	names := make([]string, 0, len(s.env.Scope.Tables))
	for _, t := range ofPlan(s.env.Scope) {
		if t.Data == scope.Live && t.Capture != scope.NoCapture {
			names = append(names, pg.Name(t.Schema, t.Name.Name))
		}
	}
	return "reverse/1 " + strings.Join(names, ",")
}

// Plan shows the triggers on the target and the proof on the source.
func (s *reverseStep) Plan(ctx context.Context) (engine.StepPlan, error) {
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(), Title: "capture changes on the target, for the way back",
		Why:      "from its first write on, the target's changes can be carried back; rights are proved before they are needed",
		Estimate: lasting(connecting, triggerOne, relations(captured(s.env))),
	}
	for _, t := range captured(s.env) {
		p.Actions = append(p.Actions, engine.Action{
			On: engine.Target, Object: pg.Name(t.Schema, t.Name.Name), Group: "install capture on the target",
			SQL: strings.Join(capture.Statements(s.env.Run, t, targetMajor(s.env)), ";\n"),
		})
	}
	if len(p.Actions) > 0 {
		p.Actions = append(p.Actions, engine.Action{On: engine.Source, SQL: "SELECT has_table_privilege(...) for INSERT, UPDATE, DELETE and TRUNCATE on each table; pg_has_role(...) for the owner of each sequence", Why: "proof that our role may write everything that a rollback writes"})
		p.Actions = append(p.Actions, engine.Action{On: engine.Source, SQL: "BEGIN; SET session_replication_role = replica; UPDATE one row of one table to itself; ROLLBACK", Why: "proof that a pass to the source is allowed to write"})
	}
	conn, err := s.env.Source.Connect(ctx, pg.Use{Name: "plan", ReadOnly: true})
	if err != nil {
		return p, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	why, _, err := firing(ctx, conn, engine.Source, s.env.Scope)
	if why != "" {
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardOneWay, Text: why + ": a rollback is refused until somebody has disabled them"})
	}
	return p, err
}

// targetMajor is the target's major from the plan, where there is one; statements of all majors
// from 13 on are alike.
func targetMajor(env *Env) int {
	if env.Plan != nil {
		return env.Plan.Target.Major
	}
	return 13
}

// Apply may be repeated: installing mends what is missing.
func (s *reverseStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if err := s.env.whileSourceWrites(ctx, s.ID()); err != nil {
		return err
	}
	sides, err := openSides(ctx, s.env, string(reverseID))
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if err := capture.Prepare(ctx, sides.target, s.env.Run); err != nil {
		return err
	}
	if err := capture.Prepare(ctx, sides.source, s.env.Run); err != nil {
		return err
	}
	failpoint.Hit("reverse.prepared")
	live, unpaused := captured(s.env), s.env.betweenParts(cp.Emit)
	for _, t := range live {
		if err := unpaused(ctx); err != nil {
			return err
		}
		err := capture.InstallClosed(ctx, sides.target, s.env.Run, t, waiting(cp, engine.Target, "install capture on the target"))
		if errors.Is(err, capture.ErrStatement) { // the source's table, by which the triggers were chosen, has no parent
			err = &engine.Error{
				Class: engine.ClassStale, Op: "capturing on the target", Object: pg.Name(t.Schema, t.Name.Name), Err: errors.New("it inherits there, and not on the source"),
				Hint: "Undo that on the target (ALTER TABLE ... NO INHERIT ...), then run the same command again.",
			}
		}
		if err != nil {
			return err
		}
	}
	failpoint.Hit("reverse.captured")
	return s.prove(ctx, cp, live)
}

// prove asks for every right, makes a captured change on the target and a replica-role change on the source, and rolls
// both back: a missing right shows now and not in the night of the rollback.
func (s *reverseStep) prove(ctx context.Context, cp engine.Checkpoint, live []scope.Table) error {
	if err := mayWriteBack(ctx, s.env); err != nil {
		return err
	}
	target, err := s.env.Target.Connect(ctx, pg.Use{Name: "reverse proof", Replica: true, LockTimeout: lockPatience})
	if err != nil {
		return err
	}
	defer func() { _ = target.Close(context.WithoutCancel(ctx)) }()
	source, err := s.env.Source.Connect(ctx, pg.Use{Name: "reverse proof", Marked: true, Replica: true, LockTimeout: lockPatience})
	if err != nil {
		return reverseError("writing to", "the source as a replica", err)
	}
	defer func() { _ = source.Close(context.WithoutCancel(ctx)) }()
	for _, t := range live {
		name := pg.Name(t.Schema, t.Name.Name)
		if t.Key == nil || touchable(t) == "" {
			continue
		}
		found, err := proveCapture(ctx, target, t)
		if err != nil {
			return reverseError("capturing on the target", name, err)
		}
		if !found {
			continue // an empty table proves nothing: take the next one
		}
		if _, err := touchOne(ctx, source, t, ""); err != nil {
			return reverseError("writing to the source", name, err)
		}
		cp.Emit(engine.Event{Kind: engine.EventNote, Message: "the way back is proved with a row of " + name})
		return nil
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Message: "the way back is installed; every table is empty, so no row proved it"})
	return nil
}

func reverseError(op, object string, err error) error {
	return &engine.Error{
		Class: engine.ClassFailed, Op: op, Object: object, Err: err,
		Hint: "Grant what is missing and run the same command again, or give up the way back with rollback { enabled = false }.",
	}
}

// proveCapture opens the closed gate for its own transaction alone (the flag's new value is seen
// by nobody else), touches a row and looks for it in the delta. It is no marked session, so our triggers fire; it is in the replica
// role, so the application's do not.
func proveCapture(ctx context.Context, conn *pgx.Conn, t scope.Table) (found bool, err error) {
	check := fmt.Sprintf("SELECT count(*) FROM %s WHERE rel = %d", capture.DeltaName(t.Key.Shape), t.ID)
	n, err := touchOne(ctx, conn, t, check)
	if err != nil || n < 0 {
		return false, err
	}
	if n == 0 {
		return false, fmt.Errorf("a changed row left no key in the delta")
	}
	return true, nil
}

// touchable is a column that may be set to itself; identity and generated columns refuse that.
func touchable(t scope.Table) string {
	for _, c := range t.Columns {
		if !c.Generated && c.Identity != "a" {
			return pgx.Identifier{c.Name}.Sanitize()
		}
	}
	return ""
}

// touchOne updates one row to itself in a transaction that is rolled back. It returns what check
// counts, or -1 where the table is empty.
func touchOne(ctx context.Context, conn *pgx.Conn, t scope.Table, check string) (n int64, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if check != "" {
		if _, err := tx.Exec(ctx, "ALTER SEQUENCE pgrunbook.gate_flag RESTART 0"); err != nil {
			return 0, err
		}
	}
	name := pg.Name(t.Schema, t.Name.Name)
	col := touchable(t)
	tag, err := tx.Exec(ctx, fmt.Sprintf("UPDATE %s SET %s = %s WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM %s LIMIT 1 FOR UPDATE SKIP LOCKED)", name, col, col, name))
	if err != nil {
		return 0, err
	}
	if tag.RowsAffected() == 0 {
		return -1, nil
	}
	if check == "" {
		return 1, nil
	}
	err = tx.QueryRow(ctx, check).Scan(&n)
	return n, err
}

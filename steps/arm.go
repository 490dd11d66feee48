package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// armStep puts the gate on the source's tables, open: late, since an armed gate costs every
// statement a few microseconds.
type armStep struct{ env *Env }

func newArm(env *Env) engine.Step { return &armStep{env} }

func (s *armStep) ID() engine.StepID   { return "arm" }
func (s *armStep) Phase() engine.Phase { return engine.PhaseCutover }

// Fingerprint covers which tables are gated; the messages may change.
func (s *armStep) Fingerprint() string {
	h := sha256.New()
	for _, t := range ofPlan(s.env.Scope) {
		_, _ = fmt.Fprintf(h, "%q %q\n", t.Schema, t.Name.Name) // a hash takes everything
	}
	return "arm/1 " + hex.EncodeToString(h.Sum(nil))
}

// Plan lists every statement on the source.
func (s *armStep) Plan(context.Context) (engine.StepPlan, error) {
	n := len(s.env.Scope.Tables)
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(),
		Title:    fmt.Sprintf("put the gate on %d tables of the source, open", n),
		Why:      "the freeze holds writers at it; a freeze with one ungated table is refused",
		Estimate: lasting(connecting, triggerOne, relations(s.env.Scope.Tables)),
	}
	run := plannedRun(s.env.Run)
	for _, sql := range gate.BaseStatements(run) {
		p.Actions = append(p.Actions, engine.Action{On: engine.Source, SQL: sql, Group: "the gate"})
	}
	for _, t := range s.env.Scope.Tables {
		for _, sql := range gate.Statements(run, t) {
			p.Actions = append(p.Actions, engine.Action{On: engine.Source, Object: pg.Name(t.Schema, t.Name.Name), SQL: sql, Group: fmt.Sprintf("gate %d tables", n), Reverse: "DROP TRIGGER, one table per transaction"})
		}
	}
	p.Hazards = []engine.Hazard{
		{Kind: engine.HazardLock, Text: fmt.Sprintf("CREATE TRIGGER takes SHARE ROW EXCLUSIVE on each of %d tables, one per transaction, with a lock_timeout of 300 ms", n)},
		{Kind: engine.HazardLoad, Text: "from here to the end of the cutover each writing statement costs about 9 microseconds more"},
	}
	return p, nil
}

// Apply arms what is not armed, and proves that nothing is left out.
func (s *armStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if err := s.env.whileSourceWrites(ctx, s.ID()); err != nil {
		return err
	}
	conn, err := s.env.Source.Connect(ctx, pg.Use{Name: "arm", Marked: true, LockTimeout: lockPatience})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := gate.Prepare(ctx, conn, s.env.runAt(engine.Source)); err != nil {
		return sided(engine.Source, err)
	}
	tables, unpaused := s.env.Scope.Tables, s.env.betweenParts(cp.Emit)
	for i, t := range tables {
		if err := unpaused(ctx); err != nil {
			return err
		}
		if err := s.env.Journal.Fenced(ctx); err != nil {
			return err
		}
		if err := gate.Arm(ctx, conn, s.env.Run, []scope.Table{t}, waiting(cp, engine.Source, "gate a table of the source")); err != nil {
			return err
		}
		cp.Emit(engine.Event{
			Kind: engine.EventProgress, Object: pg.Name(t.Schema, t.Name.Name), Rows: int64(i + 1), RowsAll: int64(len(tables)),
			Message: fmt.Sprintf("gated %d of %d tables", i+1, len(tables)),
		})
	}
	return gate.Verify(ctx, conn, s.env.Run, tables)
}

// Undo takes the gate off the source.
func (s *armStep) Undo(ctx context.Context, cp engine.Checkpoint) error {
	return gate.Remove(ctx, s.env.Source, s.env.Run, waiting(cp, engine.Source, "take the gate off the source"))
}

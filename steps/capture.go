package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// captureStep puts the triggers on the source that record which rows the application changes. From
// its end on, the load needs no snapshot.
type captureStep struct{ env *Env }

func newCapture(env *Env) engine.Step { return &captureStep{env} }

func (s *captureStep) ID() engine.StepID   { return "capture" }
func (s *captureStep) Phase() engine.Phase { return engine.PhaseCapture }

// Fingerprint covers which tables are captured, how, and by which key.
func (s *captureStep) Fingerprint() string {
	h := sha256.New()
	for _, t := range ofPlan(s.env.Scope) {
		if !isCaptured(t) {
			continue
		}
		key := ""
		if t.Key != nil {
			key = t.Key.Shape
			for _, c := range t.Key.Columns {
				key += " " + c.Name
			}
		}
		kind := t.Capture
		if t.Recaptured {
			kind = scope.Statement // as the plan has it
		}
		_, _ = fmt.Fprintf(h, "%d %q %q %s %s %q\n", t.ID, t.Schema, t.Name.Name, kind, t.Identity, key) // a hash takes everything
	}
	return "capture/1 " + hex.EncodeToString(h.Sum(nil))
}

// capturedTables are the tables whose changes triggers record.
func capturedTables(s *scope.Scope) []scope.Table {
	var list []scope.Table
	for _, t := range s.Tables {
		if isCaptured(t) {
			list = append(list, t)
		}
	}
	return list
}

func isCaptured(t scope.Table) bool {
	return t.Data == scope.Live && (t.Capture == scope.Statement || t.Capture == scope.Row)
}

// Plan lists every statement on the source.
func (s *captureStep) Plan(ctx context.Context) (engine.StepPlan, error) {
	tables := capturedTables(s.env.Scope)
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(),
		Title:    fmt.Sprintf("capture changes of %d tables on the source", len(tables)),
		Why:      "what changes while rows are loaded is known and read again: no long snapshot, no slot, no restart",
		Estimate: lasting(connecting, triggerOne, relations(tables)),
	}
	if len(tables) == 0 {
		return p, nil
	}
	conn, err := s.env.Source.Connect(ctx, pg.Use{Name: "plan", ReadOnly: true})
	if err != nil {
		return p, err
	}
	version, err := pg.Version(ctx, conn)
	_ = conn.Close(ctx)
	if err != nil {
		return p, err
	}
	p.Actions = []engine.Action{{On: engine.Source, SQL: "CREATE SCHEMA pgrunbook", Why: "holds everything of ours, with the run's id in comments", Reverse: "DROP SCHEMA pgrunbook"}}
	shown := map[string]bool{}
	for _, t := range tables {
		group := fmt.Sprintf("install capture on %d tables", len(tables))
		for _, sql := range capture.Statements(plannedRun(s.env.Run), t, version/10000) {
			if shown[sql] {
				continue // tables whose keys have one shape share a delta
			}
			shown[sql] = true
			p.Actions = append(p.Actions, engine.Action{On: engine.Source, Object: pg.Name(t.Schema, t.Name.Name), SQL: sql, Group: group, Reverse: "DROP TRIGGER, one table per transaction"})
		}
	}
	p.Hazards = []engine.Hazard{
		{Kind: engine.HazardLock, Text: fmt.Sprintf("CREATE TRIGGER takes SHARE ROW EXCLUSIVE on each of %d tables, one per transaction: writers wait for at most 300 ms an attempt (once for deadlock_timeout where autovacuum is in the way); it waits for writers in flight", len(tables))},
		{Kind: engine.HazardLoad, Text: "every write also writes its keys: about a third more for a bulk statement; the deltas need space on the source until they are applied"},
	}
	return p, nil
}

// plannedRun shows a placeholder where the run's mark will stand, which only apply knows.
func plannedRun(run scope.Run) scope.Run {
	if run.Mark == "" {
		run.Mark = "(mark of the run)"
	}
	return run
}

// Apply installs what is missing and mends what is wrong, so that it may be called again after any
// death: its effect on the source is proved by looking, not by the journal.
func (s *captureStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if err := s.env.neverAgain(ctx, s.ID()); err != nil {
		return err
	}
	sides, err := openSides(ctx, s.env, "capture")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if err := capture.Prepare(ctx, sides.source, s.env.Run); err != nil {
		return sided(engine.Source, err)
	}
	if err := capture.Prepare(ctx, sides.target, s.env.Run); err != nil { // passes keep their watermark there
		return sided(engine.Target, err)
	}
	tables, unpaused := capturedTables(s.env.Scope), s.env.betweenParts(cp.Emit)
	for i, t := range tables {
		if err := unpaused(ctx); err != nil {
			return err
		}
		if err := s.env.Journal.Fenced(ctx); err != nil {
			return err
		}
		if err := s.install(ctx, cp, sides, t); err != nil {
			return err
		}
		cp.Emit(engine.Event{
			Kind: engine.EventProgress, Object: pg.Name(t.Schema, t.Name.Name), Rows: int64(i + 1), RowsAll: int64(len(tables)),
			Message: fmt.Sprintf("captured %d of %d tables", i+1, len(tables)),
		})
	}
	return align(ctx, s.env, cp, sides)
}

// install captures one table. Where an earlier process captured another one of that name, which was dropped since,
// it begins anew: nothing is loaded yet.
func (s *captureStep) install(ctx context.Context, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	onWait := waiting(cp, engine.Source, "install capture on the source")
	err := capture.InstallOn(ctx, sides.source, s.env.Run, t, onWait)
	if errors.Is(err, capture.ErrUnseen) {
		return nil // the rows are still to be read, and what joined is found by every look
	}
	if !errors.Is(err, capture.ErrAnother) {
		return err
	}
	if _, begun, stateErr := s.env.Journal.TableState(ctx, nil, t.ID); stateErr != nil || begun {
		return errors.Join(err, stateErr)
	}
	if err := capture.Forget(ctx, sides.source, s.env.Run, t, onWait); err != nil {
		return err
	}
	return capture.InstallOn(ctx, sides.source, s.env.Run, t, onWait)
}

// Undo takes capture off the source.
func (s *captureStep) Undo(ctx context.Context, cp engine.Checkpoint) error {
	return capture.Remove(ctx, s.env.Source, s.env.Run, waiting(cp, engine.Source, "remove capture from the source"))
}

func sided(side engine.Side, err error) error { return fmt.Errorf("on the %s: %w", side, err) }

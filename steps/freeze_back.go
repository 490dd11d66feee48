package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// errOneWay ends a cutover after which there would be no way back.
var errOneWay = errors.New("there would be no way back")

// readyTo makes the side that is to open right while nobody waits, neither at a gate nor at a paused pooler: its gate, and
// capture there. What was found at either, or was captured there, is compared anew before the next attempt, once for all.
func (f *flipper) readyTo(ctx context.Context) error {
	_, gate := f.gated(ctx, f.to)
	if gate != nil && !errors.Is(gate, errMended) {
		return fmt.Errorf("%w: %w", freeze.ErrNotNow, gate)
	}
	err := errors.Join(gate, f.backReady(ctx))
	if err == nil {
		err = f.unwritten(ctx)
	}
	if err == nil { // last: what was made right above may have been more than what was looked at
		err = f.doubted(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", freeze.ErrNotNow, err)
	}
	return nil
}

// backReady makes sure that the target's changes will be captured from its first write on. Days may lie between the step
// that installed that and the freeze, in which a restore with --disable-triggers or ENABLE TRIGGER ALL took our triggers off
// their mode. Whoever could do that could also write past the gate, and a rewrite fires no trigger: verify makes capture
// right and compares both sides before the next attempt. What a person has to undo ends the attempt.
func (f *flipper) backReady(ctx context.Context) error {
	changes, err := f.backTouched(ctx)
	if err != nil || len(changes) == 0 {
		return err
	}
	why, _ := changedTarget(changes)
	back, err := wayBack(ctx, f.env, f.looks.target)
	if err != nil {
		return err
	}
	if !back {
		if err := f.env.Journal.Reopen(ctx, reverseID, false, "nothing is captured on the target"); err != nil {
			return err
		}
	}
	compare := f.env.Runbook.Verify.Enabled && slices.ContainsFunc(changes, unseenRows)
	if compare { // also where a person goes without the way back, after which nobody looks at these tables
		if err := f.compareAgain(ctx, "the target was touched, and rows may have changed there"); err != nil {
			return err
		}
	}
	if len(forPerson(f.env, changes)) > 0 {
		return &engine.Error{
			Op: "cutting over", Err: fmt.Errorf("%w: %s", errOneWay, why),
			Hint: "Undo that on the target, then run the same command again; or go without a way back: rollback { enabled = false }.",
		}
	}
	if !compare && back {
		return recaptureTarget(ctx, f.env, f.looks.target, f.cp)
	}
	return &engine.Error{
		Op: "cutting over", Err: fmt.Errorf("%w: %s", errMended, why),
		Hint: "Run the same command again: it makes the way back right and compares both sides before the next attempt, since rows may have changed on the target. Find out who alters tables or triggers there (ENABLE TRIGGER ALL does).",
	}
}

// backStill refuses where the target was touched since readyTo: the next attempt makes it right with no client waiting.
func (f *flipper) backStill(ctx context.Context) error {
	changes, err := f.backTouched(ctx)
	if err != nil || len(changes) == 0 {
		return err
	}
	why, _ := changedTarget(changes)
	return &engine.Error{
		Op: "cutting over", Err: fmt.Errorf("somebody is at work on the target: %s", why),
		Hint: "Find out who alters tables or triggers there, then run the same command again.",
	}
}

// backTouched gives what was done to the target's tables and our triggers there since they were made ready. It costs one
// query where nothing was.
func (f *flipper) backTouched(ctx context.Context) ([]capture.Change, error) {
	if f.to != engine.Target || !f.env.Runbook.Rollback.Enabled {
		return nil, nil
	}
	changes, err := capture.Check(ctx, f.looks.target, f.env.Run, captured(f.env))
	changes, _ = defaultsApart(changes)
	return changes, err
}

// recaptureTarget makes the way back right where somebody touched the target's tables, proves it with a row, and accepts
// what is seen of them: last, so that a death finds it again. No client waits, and nobody writes there. Whoever calls it
// compares the rows afterwards where they may have changed. Tables that a person has to change back stay as they are.
func recaptureTarget(ctx context.Context, env *Env, target *pgx.Conn, cp engine.Checkpoint) error {
	if !env.Runbook.Rollback.Enabled {
		return nil
	}
	if back, err := wayBack(ctx, env, target); err != nil || !back {
		return err
	}
	changes, err := capture.Check(ctx, target, env.Run, captured(env))
	if changes, _ = defaultsApart(changes); err != nil || len(changes) == 0 {
		return err
	}
	hands := forPerson(env, changes)
	touched := slices.DeleteFunc(captured(env), func(t scope.Table) bool {
		return len(of(changes, t.ID)) == 0 || len(of(hands, t.ID)) > 0
	})
	if len(touched) == 0 {
		return nil
	}
	if slices.ContainsFunc(changes, unseenRows) { // else the run itself carried it
		why, _ := changedTarget(changes)
		if err := mayDiffer(ctx, env, why); err != nil {
			return err
		}
		cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: "mending the way back: " + why, Finding: &engine.Finding{
			Code: "CUT005", Severity: engine.SeverityWarning, Side: engine.Target, Text: why, Fix: "Find out who alters tables or triggers there (ENABLE TRIGGER ALL does).",
		}})
	}
	for _, t := range touched {
		if err := capture.InstallClosed(ctx, target, env.Run, t, waiting(cp, engine.Target, "install capture on the target")); err != nil {
			return err
		}
	}
	failpoint.Hit("verify.recaptured")
	if err := (&reverseStep{env}).prove(ctx, cp, touched); err != nil {
		return err
	}
	made := byTable(changes)
	for _, t := range touched {
		if err := capture.Accept(ctx, target, t, made[t.ID]...); err != nil {
			return fmt.Errorf("accepting %s on the target: %w", pg.Name(t.Schema, t.Name.Name), err)
		}
	}
	return nil
}

// unseenRows reports whether rows may have changed with a change, or through it past the gate. What the run itself carries
// of that to the target is accepted as it does.
func unseenRows(c capture.Change) bool {
	through := []capture.What{capture.ColumnDropped, capture.PartitionAdded, capture.PartitionMoved, capture.Inheritance}
	return c.Rule == capture.Recopy || slices.Contains(through, c.What)
}

// forPerson gives the changes of the target that a person has to undo: those that leave a table there with other columns
// than the source's, or without what it was. Columns that the run itself carried there are the source's.
func forPerson(env *Env, changes []capture.Change) []capture.Change {
	return slices.DeleteFunc(slices.Clone(changes), func(c capture.Change) bool {
		at := slices.IndexFunc(env.Scope.Tables, func(t scope.Table) bool { return t.ID == c.ID })
		return at >= 0 && c.Rule != capture.Stop && c.Rule != capture.Leave && asSource(env.Scope.Tables[at], c, changes)
	})
}

// asSource reports whether a change of the target left what it is about as the source has it, with the others of that look.
func asSource(t scope.Table, c capture.Change, all []capture.Change) bool {
	at := slices.IndexFunc(t.Columns, func(col scope.Column) bool { return col.Name == c.Column })
	switch {
	case c.What == capture.ColumnAdded:
		return at >= 0
	case c.What == capture.ColumnDropped: // a column that is made anew is a new one to the catalog
		return at < 0 || t.Identity == scope.ByKey && slices.ContainsFunc(all, func(o capture.Change) bool {
			return o.ID == c.ID && o.What == capture.ColumnAdded && o.Column == c.Column && ofType(o.Type, t.Columns[at])
		})
	case c.What == capture.ColumnType:
		return at >= 0 && ofType(c.Type, t.Columns[at])
	case c.What == capture.ColumnGenerated:
		return at >= 0 && !t.Columns[at].Generated
	case c.What == capture.Inheritance && c.Rule == capture.Carry: // what inherits on the source has row triggers
		return t.Capture == scope.Row
	}
	return true
}

// ofType compares a change's type, which may name a collation, with a column's.
func ofType(of string, col scope.Column) bool {
	return of == col.Type || strings.HasPrefix(of, col.Type+" COLLATE ")
}

// byTable gives the changes of each table.
func byTable(changes []capture.Change) map[int32][]capture.Change {
	all := map[int32][]capture.Change{}
	for _, c := range changes {
		all[c.ID] = append(all[c.ID], c)
	}
	return all
}

// of gives the changes of one table.
func of(changes []capture.Change, id int32) []capture.Change {
	return slices.DeleteFunc(slices.Clone(changes), func(c capture.Change) bool { return c.ID != id })
}

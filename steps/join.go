package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

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

// news is how the source's tables and sequences in scope differ by name from those of the run.
type news struct {
	tables    []scope.Table    // new ones, without an id
	sequences []scope.Sequence // new ones
	gone      []scope.Sequence // of the run, not there any more
	left      []scope.Table    // joined this run and became partitions of others since
}

func (n news) empty() bool {
	return len(n.tables)+len(n.sequences)+len(n.gone)+len(n.left) == 0
}

// readNews resolves the runbook's patterns anew. Columns and partitions of tables that no capture
// follows are brought up to date in the scope. A new table that the rules cannot carry is an error.
func readNews(ctx context.Context, env *Env, source *pgx.Conn) (n news, err error) {
	fresh, findings, err := scope.Resolve(ctx, scope.Input{Source: source, Runbook: env.Runbook})
	if err != nil {
		return n, err
	}
	now, had := map[scope.Name]scope.Table{}, map[scope.Name]bool{}
	for _, t := range fresh.Tables {
		now[t.Name] = t
	}
	for i := range env.Scope.Tables {
		t := &env.Scope.Tables[i]
		had[t.Name] = true
		is, there := now[t.Name]
		if there && t.Data != scope.Live {
			t.Columns, t.Members = is.Columns, is.Members
		}
		switch {
		case there || !isMember(fresh.Tables, t.Name):
		case t.Joined:
			n.left = append(n.left, *t)
		case t.Data != scope.Live: // of the others capture tells
			return n, &engine.Error{
				Op: "following", Object: t.Display(), Err: errors.New("this table became a partition of another one"),
				Hint: "Detach it on the source, and run the same command again. Or begin again with what is now: pgrunbook abort --drop-target, then pgrunbook plan and apply.",
			}
		}
	}
	for _, t := range fresh.Tables {
		if had[t.Name] {
			continue
		}
		for _, f := range findings {
			if f.Severity == engine.SeverityError && f.Object == t.Display() {
				return n, &engine.Error{Op: "following the new table", Object: t.Display(), Err: errors.New(f.Text), Hint: "Give it a key on the source (a unique index over NOT NULL columns), or drop it, then run the same command again."}
			}
		}
		n.tables = append(n.tables, t)
	}
	same := func(s scope.Sequence) func(scope.Sequence) bool {
		return func(o scope.Sequence) bool { return o.Name == s.Name }
	}
	for _, s := range fresh.Sequences {
		if !slices.ContainsFunc(env.Scope.Sequences, same(s)) {
			n.sequences = append(n.sequences, s)
		}
	}
	for _, s := range env.Scope.Sequences {
		if !slices.ContainsFunc(fresh.Sequences, same(s)) {
			n.gone = append(n.gone, s)
		}
	}
	return n, nil
}

// changed names a table that is not as it was read, or went, since.
func (n news) changed(ctx context.Context, env *Env, source *pgx.Conn) error {
	now, err := readNews(ctx, env, source)
	if err != nil {
		return err
	}
	for _, t := range n.tables {
		if !slices.ContainsFunc(now.tables, func(is scope.Table) bool {
			return is.Name == t.Name && sameTable(is, t)
		}) {
			return &errRedefined{pg.Name(t.Schema, t.Name.Name) + " changed"}
		}
	}
	return nil
}

func isMember(tables []scope.Table, name scope.Name) bool {
	return slices.ContainsFunc(tables, func(t scope.Table) bool {
		return slices.ContainsFunc(t.Members, func(m scope.Member) bool { return m.Name == name })
	})
}

// join makes new tables and sequences part of the run. Their structure is on the target already, or
// it is an error. The scope is recorded before anything stands on the source: whoever goes on after a
// death arms them.
func (n news) join(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	if n.empty() {
		return nil
	}
	if env.Runbook.Schema.OnDDL != "carry" {
		return n.stop()
	}
	states, err := env.Journal.TableStates(ctx, nil)
	if err != nil {
		return err
	}
	next := env.Scope.LastID
	for id := range states {
		next = max(next, id)
	}
	for _, t := range env.Scope.Tables {
		next = max(next, t.ID)
	}
	joined := slices.Clone(n.tables)
	for i := range joined {
		next++
		joined[i].ID, joined[i].Joined = next, true
		if err := prepareNew(ctx, env, cp, sides, joined[i]); err != nil {
			return err
		}
	}
	for _, t := range joined {
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(t.Schema, t.Name.Name), Message: fmt.Sprintf("%s is new and in scope: carried from here on (%s)", pg.Name(t.Schema, t.Name.Name), t.Why)})
	}
	for _, s := range n.sequences {
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(s.Schema, s.Name.Name), Message: fmt.Sprintf("sequence %s is new and in scope: carried from here on", pg.Name(s.Schema, s.Name.Name))})
	}
	before := *env.Scope
	env.Scope.Tables = slices.Concat(env.Scope.Tables, joined)
	env.Scope.Sequences = slices.Concat(env.Scope.Sequences, n.sequences)
	env.Scope.Sequences = slices.DeleteFunc(env.Scope.Sequences, func(s scope.Sequence) bool {
		return slices.ContainsFunc(n.gone, func(g scope.Sequence) bool { return g.Name == s.Name })
	})
	failpoint.Hit("join.prepared")
	if err := recordScope(ctx, env); err != nil {
		*env.Scope = before // what is in no journal must not be followed
		return err
	}
	failpoint.Hit("join.recorded")
	return nil
}

func recordScope(ctx context.Context, env *Env, left ...int32) error {
	raw, err := json.Marshal(env.Scope)
	if err != nil {
		return fmt.Errorf("writing the scope as JSON: %w", err)
	}
	return env.Journal.SetScope(ctx, raw, left...)
}

func (n news) stop() error {
	e := &engine.Error{Op: "following", Hint: `Drop it if nothing needs it, or set schema { on_ddl = "carry" } in the runbook and run the same command again: it is carried from then on.`}
	switch {
	case len(n.tables) > 0:
		e.Object, e.Err = n.tables[0].Display(), errors.New("this table is new on the source and in scope")
	case len(n.sequences) > 0:
		e.Object, e.Err = n.sequences[0].Display(), errors.New("this sequence is new on the source and in scope")
	case len(n.gone) > 0:
		e.Object, e.Err = n.gone[0].Display(), errors.New("this sequence was dropped on the source")
		e.Hint = `Make it again, or set schema { on_ddl = "carry" } in the runbook and run the same command again: it is dropped on the target too.`
	default:
		e.Object, e.Err = n.left[0].Display(), errors.New("this table became a partition of another one")
	}
	return e
}

const parentSQL = `
SELECT n.nspname, p.relname FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
 WHERE h.inhrelid = to_regclass($1) AND p.relkind = 'p'`

// prepareNew takes a partition that was detached on the source off its tree on the target, and looks
// that the table is there as it must be.
func prepareNew(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	name := pg.Name(t.Schema, t.Name.Name)
	if _, err := detach(ctx, cp, sides, t.Name); err != nil {
		return err
	}
	differences, err := unlikeTarget(ctx, env, sides, t)
	if err != nil || len(differences) == 0 {
		return err
	}
	return &engine.Error{
		Op: "following the new table", Object: name, Err: errors.New(joinSome(differences)),
		Hint: "Make it on the target as it is on the source, without rows, then run the same command again.",
	}
}

// unlikeTarget says how a new table differs from the one that the target has.
func unlikeTarget(ctx context.Context, env *Env, sides *sideConns, t scope.Table) ([]string, error) {
	one := *env.Scope
	one.Tables = []scope.Table{t}
	differences, err := dump.Differences(ctx, sides.target, &one, false)
	if err != nil || env.Runbook.Schema.Mode != "existing" {
		return differences, err
	}
	trees, err := dump.TreeDifferences(ctx, sides.source, sides.target, &one) // somebody else may have made it
	return append(differences, trees...), err
}

// detach takes a table off its tree on the target, without rows. It is false where it is in none.
func detach(ctx context.Context, cp engine.Checkpoint, sides *sideConns, table scope.Name) (bool, error) {
	var parent scope.Name
	name := pg.Name(table.Schema, table.Name)
	err := sides.target.QueryRow(ctx, parentSQL, name).Scan(&parent.Schema, &parent.Name)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking at %s on the target: %w", name, err)
	}
	// Rows first: those that other rows still refer to would keep it where it is.
	sql := "DELETE FROM " + name + "; ALTER TABLE " + pg.Name(parent.Schema, parent.Name) + " DETACH PARTITION " + name
	if err := runOn(ctx, sides.target, table, waiting(cp, engine.Target, "detach a partition on the target"), sql, parent); err != nil {
		return false, fmt.Errorf("detaching %s on the target: %w", name, err)
	}
	return true, nil
}

// leave lets go of tables that joined this run and became partitions of another table: their rows go
// with that one from now on.
func (n news) leave(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	if len(n.left) == 0 {
		return nil
	}
	back, err := wayBack(ctx, env, sides.target)
	if err != nil {
		return err
	}
	for _, t := range n.left {
		name := pg.Name(t.Schema, t.Name.Name)
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: name, Message: name + " became a partition: its rows go with its tree"})
		if err := forget(ctx, env, cp, sides, t, back, "remove capture of a partition"); err != nil {
			return err
		}
		// The tree makes it again.
		if err := runOn(ctx, sides.target, t.Name, waiting(cp, engine.Target, "drop a table on the target"), "DROP TABLE IF EXISTS "+name); err != nil {
			return fmt.Errorf("dropping %s on the target: %w", name, err)
		}
		env.Scope.LastID = max(env.Scope.LastID, t.ID)
		env.Scope.Tables = slices.DeleteFunc(env.Scope.Tables, func(o scope.Table) bool { return o.ID == t.ID })
		if err := recordScope(ctx, env); err != nil { // whoever goes on after a death must not take the tree's partition for it
			return err
		}
	}
	return nil
}

// armJoined gates and captures every table that joined this run, so far as it is not done. What was dropped or
// became a partition since leaves the run instead. Once a table's rows are there, the target's is left to the freeze: what
// is missing there by then, or is another one, somebody has touched, and the rows must be compared.
func armJoined(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	states, err := env.Journal.TableStates(ctx, nil)
	if err != nil {
		return err
	}
	for _, t := range env.Scope.Tables {
		if !t.Joined {
			continue
		}
		var own bool
		if err := sides.source.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1) AND NOT relispartition)", pg.Name(t.Schema, t.Name.Name)).Scan(&own); err != nil {
			return fmt.Errorf("looking for %s: %w", pg.Name(t.Schema, t.Name.Name), err)
		}
		if !own {
			continue
		}
		err := rearm(ctx, env, cp, sides, t)
		if errors.Is(err, capture.ErrStatement) && env.Runbook.Schema.OnDDL == "carry" {
			continue // it came to inherit since: the check sees it, and gives it others
		}
		if err != nil && !errors.Is(err, capture.ErrUnseen) { // the check finds the partition as well
			return err
		}
		if states[t.ID].State != journal.Following {
			if err := armNew(ctx, env, cp, sides, t); err != nil {
				return err
			}
		}
		failpoint.Hit("join.armed")
	}
	return nil
}

// wayBack reports whether the way back is captured already: what joins must be as well.
func wayBack(ctx context.Context, env *Env, target *pgx.Conn) (bool, error) {
	shapes, err := capture.Shapes(ctx, target, captured(env))
	return len(shapes) > 0, err
}

// armNew gates a table that joined on the target, and captures it there where others are.
func armNew(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	if err := gate.InstallOn(ctx, sides.target, env.runAt(engine.Target), []scope.Table{t}, waiting(cp, engine.Target, "gate a table of the target")); err != nil {
		return err
	}
	back, err := wayBack(ctx, env, sides.target)
	if err != nil || !back || !isCaptured(t) {
		return err
	}
	shapes, err := capture.Shapes(ctx, sides.target, []scope.Table{t})
	if err != nil || len(shapes) > 0 {
		return err
	}
	return capture.InstallClosed(ctx, sides.target, env.Run, t, waiting(cp, engine.Target, "install capture on the target"))
}

// gateSource gates a table on the source where others are gated.
func gateSource(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	at, err := gate.State(ctx, sides.source, env.Run)
	if err != nil || at == gate.Absent {
		return err
	}
	return gate.InstallOn(ctx, sides.source, env.runAt(engine.Source), []scope.Table{t}, waiting(cp, engine.Source, "gate a table of the source"))
}

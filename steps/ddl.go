package steps

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// carry says that the source's tables changed in a way that the target can follow.
type carry struct{ changes []capture.Change }

func (c *carry) Error() string {
	return fmt.Sprintf("%s: %s", pg.Name(c.changes[0].Table.Schema, c.changes[0].Table.Name), c.changes[0].Text)
}

// carryDDL makes the target like the source, table by table: the change there, triggers for a new
// partition on both sides, then the record that it was handled. Each part may be done already.
// Tables whose new column has a default that is no constant come back: its values were made on the
// source when the column was, so their rows are read again.
func carryDDL(ctx context.Context, env *Env, cp engine.Checkpoint, c *carry) (again *recopy, err error) {
	sides, err := openSidesToDefine(ctx, env, "ddl")
	if err != nil {
		return nil, err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if err := dropPartitions(ctx, env, cp, sides, c.changes, true); err != nil {
		return nil, err
	}
	again = &recopy{}
	byTable := map[int32][]capture.Change{}
	rewritten := map[int32]bool{}
	for _, ch := range c.changes {
		if ch.Rule == capture.Recopy {
			rewritten[ch.ID] = true
		}
	}
	for _, ch := range c.changes {
		byTable[ch.ID] = append(byTable[ch.ID], ch)
		if ch.Rule != capture.Carry {
			continue
		}
		if ch.What == capture.ColumnType && rewritten[ch.ID] {
			// Its rows are read again: those that are there need no cast, and might have none.
			if _, err := sides.target.Exec(ctx, "DELETE FROM "+pg.Name(ch.Table.Schema, ch.Table.Name)); err != nil {
				return nil, fmt.Errorf("emptying %s on the target: %w", pg.Name(ch.Table.Schema, ch.Table.Name), err)
			}
			ch.SQL += " USING NULL"
		}
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(ch.Table.Schema, ch.Table.Name), Message: fmt.Sprintf("%s: carried to the target: %s", ch.Text, ch.SQL)})
		if ch.What == capture.ColumnDropped {
			if err := dropCarried(ctx, env, cp, sides, ch.SQL, []scope.Name{ch.Table}); err != nil {
				return nil, err
			}
			failpoint.Hit("ddl.dropped")
			continue
		}
		var blocked *pg.LockError
		err := runOn(ctx, sides.target, scope.Name{Schema: ch.Table.Schema, Name: ch.Table.Name}, waiting(cp, engine.Target, "carry a change to the target"), ch.SQL)
		if errors.As(err, &blocked) {
			return nil, sided(engine.Target, err)
		}
		if err != nil && !slices.Contains([]string{"42701", "42P07"}, pg.SQLState(err)) { // there already
			return nil, &engine.Error{
				Op: "carrying a change to the target", Object: pg.Name(ch.Table.Schema, ch.Table.Name), Err: fmt.Errorf("%s: %w", ch.SQL, err),
				Hint: "Make the same change on the target by hand, then run the same command again.",
			}
		}
		failpoint.Hit("ddl.changed")
	}
	if err := refreshTables(ctx, env, sides.source, func(t scope.Table) bool { return byTable[t.ID] != nil }); err != nil {
		return nil, err
	}
	for _, t := range env.Scope.Tables {
		changes := byTable[t.ID]
		if changes == nil {
			continue
		}
		if err := rearm(ctx, env, cp, sides, t); err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(changes, func(c capture.Change) bool { return c.Rule == capture.Recopy || madeValues(c) }); i >= 0 {
			again.tables, again.changes = append(again.tables, t), slices.Concat(again.changes, changes[i:i+1], slices.Delete(slices.Clone(changes), i, i+1))
			continue // accepted when the table is read again
		}
		failpoint.Hit("ddl.rearmed")
		if err := capture.Accept(ctx, sides.source, t, changes...); err != nil {
			return nil, err
		}
		failpoint.Hit("ddl.accepted")
	}
	return again, nil
}

// runOn runs statements about a relation in one transaction, under the lock etiquette of internal/pg.
// others are relations that they lock as well.
func runOn(ctx context.Context, conn *pgx.Conn, rel scope.Name, onWait capture.OnWait, sql string, others ...scope.Name) error {
	e := pg.Etiquette{Object: pg.Name(rel.Schema, rel.Name), Mode: pg.AccessExclusive, Report: onWait}
	for _, name := range append(others, rel) {
		var oid uint32
		if err := conn.QueryRow(ctx, "SELECT coalesce(to_regclass($1)::oid, 0::oid)", pg.Name(name.Schema, name.Name)).Scan(&oid); err != nil {
			return err
		}
		e.Relations = append(e.Relations, oid)
	}
	return pg.WithLock(ctx, conn, e, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql)
		return err
	})
}

// constant is a default that has the same value on both sides whenever it is evaluated.
var constant = regexp.MustCompile(`^(('([^']|'')*'|-?[0-9.]+|true|false|NULL)(::[a-z][a-z0-9 ."()\[\]]*)?|\(-[0-9.]+\))$`)

// madeValues reports whether a change gave old rows values that the target cannot know.
func madeValues(c capture.Change) bool {
	return c.What == capture.ColumnAdded && c.Default != "" && !constant.MatchString(c.Default)
}

// rearm puts our triggers on what is new: tables and partitions, on both sides.
func rearm(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	if err := capture.InstallOn(ctx, sides.source, env.Run, t, waiting(cp, engine.Source, "install capture on the source")); err != nil {
		return err
	}
	if err := gateNew(ctx, env, cp, sides, t); err != nil {
		return err
	}
	back, err := wayBack(ctx, env, sides.target)
	if err != nil || !back || t.Data != scope.Live {
		return err
	}
	if err := capture.InstallOn(ctx, sides.target, env.Run, t, waiting(cp, engine.Target, "install capture on the target")); err != nil {
		return err
	}
	return capture.Accept(ctx, sides.target, t)
}

// refreshScope brings the plan's tables up to the changes that an earlier process carried: what
// capture has recorded as handled counts, not what the plan said.
func refreshScope(ctx context.Context, env *Env) error {
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "scope", LockTimeout: lockPatience})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var there bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('pgrunbook.captured') IS NOT NULL").Scan(&there); err != nil || !there {
		return err
	}
	shapes, err := capture.Shapes(ctx, conn, env.Scope.Tables)
	if err != nil {
		return err
	}
	return refreshTables(ctx, env, conn, func(t scope.Table) bool {
		s, ok := shapes[t.ID]
		return ok && !slices.Equal(s.Columns, columnTypes(t)) || ok && len(s.Members) != len(t.Members)
	})
}

func columnTypes(t scope.Table) []string {
	list := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		list[i] = c.Name + " " + c.Type
	}
	return list
}

// refreshTables reads columns and partitions of chosen tables anew.
func refreshTables(ctx context.Context, env *Env, source *pgx.Conn, chosen func(scope.Table) bool) error {
	if !slices.ContainsFunc(env.Scope.Tables, chosen) {
		return nil
	}
	now, _, err := scope.Resolve(ctx, scope.Input{Source: source, Runbook: env.Runbook})
	if err != nil {
		return err
	}
	byName := map[scope.Name]scope.Table{}
	for _, t := range now.Tables {
		byName[t.Name] = t
	}
	for i := range env.Scope.Tables {
		t := &env.Scope.Tables[i]
		if fresh, ok := byName[t.Name]; ok && chosen(*t) {
			t.Columns, t.Members = fresh.Columns, fresh.Members
		}
	}
	return nil
}

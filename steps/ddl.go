package steps

import (
	"cmp"
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
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// carry says that the source's tables changed in a way that the target can follow.
type carry struct{ changes []capture.Change }

func (c *carry) Error() string {
	return fmt.Sprintf("%s: %s", pg.Name(c.changes[0].Table.Schema, c.changes[0].Table.Name), c.changes[0].Text)
}

// carryDDL makes the target like the source, table by table: the change there, triggers for a new
// partition on both sides, then the record that it was handled. Each part may be done already.
// Tables that must be loaded again come back; of them nothing is recorded yet.
func carryDDL(ctx context.Context, env *Env, cp engine.Checkpoint, c *carry) (again *recopy, err error) {
	sides, err := openSidesToDefine(ctx, env, "ddl")
	if err != nil {
		return nil, err
	}
	defer sides.close(context.WithoutCancel(ctx))
	back, err := lookBack(ctx, env, sides.target, c.changes)
	if err != nil {
		return nil, err
	}
	if err := capture.Begin(ctx, sides.source, c.changes); err != nil {
		return nil, err
	}
	failpoint.Hit("ddl.begun")
	emptied, err := makeAlike(ctx, env, cp, sides, c.changes)
	if err != nil {
		return nil, err
	}
	again = &recopy{}
	per := byTable(c.changes)
	if err := refreshTables(ctx, env, sides.source, func(t scope.Table) bool { return per[t.ID] != nil }); err != nil {
		return nil, err
	}
	for _, t := range env.Scope.Tables {
		changes := per[t.ID]
		if slices.Contains(emptied, t.Name) {
			changes = append([]capture.Change{emptiedHeir(t)}, changes...)
		}
		if changes == nil {
			continue
		}
		err := rearm(ctx, env, cp, sides, t)
		if err == nil || errors.Is(err, capture.ErrUnseen) {
			err = cmp.Or(gateMade(ctx, env, cp, sides, changes), err)
		}
		if err == nil && !slices.ContainsFunc(changes, capture.Change.Reloads) { // else accepted when the target's table is empty
			err = back.accept(ctx, env, cp, sides, t)
		}
		if errors.Is(err, capture.ErrUnseen) {
			changes, err = append([]capture.Change{unseen(t, changes[0])}, changes...), nil
		}
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(changes, capture.Change.Reloads); i >= 0 {
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

// makeAlike makes the changes on the target, those that take something away first. It gives the live tables whose rows
// went there with those of a parent, or got other values with a parent's column.
func makeAlike(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, changes []capture.Change) (emptied []scope.Name, err error) {
	if err := dropPartitions(ctx, env, cp, sides, changes, true); err != nil {
		return nil, err
	}
	if err := detachRemoved(ctx, cp, sides, changes); err != nil {
		return nil, err
	}
	if err := clearPlaces(ctx, env, cp, sides, changes); err != nil {
		return nil, err
	}
	if err := looseParents(ctx, env, cp, sides, changes); err != nil {
		return nil, err
	}
	line, err := lineage(ctx, sides.target)
	if err != nil {
		return nil, err
	}
	rewritten := map[int32]bool{}
	for _, ch := range changes {
		if ch.Rule == capture.Recopy {
			rewritten[ch.ID] = true
		}
	}
	ordered, err := line.inOrder(ctx, sides.source, changes)
	if err != nil {
		return nil, err
	}
	for _, ch := range ordered {
		if ch.Rule != capture.Carry {
			continue
		}
		if there, err := cameWithParent(ctx, sides.target, ch); err != nil {
			return nil, err
		} else if there {
			continue
		}
		if ch.What == capture.ColumnType && rewritten[ch.ID] {
			list, using, err := emptyToCast(ctx, env, sides, line, ch)
			if err != nil {
				return nil, err
			}
			ch.SQL += using
			emptied = append(emptied, list...)
		}
		if ch.What == capture.ColumnDropped {
			cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(ch.Table.Schema, ch.Table.Name), Message: fmt.Sprintf("%s: carried to the target: %s", ch.Text, ch.SQL)})
			if err := dropCarried(ctx, env, cp, sides, ch.SQL, []scope.Name{ch.Table}, changedColumns(changes, ch.ID)...); err != nil {
				return nil, err
			}
			failpoint.Hit("ddl.dropped")
			continue
		}
		if ch.What == capture.Inheritance {
			continue // in two parts, around the others
		}
		if ch.SQL == "" { // made like the source's once its rows are there: see afterRows
			cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(ch.Table.Schema, ch.Table.Name), Message: ch.Text + ": carried to the target when its rows are there"})
			continue
		}
		otherwise, err := cameOtherwise(ctx, sides.target, ch)
		if err != nil {
			return nil, err
		}
		if otherwise {
			emptied = append(emptied, ch.Table)
		}
		switch {
		case len(ch.Places) > 0:
			err = makePartitions(ctx, env, cp, sides, ch)
		case ch.What == capture.ColumnDefault && ch.Member.Name != "":
			err = carryMember(ctx, env, cp, sides, ch)
		default:
			err = carryChange(ctx, cp, sides, ch)
		}
		if err != nil {
			return nil, err
		}
		failpoint.Hit("ddl.changed")
	}
	if err := alignChanged(ctx, env, cp, sides, changes); err != nil {
		return nil, err
	}
	return emptied, tieParents(ctx, env, cp, sides, changes)
}

func changedColumns(changes []capture.Change, id int32) (list []string) {
	for _, c := range changes {
		if c.ID == id && c.Column != "" {
			list = append(list, c.Column)
		}
	}
	return list
}

// carryChange runs a change's statement on the target, which may have it already.
func carryChange(ctx context.Context, cp engine.Checkpoint, sides *sideConns, ch capture.Change) error {
	name := pg.Name(ch.Table.Schema, ch.Table.Name)
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: name, Message: fmt.Sprintf("%s: carried to the target: %s", ch.Text, ch.SQL)})
	var blocked *pg.LockError
	err := runOn(ctx, sides.target, ch.Table, waiting(cp, engine.Target, "carry a change to the target"), ch.SQL)
	switch {
	case errors.As(err, &blocked):
		return sided(engine.Target, err)
	case ch.What == capture.ColumnNull && pg.SQLState(err) == "23502":
		return nil // rows that passes have still to bring hold a NULL there: see afterRows
	case err != nil && pg.SQLState(err) != "42701": // there already
		return &engine.Error{
			Op: "carrying a change to the target", Object: name, Err: fmt.Errorf("%s: %w", ch.SQL, err),
			Hint: "Make the same change on the target by hand, then run the same command again.",
		}
	}
	return nil
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

// recapture makes a table's triggers on the source right. What was dropped since it was looked at, and may have
// been made again, is let go of first.
func recapture(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	err := capture.InstallOn(ctx, sides.source, env.Run, t, waiting(cp, engine.Source, "install capture on the source"))
	if errors.Is(err, capture.ErrAnother) && env.Runbook.Schema.OnDDL == "carry" {
		return &errRedefined{pg.Name(t.Schema, t.Name.Name) + " was dropped"}
	}
	return err
}

// rearm puts our triggers on what is new on the source: tables and partitions. Where capture.ErrUnseen is all that is
// wrong, everything stands and the table must be loaded again.
func rearm(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	unseen := recapture(ctx, env, cp, sides, t)
	if unseen != nil && !errors.Is(unseen, capture.ErrUnseen) {
		return unseen
	}
	return cmp.Or(gateSource(ctx, env, cp, sides, t), unseen)
}

// unseen is why a table without a key is loaded again that got a partition with rows.
func unseen(t scope.Table, of capture.Change) capture.Change {
	of.Rule, of.What, of.Places = capture.Recopy, capture.PartitionAdded, nil
	of.Text = pg.Name(t.Schema, t.Name.Name) + ": rows came with a new partition, and it has no key"
	return of
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
	err = refreshTables(ctx, env, conn, func(t scope.Table) bool {
		s, ok := shapes[t.ID]
		return ok && (!slices.Equal(s.Columns, columnTypes(t)) || !sameNames(s.Members, memberNames(t)))
	})
	if err != nil {
		return err
	}
	for i := range env.Scope.Tables {
		t := &env.Scope.Tables[i]
		if s, ok := shapes[t.ID]; ok {
			recordedOnly(t, s)
			recaptured(t, s.Capture)
		}
	}
	return nil
}

// recordedOnly takes out of a table what came since its last change was handled: the target has none of it.
func recordedOnly(t *scope.Table, s capture.Shape) {
	t.Columns = slices.DeleteFunc(t.Columns, func(c scope.Column) bool {
		return !slices.ContainsFunc(s.Columns, func(known string) bool { return strings.HasPrefix(known, c.Name+" ") })
	})
	t.Members = slices.DeleteFunc(t.Members, func(m scope.Member) bool { return !slices.Contains(s.Members, m.Name) })
}

func memberNames(t scope.Table) []scope.Name {
	list := make([]scope.Name, len(t.Members))
	for i, m := range t.Members {
		list[i] = m.Name
	}
	return list
}

func sameNames(a, b []scope.Name) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(n scope.Name) bool { return !slices.Contains(b, n) })
}

func columnTypes(t scope.Table) []string {
	list := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		list[i] = capture.ColumnText(c)
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
			if fresh.Inherits {
				recaptured(t, fresh.Capture)
			}
		}
	}
	return nil
}

// recaptured makes a table that statement triggers follow one for row triggers. It stays one when it inherits no more.
func recaptured(t *scope.Table, by scope.Capture) {
	if t.Capture == scope.Statement && by == scope.Row {
		t.Capture, t.Recaptured = scope.Row, true
	}
}

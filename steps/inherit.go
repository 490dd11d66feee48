package steps

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// heirsSQL gives legacy inheritance of tables ($1, quoted names), as children or ($2) as parents: child and parent.
const heirsSQL = `
SELECT cn.nspname::text, c.relname::text, pn.nspname::text, p.relname::text
  FROM unnest($1::text[]) name
  JOIN pg_inherits h ON CASE WHEN $2 THEN h.inhparent ELSE h.inhrelid END = to_regclass(name)
  JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_class p ON p.oid = h.inhparent AND p.relkind <> 'p' JOIN pg_namespace pn ON pn.oid = p.relnamespace
 ORDER BY cn.nspname, c.relname, h.inhseqno`

// heir is a table that inherits from another one, which is no partitioned table.
type heir struct{ Child, Parent scope.Name }

func (h heir) alter(verb string) string {
	return fmt.Sprintf("ALTER TABLE %s %s %s", pg.Name(h.Child.Schema, h.Child.Name), verb, pg.Name(h.Parent.Schema, h.Parent.Name))
}

func heirs(ctx context.Context, conn *pgx.Conn, names []scope.Name, parents bool) ([]heir, error) {
	if len(names) == 0 {
		return nil, nil
	}
	rows, err := conn.Query(ctx, heirsSQL, quoted(names), parents)
	return collectHeirs(rows, err)
}

// collectHeirs reads what a query for children and parents gave.
func collectHeirs(rows pgx.Rows, err error) ([]heir, error) {
	if err != nil {
		return nil, fmt.Errorf("reading inheritance: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (h heir, err error) {
		return h, row.Scan(&h.Child.Schema, &h.Child.Name, &h.Parent.Schema, &h.Parent.Name)
	})
	if err != nil {
		return nil, fmt.Errorf("reading inheritance: %w", err)
	}
	return list, nil
}

// heirsAmong are the tables whose inheritance changed.
func heirsAmong(changes []capture.Change) (names []scope.Name) {
	for _, c := range changes {
		if c.What == capture.Inheritance {
			names = append(names, c.Table)
		}
	}
	return names
}

// heirsOf gives what tables whose inheritance changed inherit on both sides.
func heirsOf(ctx context.Context, sides *sideConns, changes []capture.Change) (source, target []heir, err error) {
	names := heirsAmong(changes)
	if source, err = heirs(ctx, sides.source, names, false); err != nil {
		return nil, nil, err
	}
	target, err = heirs(ctx, sides.target, names, false)
	return source, target, err
}

// looseParents takes tables off parents on the target that they inherit from no more, before their columns and their
// parents' change.
func looseParents(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, changes []capture.Change) error {
	source, target, err := heirsOf(ctx, sides, changes)
	if err != nil {
		return err
	}
	if err := inScope(env, source); err != nil {
		return err
	}
	for _, h := range target {
		if !slices.Contains(source, h) {
			if err := carryHeir(ctx, cp, sides, h, "NO INHERIT"); err != nil {
				return err
			}
		}
	}
	return nil
}

// inScope refuses a parent that is not in scope, and not among what is about to join: its gate is none of ours.
func inScope(env *Env, source []heir, joining ...scope.Table) error {
	for _, h := range source {
		if owningTable(env, nil, pg.Name(h.Parent.Schema, h.Parent.Name)) == nil && !slices.ContainsFunc(joining, func(t scope.Table) bool { return t.Name == h.Parent }) {
			return &engine.Error{
				Op: "following", Object: pg.Name(h.Child.Schema, h.Child.Name), Err: fmt.Errorf("it inherits from %s, which is not in scope: UPDATE and DELETE of that table change its rows too, and no gate stops them", pg.Name(h.Parent.Schema, h.Parent.Name)),
				Hint: "Take it off on the source, then run the same command again: " + h.alter("NO INHERIT"),
			}
		}
	}
	return nil
}

// heirsAlike gives what takes a table off parents on the target, and what makes it inherit there as on the source.
func heirsAlike(ctx context.Context, env *Env, sides *sideConns, table scope.Name) (loose, tie []string, err error) {
	source, err := heirs(ctx, sides.source, []scope.Name{table}, false)
	if err != nil {
		return nil, nil, err
	}
	target, err := heirs(ctx, sides.target, []scope.Name{table}, false)
	if err != nil {
		return nil, nil, err
	}
	if slices.Equal(source, target) {
		return nil, nil, nil
	}
	for _, h := range target {
		if !slices.Contains(source, h) {
			loose = append(loose, h.alter("NO INHERIT"))
		}
	}
	for _, h := range source {
		if !slices.Contains(target, h) {
			tie = append(tie, h.alter("INHERIT"))
		}
	}
	return loose, tie, inScope(env, source)
}

// tieParents makes tables inherit on the target, once their columns are alike.
func tieParents(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, changes []capture.Change) error {
	source, target, err := heirsOf(ctx, sides, changes)
	if err != nil {
		return err
	}
	for _, h := range source {
		if !slices.Contains(target, h) {
			if err := carryHeir(ctx, cp, sides, h, "INHERIT"); err != nil {
				return err
			}
		}
	}
	return nil
}

func carryHeir(ctx context.Context, cp engine.Checkpoint, sides *sideConns, h heir, verb string) error {
	name, sql := pg.Name(h.Child.Schema, h.Child.Name), h.alter(verb)
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: name, Message: fmt.Sprintf("the inheritance of %s changed: carried to the target: %s", name, sql)})
	if err := runOn(ctx, sides.target, h.Child, waiting(cp, engine.Target, "carry a change to the target"), sql, h.Parent); err != nil {
		return &engine.Error{
			Op: "carrying a change to the target", Object: name, Err: fmt.Errorf("%s: %w", sql, err),
			Hint: "Make the same change on the target by hand, then run the same command again.",
		}
	}
	return nil
}

// looseChildren takes tables of the run off others that are about to be dropped on the target, where they are still on
// the source: they inherit from them no more.
func looseChildren(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, dropped []scope.Name) error {
	list, err := heirs(ctx, sides.target, dropped, true)
	if err != nil {
		return err
	}
	for _, h := range list {
		at := slices.IndexFunc(env.Scope.Tables, func(t scope.Table) bool { return t.Name == h.Child })
		if at < 0 || slices.Contains(dropped, h.Child) {
			continue
		}
		var there bool
		if err := sides.source.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1)", env.Scope.Tables[at].OID).Scan(&there); err != nil {
			return fmt.Errorf("looking for %s: %w", pg.Name(h.Child.Schema, h.Child.Name), err)
		}
		if !there {
			continue
		}
		if err := carryHeir(ctx, cp, sides, h, "NO INHERIT"); err != nil {
			return err
		}
	}
	return nil
}

// parentsFirst asks for what changed of tables that new ones inherit from, before these are made: a new one is written
// down without the columns that it inherits.
func (n news) parentsFirst(ctx context.Context, env *Env, source *pgx.Conn) error {
	var names []scope.Name
	for _, t := range n.tables {
		if t.Inherits {
			names = append(names, t.Name)
		}
	}
	if len(names) == 0 || env.Runbook.Schema.OnDDL != "carry" {
		return nil
	}
	list, err := heirs(ctx, source, names, false)
	if err != nil {
		return err
	}
	var parents []scope.Table
	for _, t := range captured(env) {
		if slices.ContainsFunc(list, func(h heir) bool { return h.Parent == t.Name }) {
			parents = append(parents, t)
		}
	}
	changes, err := capture.Check(ctx, source, env.Run, parents)
	if err != nil || !slices.ContainsFunc(changes, func(c capture.Change) bool { return c.Rule == capture.Carry }) {
		return err
	}
	return &carry{changes: changes}
}

package steps

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// treeDefaultsSQL gives the defaults of the columns of a table and of all below it, partitions and heirs.
const treeDefaultsSQL = `
WITH RECURSIVE tree (oid) AS (
  SELECT to_regclass($1)::oid UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid)
SELECT n.nspname::text, c.relname::text, a.attname::text, coalesce(pg_get_expr(d.adbin, d.adrelid), '')
  FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND coalesce(to_jsonb(a) ->> 'attgenerated', '') = ''
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum`

// treeColumn is a column of a table or of one below it.
type treeColumn struct {
	Table  scope.Name
	Column string
}

func (c treeColumn) compare(o treeColumn) int {
	return cmp.Or(cmp.Compare(c.Table.Schema, o.Table.Schema), cmp.Compare(c.Table.Name, o.Table.Name), cmp.Compare(c.Column, o.Column))
}

func treeDefaults(ctx context.Context, conn *pgx.Conn, root scope.Name) (map[treeColumn]string, error) {
	rows, err := conn.Query(ctx, treeDefaultsSQL, pg.Name(root.Schema, root.Name))
	if err != nil {
		return nil, fmt.Errorf("reading the defaults of %s: %w", pg.Name(root.Schema, root.Name), err)
	}
	list, def := map[treeColumn]string{}, ""
	var c treeColumn
	_, err = pgx.ForEachRow(rows, []any{&c.Table.Schema, &c.Table.Name, &c.Column, &def}, func() error { list[c] = def; return nil })
	if err != nil {
		return nil, fmt.Errorf("reading the defaults of %s: %w", pg.Name(root.Schema, root.Name), err)
	}
	return list, nil
}

// alignDefaults gives what is below a table on the target the defaults that it has on the source. A default, a column or
// a type that is set for the table reaches all of them, and a partition that is made has its table's default. Of the
// table's own columns only those that changed are looked at: they may have come with a parent's.
func alignDefaults(ctx context.Context, cp engine.Checkpoint, sides *sideConns, root scope.Name, changed ...string) error {
	want, err := treeDefaults(ctx, sides.source, root)
	if err != nil {
		return err
	}
	have, err := treeDefaults(ctx, sides.target, root)
	if err != nil {
		return err
	}
	for _, c := range slices.SortedFunc(maps.Keys(want), treeColumn.compare) {
		def, there := have[c]
		if !there || def == want[c] || c.Table == root && !slices.Contains(changed, c.Column) {
			continue
		}
		what := "DROP DEFAULT"
		if want[c] != "" {
			what = "SET DEFAULT " + want[c]
		}
		one := capture.Change{Table: c.Table, Text: fmt.Sprintf("column %q of %s has a default of its own", c.Column, pg.Name(c.Table.Schema, c.Table.Name))}
		one.SQL = fmt.Sprintf("ALTER TABLE ONLY %s ALTER COLUMN %s %s", pg.Name(c.Table.Schema, c.Table.Name), pgx.Identifier{c.Column}.Sanitize(), what)
		if err := carryChange(ctx, cp, sides, one); err != nil {
			return err
		}
	}
	return nil
}

// alignChanged does so for what changes have made of tables that are captured.
func alignChanged(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, changes []capture.Change) error {
	if env.Runbook.Schema.Mode == "existing" {
		return nil // somebody else makes the target's tables, with defaults of their own
	}
	for _, t := range env.Scope.Tables {
		reached := func(c capture.Change) bool {
			return c.ID == t.ID && c.Rule == capture.Carry && (c.Column != "" || len(c.Places) > 0)
		}
		if !slices.ContainsFunc(changes, reached) {
			continue
		}
		if err := alignDefaults(ctx, cp, sides, t.Name, changedColumns(changes, t.ID)...); err != nil {
			return err
		}
	}
	return nil
}

// alignDefaults does so for what statements have made of tables that are not captured.
func (c *comparison) alignDefaults(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	if env.Runbook.Schema.Mode == "existing" {
		return nil // as in alignChanged
	}
	done := map[scope.Name]bool{}
	for _, d := range c.differences {
		t := owningTable(env, c.fresh, d.item.Name)
		table := d.item.Kind == dump.ItemTable || d.item.Kind == dump.ItemPartition
		if !table || len(d.sql) == 0 || d.verb == "was dropped" || t == nil || done[t.Name] {
			continue
		}
		done[t.Name] = true
		if err := alignDefaults(ctx, cp, sides, t.Name); err != nil {
			return err
		}
	}
	return nil
}

// carryMember gives a partition of the target its own default. Where somebody else makes the target's tables, it may have
// no such partition, or nothing that the default names: no row depends on it.
func carryMember(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, ch capture.Change) error {
	var there bool
	member := pg.Name(ch.Member.Schema, ch.Member.Name)
	if err := sides.target.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", member).Scan(&there); err != nil {
		return fmt.Errorf("looking for %s on the target: %w", member, err)
	}
	why := "the target has no such partition"
	if there {
		err := carryChange(ctx, cp, sides, ch)
		if env.Runbook.Schema.Mode != "existing" || !undefined(err) {
			return err
		}
		why = err.Error()
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(ch.Table.Schema, ch.Table.Name), Message: fmt.Sprintf("%s: not carried to the target, no row depends on it (%s)", ch.Text, why)})
	return nil
}

const cameSQL = `
SELECT %s IS DISTINCT FROM $3 FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND NOT a.attisdropped AND a.attinhcount > 0`

// cameOtherwise reports whether a new column came to an heir on the target with a parent's, and its rows from before have
// another value there than on the source.
func cameOtherwise(ctx context.Context, target *pgx.Conn, ch capture.Change) (otherwise bool, err error) {
	if ch.What != capture.ColumnAdded {
		return false, nil
	}
	version, err := pg.Version(ctx, target)
	if err != nil {
		return false, err
	}
	missing := "CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END"
	if version < 110000 { // each row got it
		missing = "NULL::text"
	}
	name := pg.Name(ch.Table.Schema, ch.Table.Name)
	rows, err := target.Query(ctx, fmt.Sprintf(cameSQL, missing), name, ch.Column, ch.Missing)
	if err != nil {
		return false, fmt.Errorf("reading the columns of %s: %w", name, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[bool])
	if err != nil {
		return false, fmt.Errorf("reading the columns of %s: %w", name, err)
	}
	return slices.Contains(list, true), nil
}

package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
	"github.com/pgrunbook/pgrunbook/steps/internal/sequences"
)

// An identity's sequence is in its table's schema.
const identitiesSQL = `
SELECT t.nspname::text, t.relname::text, a.attname::text, s.relname::text
  FROM (SELECT c.oid, n.nspname, c.relname FROM unnest($1::text[], $2::text[]) AS x (nsp, rel)
          JOIN pg_namespace n ON n.nspname::text = x.nsp JOIN pg_class c ON c.relnamespace = n.oid AND c.relname::text = x.rel) t
  JOIN pg_attribute a ON a.attrelid = t.oid AND a.attidentity <> '' AND NOT a.attisdropped
  JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid = a.attnum AND d.classid = 'pg_class'::regclass AND d.deptype = 'i'
  JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
 ORDER BY 1, 2, a.attnum`

// identityColumn is one with its sequence.
type identityColumn struct {
	Schema, Table, Column, Sequence string
}

func (i identityColumn) name() string { return pg.Name(i.Schema, i.Sequence) }

func identityColumns(ctx context.Context, conn *pgx.Conn, tables []scope.Table) ([]identityColumn, error) {
	schemas, names := []string{}, []string{}
	for _, t := range tables {
		schemas, names = append(schemas, t.Schema), append(names, t.Name.Name)
	}
	rows, err := conn.Query(ctx, identitiesSQL, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("reading the sequences of identities: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[identityColumn])
	if err != nil {
		return nil, fmt.Errorf("reading the sequences of identities: %w", err)
	}
	return list, nil
}

// renaming is one whose sequence has another name on the other side.
type renaming struct {
	identityColumn
	to identityColumn
}

// renamings compares the sequences of identity columns that both sides have.
func renamings(ctx context.Context, env *Env, from, to *pgx.Conn) ([]renaming, error) {
	is, err := identityColumns(ctx, from, env.Scope.Tables)
	if err != nil {
		return nil, err
	}
	was, err := identityColumns(ctx, to, env.Scope.Tables)
	if err != nil {
		return nil, err
	}
	byColumn := map[identityColumn]identityColumn{}
	for _, i := range is {
		byColumn[identityColumn{i.Schema, i.Table, i.Column, ""}] = i
	}
	var list []renaming
	for _, old := range was {
		if now, ok := byColumn[identityColumn{old.Schema, old.Table, old.Column, ""}]; ok && now != old {
			list = append(list, renaming{old, now})
		}
	}
	return list, nil
}

// renameIdentities gives the sequences of the target's identity columns the names that they have on the source, in one
// transaction: by its name the freeze finds the one that it sets.
func renameIdentities(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	list, err := renamings(ctx, env, sides.source, sides.target)
	if err != nil || len(list) == 0 {
		return err
	}
	if env.Runbook.Schema.OnDDL != "carry" {
		return &engine.Error{
			Op: "following", Object: list[0].to.name(), Err: fmt.Errorf("this sequence was %s when the run began", list[0].name()),
			Hint: `Rename it back, or set schema { on_ddl = "carry" } in the runbook and run the same command again: it is renamed on the target too.`,
		}
	}
	if err := sides.durable(ctx); err != nil {
		return err
	}
	var aside, final []string
	for n, r := range list {
		from := r.name()
		if slices.ContainsFunc(list, func(o renaming) bool { return o.name() == r.to.name() }) { // it has to make room first
			between := fmt.Sprintf("pgrunbook_%s_%d", env.Run.ID, n)
			aside = append(aside, fmt.Sprintf("ALTER SEQUENCE %s RENAME TO %s", from, between))
			from = pg.Name(r.Schema, between)
		}
		final = append(final, fmt.Sprintf("ALTER SEQUENCE %s RENAME TO %s", from, pgx.Identifier{r.to.Sequence}.Sanitize()))
	}
	sql := strings.Join(slices.Concat(aside, final), "; ")
	var tables []scope.Name
	for _, r := range list {
		tables = append(tables, scope.Name{Schema: r.Schema, Name: r.Table})
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: r.to.name(), Message: fmt.Sprintf("sequence %s is %s on the source: renamed on the target too", r.name(), r.to.name())})
	}
	if err := runOn(ctx, sides.target, tables[0], waiting(cp, engine.Target, "carry a change to the target"), sql, tables[1:]...); err != nil {
		return &engine.Error{
			Op: "carrying a change to the target", Object: list[0].to.name(), Err: fmt.Errorf("%s: %w", sql, err),
			Hint: "Make the same change on the target by hand, then run the same command again.",
		}
	}
	return nil
}

// sequencesThere looks, before writers are held, that the new side's sequences can be set from the old side's. Another attempt
// would find the same.
func (f *flipper) sequencesThere(ctx context.Context) error {
	from, to := f.looks.of(f.from), f.looks.of(f.to)
	hint := "Run the same command again: catch_up carries it."
	if f.from == engine.Target {
		hint = fmt.Sprintf("Give it the name back that it had on the %s, then run the same command again.", f.from)
	}
	list, err := renamings(ctx, f.env, from, to)
	if err != nil {
		return fmt.Errorf("%w: %w", freeze.ErrNotNow, err)
	}
	if len(list) > 0 {
		return &engine.Error{
			Op: "comparing the sequences of both sides", Object: list[0].to.name(), Hint: hint,
			Err: fmt.Errorf("the sequence of column %s of %s is %s on the %s and %s on the %s", pgx.Identifier{list[0].Column}.Sanitize(), pg.Name(list[0].Schema, list[0].Table), list[0].to.name(), f.from, list[0].name(), f.to),
		}
	}
	var missing *engine.Error
	for _, side := range []engine.Side{f.from, f.to} {
		if _, err := sequences.Read(ctx, f.looks.of(side), f.env.Scope.Sequences); errors.As(err, &missing) && missing.Class == engine.ClassStale {
			return &engine.Error{Op: "reading sequence", Object: missing.Object, Err: fmt.Errorf("on the %s: %w", side, missing.Err), Hint: hint}
		} else if err != nil {
			return fmt.Errorf("%w: %w", freeze.ErrNotNow, err)
		}
	}
	return nil
}

// inUseSQL reports whether something keeps a sequence ($1) from being dropped: a default or a view that takes numbers from
// it, or what it is a part of.
const inUseSQL = `
SELECT EXISTS (SELECT FROM pg_depend WHERE refclassid = 'pg_class'::regclass AND refobjid = $1 AND deptype = 'n')
    OR EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = $1 AND deptype IN ('i', 'e'))`

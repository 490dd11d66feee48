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
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// demandsSQL lists what tables ($1, quoted names) demand of their rows, or ($2 false) do not yet: columns that are
// NOT NULL, check constraints that were validated; and those of all domains.
const demandsSQL = `
SELECT n, 'c' AS kind, a.attname::text FROM unnest($1::text[]) n JOIN pg_attribute a ON a.attrelid = to_regclass(n) AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull = $2
UNION ALL
SELECT n, 'k', c.conname::text FROM unnest($1::text[]) n JOIN pg_constraint c ON c.conrelid = to_regclass(n) AND c.contype = 'c' AND c.convalidated = $2
UNION ALL
SELECT quote_ident(s.nspname) || '.' || quote_ident(t.typname), 'd', c.conname::text FROM pg_constraint c JOIN pg_type t ON t.oid = c.contypid JOIN pg_namespace s ON s.oid = t.typnamespace
 WHERE c.contype = 'c' AND c.convalidated = $2 AND s.nspname !~ '^pg_' AND s.nspname <> 'information_schema'
 ORDER BY 1, 2, 3`

// demand is one of them; of a domain, Table is its name.
type demand struct{ Table, Kind, Name string }

func (d demand) sql() string {
	name := pgx.Identifier{d.Name}.Sanitize()
	switch d.Kind {
	case "d":
		return fmt.Sprintf("ALTER DOMAIN %s VALIDATE CONSTRAINT %s", d.Table, name)
	case "k":
		return fmt.Sprintf("ALTER TABLE %s VALIDATE CONSTRAINT %s", d.Table, name)
	}
	return fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s SET NOT NULL", d.Table, name)
}

func demands(ctx context.Context, conn *pgx.Conn, tables []string, met bool) ([]demand, error) {
	return readDemands(ctx, conn, demandsSQL, tables, met)
}

func readDemands(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]demand, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("reading what tables demand of their rows: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[demand])
	if err != nil {
		return nil, fmt.Errorf("reading what tables demand of their rows: %w", err)
	}
	return list, nil
}

// meet makes the target demand it. What is demanded by a domain locks the tables that have columns of it.
func (d demand) meet(ctx context.Context, target *pgx.Conn, table scope.Name, onWait capture.OnWait) error {
	if d.Kind != "d" {
		return runOn(ctx, target, table, onWait, d.sql())
	}
	e := pg.Etiquette{Object: d.Table, Report: onWait}
	return pg.WithLock(ctx, target, e, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, d.sql())
		return err
	})
}

// afterRows makes captured tables demand on the target what they demand on the source. Where the source's rows
// were changed for it first, that can only be once passes have brought them.
func afterRows(ctx context.Context, env *Env, cp engine.Checkpoint) error {
	if env.Runbook.Schema.OnDDL != "carry" {
		return nil
	}
	sides, err := openSidesToDefine(ctx, env, "ddl")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	before, err := madeReady(ctx, env, sides.target)
	if err != nil {
		return err
	}
	byName := map[string]scope.Name{}
	var names []string
	for _, t := range captured(env) {
		name := pg.Name(t.Schema, t.Name.Name)
		byName[name], names = t.Name, append(names, name)
	}
	want, err := demands(ctx, sides.source, names, true)
	if err != nil {
		return err
	}
	open, err := demands(ctx, sides.target, names, false)
	if err != nil {
		return err
	}
	for _, d := range open {
		if !slices.Contains(want, d) {
			continue
		}
		err := d.meet(ctx, sides.target, byName[d.Table], waiting(cp, engine.Target, "carry a change to the target"))
		if state := pg.SQLState(err); err != nil && state != "23502" && state != "23514" { // newer than the last pass
			return sided(engine.Target, fmt.Errorf("%s: %w", d.sql(), err))
		}
	}
	if err := alignIdentities(ctx, cp, sides, names, byName); err != nil {
		return err
	}
	return acceptDemands(ctx, env, sides.target, before)
}

// madeReady gives the changes of the target's tables, where the way back is made ready, that were there before ours.
func madeReady(ctx context.Context, env *Env, target *pgx.Conn) ([]capture.Change, error) {
	if back, err := wayBack(ctx, env, target); err != nil || !back {
		return nil, err
	}
	return capture.Check(ctx, target, env.Run, captured(env))
}

// acceptDemands records what tables demand on the target now: what the run itself carried there must not look like somebody's
// change. Tables that somebody changed as well stay to be seen.
func acceptDemands(ctx context.Context, env *Env, target *pgx.Conn, before []capture.Change) error {
	changes, err := madeReady(ctx, env, target)
	if err != nil {
		return err
	}
	others := byTable(slices.Concat(before, forPerson(env, changes), slices.DeleteFunc(slices.Clone(changes), func(c capture.Change) bool { return !unseenRows(c) })))
	all := byTable(changes)
	for _, t := range captured(env) {
		made := all[t.ID]
		if len(made) == 0 || len(others[t.ID]) > 0 {
			continue
		}
		if err := capture.Accept(ctx, target, t, made...); err != nil {
			return fmt.Errorf("accepting %s on the target: %w", pg.Name(t.Schema, t.Name.Name), err)
		}
	}
	return nil
}

// alignIdentities makes columns of captured tables the identities on the target that they are on the source. One whose
// rows, or whose default, are not there yet waits for the next time.
func alignIdentities(ctx context.Context, cp engine.Checkpoint, sides *sideConns, tables []string, byName map[string]scope.Name) error {
	const which = "SELECT n, a.attname::text, a.attidentity::text FROM unnest($1::text[]) n JOIN pg_attribute a ON a.attrelid = to_regclass(n) AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity <> '' ORDER BY n, a.attnum"
	want, err := readDemands(ctx, sides.source, which, tables)
	if err != nil {
		return err
	}
	have, err := readDemands(ctx, sides.target, which, tables)
	if err != nil {
		return err
	}
	for _, w := range want {
		if slices.Contains(have, w) {
			continue
		}
		is, err := columnTexts(ctx, sides.source, w.Table)
		if err != nil {
			return err
		}
		was, err := columnTexts(ctx, sides.target, w.Table)
		if err != nil {
			return err
		}
		c, old := is[w.Kind], was[w.Kind]
		if old.special == "" && (!old.notNull || old.def != "") {
			continue
		}
		statements, err := c.identity(ctx, sides.target, old)
		if err != nil {
			return err
		}
		sql := strings.ReplaceAll(strings.Join(statements, "; "), "{table}", w.Table)
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: w.Table, Message: fmt.Sprintf("column %s of %s is an identity on the source: carried to the target: %s", c.quoted(), w.Table, sql)})
		if err := runOn(ctx, sides.target, byName[w.Table], waiting(cp, engine.Target, "carry a change to the target"), sql); err != nil {
			return &engine.Error{
				Op: "carrying a change to the target", Object: w.Table, Err: fmt.Errorf("%s: %w", sql, err),
				Hint: "Make the same change on the target by hand, then run the same command again.",
			}
		}
	}
	return nil
}

// ofIdentity reports whether a sequence of the source belongs to an identity column of a table of the run that the
// target has: it is made with the identity.
func (c *comparison) ofIdentity(ctx context.Context, env *Env, source *pgx.Conn, oid uint32) (bool, error) {
	var schema, name string
	err := source.QueryRow(ctx, `SELECT n.nspname::text, t.relname::text FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace n ON n.oid = t.relnamespace
 WHERE d.classid = 'pg_class'::regclass AND d.objid = $1 AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'i'`, oid).Scan(&schema, &name)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for the table of a sequence: %w", err)
	}
	table := pg.Name(schema, name)
	return owningTable(env, c.fresh, table) != nil && c.hasOn(table), nil
}

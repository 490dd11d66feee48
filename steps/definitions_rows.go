package steps

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// demandsSQL lists what tables ($1, quoted names) demand of their rows, or ($2 false) do not yet: columns that are
// NOT NULL, check constraints that were validated.
const demandsSQL = `
SELECT n, 'c' AS kind, a.attname::text FROM unnest($1::text[]) n JOIN pg_attribute a ON a.attrelid = to_regclass(n) AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull = $2
UNION ALL
SELECT n, 'k', c.conname::text FROM unnest($1::text[]) n JOIN pg_constraint c ON c.conrelid = to_regclass(n) AND c.contype = 'c' AND c.convalidated = $2
 ORDER BY 1, 2, 3`

// demand is one of them.
type demand struct{ Table, Kind, Name string }

func (d demand) sql() string {
	name := pgx.Identifier{d.Name}.Sanitize()
	if d.Kind == "k" {
		return fmt.Sprintf("ALTER TABLE %s VALIDATE CONSTRAINT %s", d.Table, name)
	}
	return fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s SET NOT NULL", d.Table, name)
}

func demands(ctx context.Context, conn *pgx.Conn, tables []string, met bool) ([]demand, error) {
	rows, err := conn.Query(ctx, demandsSQL, tables, met)
	if err != nil {
		return nil, fmt.Errorf("reading what tables demand of their rows: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[demand])
	if err != nil {
		return nil, fmt.Errorf("reading what tables demand of their rows: %w", err)
	}
	return list, nil
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
		err := runOn(ctx, sides.target, byName[d.Table], waiting(cp, engine.Target, "carry a change to the target"), d.sql())
		if state := pg.SQLState(err); err != nil && state != "23502" && state != "23514" { // newer than the last pass
			return sided(engine.Target, fmt.Errorf("%s: %w", d.sql(), err))
		}
	}
	return nil
}

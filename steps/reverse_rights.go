package steps

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// tablesBackSQL gives the tables where our role lacks a right that carrying rows back takes: passes change
// rows of any kind and repeat a TRUNCATE, and the freeze reloads what has no key.
const tablesBackSQL = `
SELECT n.nspname::text, c.relname::text, string_agg(w.need, ', ' ORDER BY w.n)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN unnest($1::text[], $2::text[]) AS t (s, r) ON n.nspname = t.s AND c.relname = t.r,
       (VALUES (1, 'SELECT'), (2, 'INSERT'), (3, 'UPDATE'), (4, 'DELETE'), (5, 'TRUNCATE')) AS w (n, need)
 WHERE NOT has_table_privilege(c.oid, w.need)
 GROUP BY 1, 2 ORDER BY 1, 2`

// sequencesBackSQL gives the sequences that our role may not set: only their owner may
// (https://www.postgresql.org/docs/current/sql-altersequence.html).
const sequencesBackSQL = `
SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN unnest($1::text[], $2::text[]) AS t (s, r) ON n.nspname = t.s AND c.relname = t.r
 WHERE c.relkind = 'S' AND NOT pg_has_role(c.relowner, 'USAGE')
 ORDER BY 1, 2`

// mayWriteBack refuses where the role lacks a right on any table or sequence that a rollback writes: one
// row of one table proves nothing of the others.
func mayWriteBack(ctx context.Context, env *Env) error {
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "reverse rights", ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var tables, seqs []scope.Name
	for _, t := range env.Scope.Tables {
		if t.Data != scope.NoData {
			tables = append(tables, t.Name)
		}
	}
	for _, q := range env.Scope.Sequences {
		seqs = append(seqs, q.Name)
	}
	var lacks []string
	grants := map[string][]string{} // by what is granted
	err = rightsOf(ctx, conn, tablesBackSQL, tables, func(n scope.Name, needs string) {
		lacks = append(lacks, fmt.Sprintf("%s on %s", needs, n.Display()))
		grants[needs+" ON"] = append(grants[needs+" ON"], pg.Name(n.Schema, n.Name))
	})
	if err != nil {
		return err
	}
	err = rightsOf(ctx, conn, sequencesBackSQL, seqs, func(n scope.Name, owner string) {
		lacks = append(lacks, fmt.Sprintf("setting the sequence %s", n.Display()))
		grants[pgx.Identifier{owner}.Sanitize()] = nil
	})
	if err != nil || len(lacks) == 0 {
		return err
	}
	var role string
	if err := conn.QueryRow(ctx, "SELECT current_user").Scan(&role); err != nil {
		return fmt.Errorf("asking for our role: %w", err)
	}
	var fixes []string
	for _, what := range slices.Sorted(maps.Keys(grants)) {
		on := strings.Join(grants[what], ", ")
		fixes = append(fixes, strings.TrimSpace("GRANT "+what+" "+on)+" TO "+pgx.Identifier{role}.Sanitize()+";")
	}
	return &engine.Error{
		Op: "preparing the way back to the", Object: string(engine.Source),
		Err:  fmt.Errorf("the role %s lacks rights that a rollback takes: %s", role, strings.Join(cut(lacks, 10), "; ")),
		Hint: strings.Join(fixes, " ") + " Then run the same command again, or give up the way back with rollback { enabled = false }.",
	}
}

// rightsOf calls say for each relation that a query gives, with the text beside its name.
func rightsOf(ctx context.Context, conn *pgx.Conn, sql string, of []scope.Name, say func(scope.Name, string)) error {
	schemas, names := make([]string, len(of)), make([]string, len(of))
	for i, n := range of {
		schemas[i], names[i] = n.Schema, n.Name
	}
	rows, err := conn.Query(ctx, sql, schemas, names)
	if err != nil {
		return fmt.Errorf("asking for rights: %w", err)
	}
	var n scope.Name
	var text string
	if _, err := pgx.ForEachRow(rows, []any{&n.Schema, &n.Name, &text}, func() error { say(n, text); return nil }); err != nil {
		return fmt.Errorf("asking for rights: %w", err)
	}
	return nil
}

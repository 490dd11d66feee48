package preflight

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const existingSQL = `
SELECT n.nspname || E'\n' || c.relname FROM unnest($1::text[], $2::text[]) AS x (nsp, rel)
  JOIN pg_namespace n ON n.nspname = x.nsp JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.rel ORDER BY 1`

// targetTables: what is to be created must not be there, and what is to be loaded must be empty,
// unless somebody else loads it. A run that goes on made them itself.
func targetTables(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if ours, err := f.runGoesOn(ctx); err != nil || ours {
		return nil, err
	}
	if f.moved {
		return nil, nil // they are the live tables of a finished run
	}
	if !f.existing() {
		return f.clashes(ctx)
	}
	var schemas, names []string
	loaded := map[string]bool{}
	for i := range f.Scope.Tables {
		t := &f.Scope.Tables[i]
		schemas, names = append(schemas, t.Schema), append(names, t.Name.Name)
		loaded[t.Schema+"\n"+t.Name.Name] = t.Method == scope.External
	}
	there, err := f.To.list(ctx, existingSQL, schemas, names)
	if err != nil {
		return nil, err
	}
	var full []string
	var reading rights
	for _, key := range there {
		schema, table, _ := strings.Cut(key, "\n")
		if loaded[key] {
			continue
		}
		var rows bool
		err := f.To.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+pg.Name(schema, table)+")").Scan(&rows)
		switch {
		case pg.SQLState(err) == "42501": // insufficient_privilege
			reading.lacks(fmt.Sprintf("GRANT USAGE ON SCHEMA %[1]s TO %[2]s; GRANT SELECT ON ALL TABLES IN SCHEMA %[1]s TO %[2]s;", ident(schema), ident(f.To.Connected)), pg.Display(schema, table))
		case err != nil:
			return nil, fmt.Errorf("looking into %s: %w", pg.Display(schema, table), err)
		case rows:
			full = append(full, pg.Display(schema, table))
		}
	}
	out := reading.findings(engine.Target, f.To.Connected, "SELECT on tables, to see that they are empty")
	if len(full) > 0 {
		out = append(out, finding(engine.SeverityError, engine.Target, full[0], `Empty them, or set method = "external" where somebody else loads them.`, "Tables that are to be loaded hold rows: %s.", some(full)))
	}
	return out, nil
}

// clashes are what would make the restore fail half way; what else is there stays as it is.
func (f *Facts) clashes(ctx context.Context) ([]engine.Finding, error) {
	there, others, err := dump.Clashes(ctx, f.From.conn, f.To.conn, f.Scope)
	if err != nil {
		return nil, err
	}
	var out []engine.Finding
	if len(there) > 0 {
		out = append(out, finding(engine.SeverityError, engine.Target, there[0], `Drop them, or set mode = "existing" in the schema block to use what is there.`,
			"Names that carried objects need are taken on the target: %s.", some(there)))
	}
	if len(others) > 0 {
		out = append(out, finding(engine.SeverityInfo, engine.Target, others[0], "Look whether it is the right database.", "The target is not empty; what is there besides stays as it is: %s.", some(others)))
	}
	return out, nil
}

func encodings(_ context.Context, f *Facts) ([]engine.Finding, error) {
	from, to := f.From.Encoding, f.To.Encoding
	switch {
	case from == to && from != "SQL_ASCII":
		return nil, nil
	case from == to:
		return one(finding(engine.SeverityWarning, engine.Source, "SQL_ASCII", "Nothing, if the target shall be SQL_ASCII too.", "Both databases are SQL_ASCII: bytes are copied as they are.")), nil
	case from == "SQL_ASCII":
		return one(finding(engine.SeverityError, engine.Target, to, "Create the target with ENCODING 'SQL_ASCII', or clean the rows first.", "The source is SQL_ASCII and may hold any bytes; the target (%s) refuses those that are not valid.", to)), nil
	case to != "UTF8":
		return one(finding(engine.SeverityError, engine.Target, to, "Create the target with ENCODING 'UTF8'.", "The source is %s and the target %s: characters may have no equivalent there.", from, to)), nil
	}
	return one(finding(engine.SeverityWarning, engine.Target, to, "Nothing: rows are converted, and columns may need more bytes.", "The source is %s, the target %s: text is converted.", from, to)), nil
}

func collations(_ context.Context, f *Facts) ([]engine.Finding, error) {
	if f.From.Collate == f.To.Collate && f.From.CType == f.To.CType {
		return nil, nil
	}
	return one(finding(engine.SeverityWarning, engine.Target, f.To.Collate, fmt.Sprintf("Create the target with LC_COLLATE '%s' LC_CTYPE '%s' if the application relies on the order.", f.From.Collate, f.From.CType),
		"The databases sort differently: %s and %s on the source, %s and %s on the target.", f.From.Collate, f.From.CType, f.To.Collate, f.To.CType)), nil
}

// unprovedSQL gives NOT NULL constraints that were made NOT VALID, which servers have from 18 on, each with its table.
const unprovedSQL = `
SELECT concat_ws(E'\n', n.nspname, c.relname, k.conname, a.attname)
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
 WHERE k.contype = 'n' AND NOT k.convalidated ORDER BY 1`

// unprovedNotNull: the catalog calls such a column NOT NULL, and it may hold nulls that a copy's column refuses.
func unprovedNotNull(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if f.moved {
		return nil, nil
	}
	list, err := f.From.list(ctx, unprovedSQL)
	if err != nil {
		return nil, err
	}
	carried := map[scope.Name]bool{}
	for i := range f.Scope.Tables {
		t := &f.Scope.Tables[i]
		carried[t.Name] = t.Data != scope.NoData
		for _, m := range t.Members {
			carried[m.Name] = t.Data != scope.NoData
		}
	}
	var out []engine.Finding
	for _, one := range list {
		at := strings.Split(one, "\n")
		if len(at) != 4 || !carried[scope.Name{Schema: at[0], Name: at[1]}] {
			continue
		}
		table := pg.Name(at[0], at[1])
		out = append(out, finding(engine.SeverityError, engine.Source, pg.Display(at[0], at[1]),
			fmt.Sprintf("ALTER TABLE %[1]s VALIDATE CONSTRAINT %[2]s; -- once no row has a null there, or: ALTER TABLE %[1]s DROP CONSTRAINT %[2]s;", table, ident(at[2])),
			"Its column %s is NOT NULL by a constraint that is NOT VALID: rows may have nulls that the target refuses.", ident(at[3])))
	}
	return out, nil
}

func largeObjects(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if f.Runbook.Cutover.LargeObjects == "ignore" {
		return nil, nil
	}
	const sql = "SELECT EXISTS (SELECT FROM pg_largeobject_metadata)"
	var out []engine.Finding
	var source, target bool
	if err := f.From.conn.QueryRow(ctx, sql).Scan(&source); err != nil {
		return nil, err
	}
	if source {
		out = append(out, finding(engine.SeverityError, engine.Source, "", `Move them into bytea columns, or set large_objects = "ignore" in the cutover block and carry them yourself.`,
			"There are large objects: changes to them fire no trigger, so they cannot be followed."))
	}
	if !f.Runbook.Rollback.Enabled {
		return out, nil
	}
	if err := f.To.conn.QueryRow(ctx, sql).Scan(&target); err != nil {
		return nil, err
	}
	if target {
		out = append(out, finding(engine.SeverityWarning, engine.Target, "", `Drop them there: SELECT lo_unlink(oid) FROM pg_largeobject_metadata; or set large_objects = "ignore" in the cutover block and carry them yourself.`,
			"The target holds large objects: changes to them fire no trigger, so as long as there are any, rollback is not possible after the cutover."))
	}
	return out, nil
}

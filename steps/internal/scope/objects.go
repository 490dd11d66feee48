package scope

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

func sortByName(m []Member) {
	slices.SortFunc(m, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name.Name, b.Name.Name))
	})
}

type sequenceRow struct {
	OID                           uint32
	Increment, Min, Max, CacheOne int64
	Cycle                         bool
	Owner                         uint32
	Column                        string
}

const sequencesSQL = `
SELECT s.seqrelid, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle, coalesce(d.refobjid, 0), coalesce(a.attname::text, '')
  FROM pg_sequence s
  LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
  LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid`

func (c *catalog) readSequences(ctx context.Context, tx pgx.Tx) (err error) {
	if c.sequences, err = collect(ctx, tx, sequencesSQL, pgx.RowToStructByPos[sequenceRow]); err != nil {
		return fmt.Errorf("reading the sequences: %w", err)
	}
	return nil
}

// sequences takes those that a table in scope owns, and those without an owner that the patterns
// cover. A sequence of an excluded table stays with it, whatever the patterns say of its name.
func (r *resolver) sequences() {
	for _, row := range r.cat.sequences {
		rel := r.cat.byOID[row.OID]
		if rel == nil || rel.extension != "" {
			continue
		}
		s := Sequence{OID: row.OID, Name: rel.Name, Increment: row.Increment, Min: row.Min, Max: row.Max, Cycle: row.Cycle, Cache: row.CacheOne}
		in := rel.own == runbook.Carried
		if owner := r.cat.byOID[row.Owner]; owner != nil {
			name := owner.Name
			s.OwnerTable, s.OwnerColumn = &name, row.Column
			in = owner.decision != runbook.Out
		}
		rel.decision = runbook.Out
		if in {
			rel.decision = runbook.Carried
			r.scope.Sequences = append(r.scope.Sequences, s)
		}
	}
	slices.SortFunc(r.scope.Sequences, func(a, b Sequence) int {
		return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name.Name, b.Name.Name))
	})
}

// excluded lists what pg_dump leaves out: whole schemas where nothing of them is in scope, else
// single relations. A schema that holds an extension or a type in use is kept.
func (r *resolver) excluded() {
	keep := map[string]bool{}
	for _, rel := range r.cat.relations {
		keep[rel.Schema] = keep[rel.Schema] || rel.decision != runbook.Out
	}
	for _, t := range r.cat.types {
		schema, _, _ := strings.Cut(strings.ReplaceAll(t.Name, `"`, ""), ".")
		keep[schema] = true
	}
	for _, s := range r.cat.schemas {
		// A pattern that would cover any table of the schema names the schema.
		keep[s.Name] = keep[s.Name] || s.HasExtension || r.rb.Tables.Decide(s.Name, "a table that nobody has") != runbook.Out
		if !keep[s.Name] {
			r.scope.ExcludedSchemas = append(r.scope.ExcludedSchemas, s.Name)
		}
	}
	for _, rel := range r.cat.relations {
		if rel.decision == runbook.Out && rel.extension == "" && keep[rel.Schema] {
			r.scope.ExcludedTables = append(r.scope.ExcludedTables, rel.Name)
		}
	}
}

// helpers lists the replica_role_function of both sides; what is no name the preflight says.
func (r *resolver) helpers() {
	for _, name := range []string{r.rb.Source.ReplicaRoleFunction, r.rb.Target.ReplicaRoleFunction} {
		parts, err := pg.ParseIdentifier(name)
		if err != nil || len(parts) != 2 {
			continue
		}
		if f := (Name{Schema: parts[0], Name: parts[1]}); !slices.Contains(r.scope.Helpers, f) {
			r.scope.Helpers = append(r.scope.Helpers, f)
		}
	}
}

// emptyPatterns finds patterns that match nothing: mostly typing mistakes.
func (r *resolver) emptyPatterns() {
	t := r.rb.Tables
	check := func(where string, p runbook.Pattern, ok func(*relation) bool) {
		for _, rel := range r.cat.relations {
			if ok(rel) && p.Match(rel.Schema, rel.Name.Name) {
				return
			}
		}
		r.find(CodePatternEmpty, engine.SeverityWarning, p.Text, fmt.Sprintf("The pattern %q in %s (%s) matches nothing on the source.", p.Text, where, p.Range),
			"Correct it or remove it; names with capitals or special characters stand in double quotes inside the pattern.")
	}
	anything := func(*relation) bool { return true }
	for _, p := range t.Include {
		check("include", p, anything)
	}
	for _, p := range t.Exclude {
		check("exclude", p, anything)
	}
	for _, p := range t.ExcludeData {
		check("exclude_data", p, (*relation).isTable)
	}
	for _, rule := range r.rb.Rules {
		check("a table block", rule.Pattern, func(rel *relation) bool { return rel.isTable() && rel.decision != runbook.Out })
	}
}

type foreignKeyRow struct {
	Name    string
	From    uint32
	To      uint32
	IsChild bool
}

const foreignKeysSQL = `
SELECT con.conname::text, con.conrelid, con.confrelid, {child} FROM pg_constraint con
 WHERE con.contype = 'f' AND con.conrelid = ANY ($1::oid[]) ORDER BY 2, 1`

func (c *catalog) readForeignKeys(ctx context.Context, tx pgx.Tx, oids []uint32) (err error) {
	child := "false"
	if c.major >= 11 {
		child = "con.conparentid <> 0"
	}
	c.foreignKeys, err = collect(ctx, tx, strings.Replace(foreignKeysSQL, "{child}", child, 1), pgx.RowToStructByPos[foreignKeyRow], oids)
	if err != nil {
		return fmt.Errorf("reading the foreign keys: %w", err)
	}
	return nil
}

// orphans finds foreign keys that cannot hold on the target, because the referenced rows stay
// behind while the referencing ones go over.
func (r *resolver) orphans() {
	data := map[uint32]Data{}
	for _, t := range r.scope.Tables {
		data[t.OID] = t.Data
		for _, m := range t.Members {
			data[m.OID] = t.Data
		}
	}
	for _, fk := range r.cat.foreignKeys {
		from, to := r.cat.byOID[fk.From], r.cat.byOID[fk.To]
		if fk.IsChild || from == nil || to == nil || data[fk.From] == NoData {
			continue
		}
		if data[fk.To] == NoData && data[fk.From] != "" {
			r.find(CodeForeignKey, engine.SeverityError, from.String(), fmt.Sprintf("Its foreign key %s references %s, whose rows stay behind.", fk.Name, to),
				fmt.Sprintf("Carry the rows of %s, or leave those of %s behind as well.", to, from))
		}
	}
}

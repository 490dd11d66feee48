package scope

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// Input is what a scope is resolved from.
type Input struct {
	Source  *pgx.Conn // a session with pinned settings (search_path = pg_catalog); nothing is written
	Runbook *runbook.Runbook
}

// Finding codes of the resolver; preflight's follow from PRE101 on.
const (
	CodePatternEmpty  = "PRE001" // a pattern that matches nothing
	CodeEmptyScope    = "PRE002" // nothing is in scope
	CodePartition     = "PRE003" // a partition is matched apart from its root
	CodeRule          = "PRE004" // table blocks that disagree or do not fit the table
	CodeKey           = "PRE005" // the runbook's key is no usable unique index
	CodeKeyless       = "PRE006" // a large table without a key and without a rule
	CodeForeignKey    = "PRE007" // rows that reference a table without rows
	CodeKeylessSmall  = "PRE008" // a small table without a key, for the record
	CodeUnlogged      = "PRE009" // unlogged tables, for the record
	CodeKeyNotUsable  = "PRE010" // a primary key that is deferrable or not valid
	CodeTempFileLimit = "PRE011" // row triggers because of a temp_file_limit
	CodeParent        = "PRE012" // a table inherits from one that is not in scope
	CodeWide          = "PRE013" // a table with so many columns that its changed rows have no room beside their keys
)

// resolver holds one resolution.
type resolver struct {
	rb       *runbook.Runbook
	cat      *catalog
	scope    *Scope
	findings []engine.Finding
}

// Resolve reads the source's catalog once, in one snapshot, and decides for every table. The
// findings of severity error mean that the scope must not be used. Errors of the connection are
// returned as they are.
func Resolve(ctx context.Context, in Input) (*Scope, []engine.Finding, error) {
	if in.Source == nil || in.Runbook == nil {
		return nil, nil, errors.New("resolving the scope: a source connection and a runbook are needed")
	}
	tx, err := in.Source.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, nil, fmt.Errorf("resolving the scope: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	r := &resolver{rb: in.Runbook, scope: &Scope{}}
	if err := r.resolve(ctx, tx); err != nil {
		return nil, nil, fmt.Errorf("resolving the scope: %w", err)
	}
	return r.scope, r.findings, nil
}

func (r *resolver) resolve(ctx context.Context, tx pgx.Tx) (err error) {
	if r.cat, err = readRelations(ctx, tx); err != nil {
		return err
	}
	r.decide()
	roots := r.roots()
	if err := r.cat.readTables(ctx, tx, roots); err != nil {
		return err
	}
	for _, rel := range roots {
		r.parents(rel)
		t, ok := r.table(rel)
		if !ok {
			continue
		}
		t.ID = int32(len(r.scope.Tables) + 1)
		r.scope.Tables = append(r.scope.Tables, t)
	}
	r.sequences()
	r.excluded()
	r.helpers()
	r.emptyPatterns()
	r.orphans()
	r.notCarried()
	r.scope.ReadOnlyDefault = r.cat.facts.ReadOnly
	if len(r.scope.Tables) == 0 {
		r.find(CodeEmptyScope, engine.SeverityError, "", "No table is in scope.", "Change include in the tables block; without it every schema is in scope.")
	}
	return nil
}

func (r *resolver) find(code string, severity engine.Severity, object, text, fix string) {
	r.findings = append(r.findings, engine.Finding{Code: code, Severity: severity, Side: engine.Source, Object: object, Text: text, Fix: fix})
}

// decide asks the runbook about every relation; partitions follow their root.
func (r *resolver) decide() {
	for _, rel := range r.cat.relations {
		rel.own = r.rb.Tables.Decide(rel.Schema, rel.Name.Name)
		rel.decision = rel.own
	}
	for _, rel := range r.cat.relations {
		if !rel.partition {
			continue
		}
		root := r.cat.root(rel)
		rel.decision = root.own
		r.checkPartition(rel, root)
	}
	for _, rel := range r.cat.relations {
		if rel.extension != "" {
			rel.decision = runbook.Out
		}
	}
}

// checkPartition refuses patterns that would cut a partition out of its tree, or carry it alone. A
// pattern that covers the root as well means the tree.
func (r *resolver) checkPartition(rel, root *relation) {
	alone := func(lists ...[]runbook.Pattern) (runbook.Pattern, bool) {
		for _, p := range slices.Concat(lists...) {
			if p.Match(rel.Schema, rel.Name.Name) && !p.Match(root.Schema, root.Name.Name) {
				return p, true
			}
		}
		return runbook.Pattern{}, false
	}
	t := r.rb.Tables
	switch root.own {
	case runbook.Out:
		p, found := alone(t.Include)
		if found && (p.Exact() || !covered(t.Exclude, root)) {
			r.find(CodePartition, engine.SeverityError, rel.String(), fmt.Sprintf("It is a partition of %s, which is not in scope: partitions go with their root (%s).", root, p.Range),
				fmt.Sprintf("Include %s, or leave this partition out of include.", root))
		}
	case runbook.Carried, runbook.ExcludeData:
		lists := [][]runbook.Pattern{t.Exclude}
		if root.own == runbook.Carried {
			lists = append(lists, t.ExcludeData)
		}
		if p, found := alone(lists...); found {
			r.find(CodePartition, engine.SeverityError, rel.String(), fmt.Sprintf("It is a partition of %s, which is in scope, and cannot be left out of it (%s).", root, p.Range),
				fmt.Sprintf("Write %s in exclude or exclude_data, or detach the partition first.", root))
		}
	}
}

func covered(list []runbook.Pattern, rel *relation) bool {
	return slices.ContainsFunc(list, func(p runbook.Pattern) bool { return p.Match(rel.Schema, rel.Name.Name) })
}

// parents refuses a table in scope that inherits from one outside: UPDATE and DELETE of the parent
// change its rows and fire the parent's statement triggers only, so its gate would not stop them.
func (r *resolver) parents(rel *relation) {
	for _, oid := range rel.parents {
		p := r.cat.byOID[oid]
		if p.decision != runbook.Out {
			continue
		}
		why, fix := "is not in scope", fmt.Sprintf("Include %s, ", p)
		if p.extension != "" {
			why, fix = fmt.Sprintf("belongs to the extension %s and is never in scope", p.extension), ""
		}
		leave := fmt.Sprintf("%sALTER TABLE %s NO INHERIT %s first, or leave the table out: tables { exclude = [%q] }.", fix, rel, p, rel.String())
		r.find(CodeParent, engine.SeverityError, rel.String(), fmt.Sprintf("It inherits from %s, which %s: UPDATE and DELETE of %s change its rows too, and no gate stops them.", p, why, p), leave)
	}
}

// roots gives plain tables and partition roots in scope, in order of name.
func (r *resolver) roots() []*relation {
	var out []*relation
	for _, rel := range r.cat.relations {
		if rel.isTable() && !rel.partition && rel.decision != runbook.Out {
			out = append(out, rel)
		}
	}
	slices.SortFunc(out, func(a, b *relation) int {
		return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name.Name, b.Name.Name))
	})
	return out
}

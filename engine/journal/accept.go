package journal

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
)

// accept compares the caller's plan with the run's. The same digest continues; another one is
// refused by name, or takes the place of the run's with Amend.
func (r *Run) accept(ctx context.Context, tx pgx.Tx, o OpenOptions) error {
	if r.Name != o.Plan.Name {
		e := engine.Errorf(engine.ClassHeld, "Finish or abort that run first, or use another target database.",
			"the target has the open run %s of runbook %q", r.ID, r.Name)
		e.Op, e.Object = "opening runbook", o.Plan.Name
		return e
	}
	for _, side := range []struct {
		name      engine.Side
		had, want engine.Identity
	}{{engine.Source, r.SourceIdentity, o.Plan.Source}, {engine.Target, r.TargetIdentity, o.Plan.Target}} {
		if !side.had.Same(side.want) {
			e := engine.Errorf(engine.ClassStale, "A run stays with its two databases: abort it, or point the runbook back at them.",
				"run %s began with %s, the plan has %s", r.ID, describe(side.had), describe(side.want))
			e.Op, e.Object = "comparing the", string(side.name)
			return e
		}
	}
	if r.Digest == o.Digest {
		return nil
	}
	changes := Changes(r.Plan, o.Plan)
	if !o.Amend {
		e := engine.Errorf(engine.ClassStale, "Plan again and apply the new plan, or go back to the accepted one.",
			"it differs from the plan that run %s accepted: %s", r.ID, strings.Join(changes, "; "))
		e.Op, e.Object = "continuing with the plan of", o.Plan.Name
		return e
	}
	plan, _, _, err := planJSON(o.Plan)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE pgrunbook.run SET plan = $2::jsonb, plan_digest = $3::text WHERE id = $1::text", r.ID, plan, o.Digest); err != nil {
		return fmt.Errorf("accepting the changed plan: %w", err)
	}
	r.Plan, r.Digest = o.Plan, o.Digest
	message := "plan changed: " + strings.Join(changes, "; ")
	_, err = tx.Exec(ctx, `INSERT INTO pgrunbook.event (run, at, kind, data)
		VALUES ($1::text, pg_catalog.clock_timestamp(), 'note', pg_catalog.jsonb_build_object('type', 'note', 'at', pg_catalog.clock_timestamp(), 'message', $2::text))`, r.ID, message)
	return err
}

// Changes names what two plans have that differs, of what the digest covers, in words for a
// person. It is never empty for plans of different digests.
func Changes(had, want *engine.Plan) []string {
	var out []string
	out = append(out, mapChanges("table", had.Shapes, want.Shapes)...)
	out = append(out, mapChanges("variable", had.Runbook.Variables, want.Runbook.Variables)...)
	out = append(out, mapChanges("file", had.Runbook.Files, want.Runbook.Files)...)
	if had.Runbook.Text != want.Runbook.Text {
		out = append(out, "the runbook's text, from line "+fmt.Sprint(firstDifference(had.Runbook.Text, want.Runbook.Text)))
	}
	for _, side := range []struct {
		name engine.Side
		a, b engine.Identity
	}{{engine.Source, had.Source, want.Source}, {engine.Target, had.Target, want.Target}} {
		if !side.a.Same(side.b) || side.a.Major != side.b.Major {
			out = append(out, fmt.Sprintf("the %s is %s, it was %s", side.name, describe(side.b), describe(side.a)))
		}
	}
	a, b := stepIDs(had), stepIDs(want)
	for _, id := range b {
		if !slices.Contains(a, id) {
			out = append(out, "step "+id+" is new")
		}
	}
	for _, id := range a {
		if !slices.Contains(b, id) {
			out = append(out, "step "+id+" is gone")
		}
	}
	if len(out) == 0 && !slices.Equal(a, b) {
		out = append(out, "the order of the steps")
	}
	if len(out) == 0 {
		out = append(out, "the plan's format or the runbook's digest")
	}
	const most = 20
	if more := len(out) - most; more > 0 {
		out = append(out[:most], fmt.Sprintf("and %d more", more))
	}
	return out
}

func stepIDs(p *engine.Plan) []string {
	out := make([]string, 0, len(p.Steps))
	for _, s := range p.Steps {
		out = append(out, string(s.ID))
	}
	return out
}

func mapChanges(what string, had, want map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if old, ok := had[k]; !ok {
			out = append(out, what+" "+k+" is new")
		} else if old != want[k] {
			out = append(out, what+" "+k+" changed")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(had)) {
		if _, ok := want[k]; !ok {
			out = append(out, what+" "+k+" is gone")
		}
	}
	return out
}

// firstDifference gives the first line, from 1, in which two texts differ.
func firstDifference(a, b string) int {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(la), len(lb)) {
		if la[i] != lb[i] {
			return i + 1
		}
	}
	return min(len(la), len(lb)) + 1
}

func describe(i engine.Identity) string {
	s := fmt.Sprintf("database %s (oid %d)", i.Database, i.DatabaseOID)
	if i.SystemIdentifier != "" {
		s += " of cluster " + i.SystemIdentifier
	}
	if i.Address != "" {
		s += " at " + i.Address
	}
	return s
}

// identitySQL reads what names this database. A role without the right to read the control data
// sees no system_identifier.
const identitySQL = `
SELECT d.datname, d.oid,
       CASE WHEN pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
            THEN (SELECT c.system_identifier::text FROM pg_catalog.pg_control_system() c) ELSE '' END
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()`

// checkTarget refuses a target that is not the one that the plan was made for.
func checkTarget(ctx context.Context, q querier, want engine.Identity) error {
	var is engine.Identity
	if err := q.QueryRow(ctx, identitySQL).Scan(&is.Database, &is.DatabaseOID, &is.SystemIdentifier); err != nil {
		return fmt.Errorf("reading the target's identity: %w", err)
	}
	if want.SystemIdentifier == "" || is.SystemIdentifier == "" {
		is.SystemIdentifier = want.SystemIdentifier
	}
	if is.Same(want) {
		return nil
	}
	e := engine.Errorf(engine.ClassStale, "Plan again, or point the runbook's target back.", "it is %s, the plan was made for %s", describe(is), describe(want))
	e.Op = "comparing the target"
	return e
}

// SetScope puts a changed scope into the accepted plan: tables and sequences that joined it while
// the run was under way. The plan's digest does not cover it, so approvals stay.
// What is recorded of tables that left goes with it: without its items a table of the run would be one whose rows
// nobody knows, and items without their table are nobody's. Items in flight are waited for.
func (r *Run) SetScope(ctx context.Context, scope []byte, left ...int32) error {
	p := *r.Plan
	p.Scope = scope
	text, _, _, err := planJSON(&p)
	if err != nil {
		return err
	}
	err = r.fenced(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM pgrunbook.item WHERE run = $1::text AND tbl = ANY ($2::int[])", r.ID, left); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "UPDATE pgrunbook.run SET plan = $2::jsonb WHERE id = $1::text", r.ID, text)
		return err
	})
	if err != nil {
		return fmt.Errorf("recording the changed scope: %w", err)
	}
	r.Plan.Scope = scope
	return nil
}

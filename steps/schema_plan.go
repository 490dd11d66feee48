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
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// Plan says what is restored, for whom, and what is not carried.
func (s *schemaStep) Plan(ctx context.Context) (engine.StepPlan, error) {
	c := s.env.Runbook.Schema
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(),
		Title:    fmt.Sprintf("make %d tables on the target, without keys, indexes, constraints and triggers, and close its gate", len(s.env.Scope.Tables)),
		Why:      "rows load fastest into bare tables, and nobody may write to the target by mistake",
		Estimate: lasting(toolsTake, restoreOne+triggerOne, relations(s.env.Scope.Tables)),
	}
	sides, err := openForPlan(ctx, s.env)
	if err != nil {
		return p, err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if s.existing() {
		p.Estimate = lasting(connecting, triggerOne, len(s.env.Scope.Tables))
		p.Title = fmt.Sprintf("compare %d tables of the target with the source's, and close its gate", len(s.env.Scope.Tables))
		differences, err := s.differences(ctx, sides)
		if err != nil {
			return p, err
		}
		if len(differences) > 0 && len(s.env.Runbook.Hooks[string(engine.PhaseSchema)].Before) == 0 {
			return p, unlike(differences, len(differences), likeSource)
		}
		for _, d := range differences { // a step before this one may mend them
			p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoss, Text: d + ": apply refuses unless a step before this one mends it"})
		}
	} else if err := s.planRestore(ctx, sides, &p); err != nil {
		return p, err
	}
	for _, sql := range gate.BaseStatements(s.env.Run) {
		p.Actions = append(p.Actions, engine.Action{On: engine.Target, SQL: sql, Group: "the gate"})
	}
	for _, t := range s.env.Scope.Tables {
		for _, sql := range gate.Statements(s.env.Run, t) {
			p.Actions = append(p.Actions, engine.Action{On: engine.Target, Object: t.Display(), SQL: sql, Group: "gate the tables"})
		}
	}
	if c.OnDDL == "carry" {
		p.Actions = append(p.Actions, engine.Action{On: engine.Target, Why: "compatible definitions that the application makes during the run are carried over (on_ddl = \"carry\")"})
	}
	return p, nil
}

func (s *schemaStep) planRestore(ctx context.Context, sides *sideConns, p *engine.StepPlan) error {
	loss := func(object, text string) {
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoss, Object: object, Text: text})
	}
	if err := s.planRoles(ctx, sides, p); err != nil {
		return err
	}
	source, err := pg.Version(ctx, sides.source)
	if err != nil {
		return err
	}
	target, err := pg.Version(ctx, sides.target)
	if err != nil {
		return err
	}
	tools, err := dump.Find(ctx, source/10000, target/10000)
	if err != nil {
		return err
	}
	if tools.Warning != "" {
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardExternal, Object: tools.Dir, Text: tools.Warning})
	}
	p.Actions = append(p.Actions,
		engine.Action{On: engine.Source, SQL: "pg_dump --schema-only --format=custom", Object: "pg_dump " + tools.Version, Why: "every definition that the scope does not exclude"},
		engine.Action{On: engine.Target, SQL: "pg_restore --section=pre-data", Object: "pg_restore " + tools.Version, Why: "types, functions, tables, views, rights and comments; never through psql"})
	if s.env.Runbook.Schema.Settings {
		settings, err := dump.Settings(ctx, sides.source)
		if err != nil {
			return err
		}
		if err := s.maySet(ctx, sides.target, settings); err != nil {
			return err
		}
		for _, set := range settings {
			p.Actions = append(p.Actions, engine.Action{On: engine.Target, SQL: set.SQL("DATABASE"), Group: "settings of the database"})
		}
	}
	lost, err := dump.NotCarried(ctx, sides.source, s.env.Scope)
	if err != nil {
		return err
	}
	more, err := dump.NeverCarried(ctx, sides.source, sides.target)
	if err != nil {
		return err
	}
	for _, text := range append(lost, more...) {
		loss("", text)
	}
	return nil
}

func (s *schemaStep) planRoles(ctx context.Context, sides *sideConns, p *engine.StepPlan) error {
	c := s.env.Runbook.Schema
	needed, err := dump.Roles(ctx, sides.source, s.env.Scope)
	if err != nil {
		return err
	}
	missing, err := dump.MissingRoles(ctx, sides.target, needed, c.Owners)
	if err != nil {
		return err
	}
	m, err := s.readRoleMap(ctx, sides.target, needed)
	if err != nil {
		return err
	}
	for from, to := range c.Owners {
		p.Actions = append(p.Actions, engine.Action{On: engine.Target, Object: from, SQL: "ALTER ... OWNER TO " + to, Group: "owners"})
	}
	switch c.Roles {
	case "create":
		if err := s.mayCreateRoles(ctx, sides.target, missing); err != nil {
			return err
		}
		for _, r := range missing {
			for _, sql := range r.Statements() {
				p.Actions = append(p.Actions, engine.Action{On: engine.Target, Object: r.Name, SQL: sql, Group: "roles"})
			}
			if r.Super {
				p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoss, Object: r.Name, Text: "is a superuser on the source and becomes an ordinary role on the target"})
			}
		}
	case "skip":
		if len(m.missing) > 0 {
			p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoss, Text: "the target lacks the roles " + strings.Join(m.missing, ", ") + ": their objects stay with the restoring role, their rights are not carried"})
		}
	default:
		if len(m.missing) > 0 {
			return missingRoles(m.missing, missing)
		}
	}
	return nil
}

// mayCreateRoles refuses roles = "create" for a role that cannot.
func (s *schemaStep) mayCreateRoles(ctx context.Context, target *pgx.Conn, missing []dump.Role) error {
	if len(missing) == 0 {
		return nil
	}
	var role string
	var may bool
	err := target.QueryRow(ctx, `SELECT rolname::text, rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = coalesce(nullif($1, ''), current_user::text)`,
		s.env.Runbook.Target.ApplyRole).Scan(&role, &may)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && may {
		return nil // the preflight names a role that does not exist
	}
	if err != nil {
		return fmt.Errorf("looking at the target's role: %w", err)
	}
	names := make([]string, len(missing))
	for i, r := range missing {
		names[i] = r.Name
	}
	return &engine.Error{
		Class: engine.ClassPreflight, Op: "looking for roles on the target", Err: fmt.Errorf("not there: %s; and %s may not make them", strings.Join(names, ", "), role),
		Hint: fmt.Sprintf("ALTER ROLE %s CREATEROLE;\n-- or create them yourself, or set roles = \"skip\" in the schema block.", pgx.Identifier{role}.Sanitize()),
	}
}

// maySet refuses to carry settings to a database that the target's role does not own
// (https://www.postgresql.org/docs/current/sql-alterdatabase.html).
func (s *schemaStep) maySet(ctx context.Context, target *pgx.Conn, settings []dump.Setting) error {
	if !slices.ContainsFunc(settings, func(set dump.Setting) bool { return set.Role == "" }) {
		return nil
	}
	var role, database string
	var may bool
	err := target.QueryRow(ctx, `SELECT r.rolname::text, d.datname::text, pg_has_role(r.oid, d.datdba, 'USAGE') FROM pg_database d, pg_roles r
		WHERE d.datname = current_database() AND r.rolname = coalesce(nullif($1, ''), current_user::text)`, s.env.Runbook.Target.ApplyRole).Scan(&role, &database, &may)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && may {
		return nil // the preflight names a role that does not exist
	}
	if err != nil {
		return fmt.Errorf("looking at the target's database: %w", err)
	}
	return &engine.Error{
		Class: engine.ClassPreflight, Op: "carrying the database's settings", Object: database, Err: fmt.Errorf("%s does not own the target's database", role),
		Hint: fmt.Sprintf("ALTER DATABASE %s OWNER TO %s;\n-- or leave the settings out: schema { settings = false }", pgx.Identifier{database}.Sanitize(), pgx.Identifier{role}.Sanitize()),
	}
}

package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

// roleMap gives the target's name for a role of the source.
type roleMap struct {
	owners  map[string]string
	there   map[string]bool // roles of the target
	mapped  bool            // names differ or are missing: pg_restore alone cannot do it
	missing []string
}

// rename is a dump.Renamed.
func (m *roleMap) rename(role string) (string, bool) {
	if to, ok := m.owners[role]; ok {
		role = to
	}
	return role, m.there[role]
}

// prepareRoles makes, requires or passes over the roles that the objects need.
func (s *schemaStep) prepareRoles(ctx context.Context, sides *sideConns, c *schemaCursor, cp engine.Checkpoint) (*roleMap, error) {
	needed, err := dump.Roles(ctx, sides.source, s.env.Scope)
	if err != nil {
		return nil, err
	}
	missing, err := dump.MissingRoles(ctx, sides.target, needed, s.env.Runbook.Schema.Owners)
	if err != nil {
		return nil, err
	}
	if s.env.Runbook.Schema.Roles == "create" && len(missing) > 0 {
		made, err := dump.CreateRoles(ctx, sides.target, missing)
		if err != nil {
			return nil, &engine.Error{Op: "creating roles on the target", Err: err, Hint: "Give the target's role CREATEROLE, or create the roles yourself and set schema { roles = \"require\" }."}
		}
		c.Roles = append(c.Roles, made...)
		if err := cp.Save(ctx, nil, c); err != nil {
			return nil, err
		}
	}
	m, err := s.readRoleMap(ctx, sides.target, needed)
	if err != nil {
		return nil, err
	}
	if len(m.missing) > 0 && s.env.Runbook.Schema.Roles != "skip" {
		return nil, missingRoles(m.missing, missing)
	}
	return m, nil
}

func missingRoles(names []string, known []dump.Role) error {
	create := map[string]string{}
	for _, r := range known {
		if made := r.Statements(); len(made) > 0 {
			create[r.Name] = made[0] + ";"
		}
	}
	var lines []string
	for _, name := range names {
		sql := create[name]
		if sql == "" {
			sql = "CREATE ROLE " + pgx.Identifier{name}.Sanitize() + ";"
		}
		lines = append(lines, sql)
	}
	return &engine.Error{
		Class: engine.ClassPreflight, Op: "looking for roles on the target",
		Err:  fmt.Errorf("not there: %s", strings.Join(names, ", ")),
		Hint: strings.Join(lines, "\n") + "\n-- or in the schema block: owners = { ... }, or roles = \"create\" or \"skip\"",
	}
}

func (s *schemaStep) readRoleMap(ctx context.Context, target *pgx.Conn, needed []dump.Role) (*roleMap, error) {
	rows, err := target.Query(ctx, "SELECT rolname::text FROM pg_roles")
	if err != nil {
		return nil, fmt.Errorf("reading the target's roles: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the target's roles: %w", err)
	}
	m := &roleMap{owners: s.env.Runbook.Schema.Owners, there: map[string]bool{}, mapped: len(s.env.Runbook.Schema.Owners) > 0}
	for _, n := range names {
		m.there[n] = true
	}
	for _, r := range needed {
		if to, ok := m.rename(r.Name); !ok && r.Direct {
			m.missing, m.mapped = append(m.missing, to), true
		}
	}
	slices.Sort(m.missing)
	m.missing = slices.Compact(m.missing)
	return m, nil
}

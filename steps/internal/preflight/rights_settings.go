package preflight

import (
	"context"
	"fmt"
	"slices"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

// maySetSQL says of a role whether another one may alter it, and what it lacks for that: a superuser alters
// everybody, each role itself, and one with CREATEROLE others than superusers, from 16 on those that it has the
// ADMIN OPTION on (https://www.postgresql.org/docs/current/sql-alterrole.html).
const maySetSQL = `
SELECT r.rolsuper, me.rolcreaterole, current_setting('server_version_num')::int < 160000 OR pg_has_role(me.oid, r.oid, 'MEMBER WITH ADMIN OPTION')
  FROM pg_roles r, pg_roles me WHERE r.rolname = $1 AND me.rolname = $2`

// roleSettings: ALTER ROLE ... IN DATABASE ... SET of the source is carried, and who owns the database may not
// repeat it for that.
func roleSettings(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	s := &f.To
	if ours, err := f.runGoesOn(ctx); err != nil || ours || f.existing() || f.moved || !s.RoleKnown || s.Super || !f.Runbook.Schema.Settings {
		return nil, err
	}
	settings, err := dump.Settings(ctx, f.From.conn)
	if err != nil {
		return nil, err
	}
	var roles []string
	for _, set := range settings {
		if set.Role != "" && f.renamed(set.Role) != s.Role {
			roles = append(roles, f.renamed(set.Role))
		}
	}
	slices.Sort(roles)
	var creating, granting rights
	var out []engine.Finding
	for _, role := range slices.Compact(roles) {
		there, err := s.list(ctx, "SELECT rolname::text FROM pg_roles WHERE rolname = $1", role)
		if err != nil {
			return nil, err
		}
		if len(there) == 0 {
			continue // made, and ours to alter then; or left out
		}
		var super, creates, admin bool
		if err := s.conn.QueryRow(ctx, maySetSQL, role, s.Role).Scan(&super, &creates, &admin); err != nil {
			return nil, err
		}
		if super {
			out = append(out, finding(engine.SeverityError, engine.Target, role, "Let a superuser apply, or leave them out: schema { settings = false }",
				"The source has settings of the superuser %s in this database, which only a superuser may carry.", role))
			continue
		}
		if !creates {
			creating.lacks(fmt.Sprintf("ALTER ROLE %s CREATEROLE;", ident(s.Role)), role)
		}
		if !admin {
			granting.lacks(fmt.Sprintf("GRANT %s TO %s WITH ADMIN OPTION;", ident(role), ident(s.Role)), role)
		}
	}
	out = append(out, creating.findings(engine.Target, s.Role, "CREATEROLE, which it takes to carry ALTER ROLE ... IN DATABASE ... SET (or: schema { settings = false })")...)
	return append(out, granting.findings(engine.Target, s.Role, "the ADMIN OPTION, which it takes to carry ALTER ROLE ... IN DATABASE ... SET (or: schema { settings = false })")...), nil
}

package preflight

import (
	"context"
	"fmt"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
)

// sourceSessions: without these rights the server hides since when others' transactions are open, and
// the application's sessions cannot be ended.
func sourceSessions(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	roles, why := []string{"pg_read_all_stats"}, "transactions that are open for long are not found, and who is in the way is not told in full"
	c := f.Runbook.Cutover
	switch signal := "pg_signal_backend"; {
	case c.Enabled && c.EndSessions:
		roles, why = append(roles, signal), why+"; the application's sessions stay on the source after the flip"
	case c.Enabled && f.Runbook.Rollback.Enabled:
		roles, why = append(roles, signal), why+"; a long transaction there can keep the way back waiting"
	}
	return seesSessions(ctx, &f.From, engine.SeverityWarning, roles, why)
}

// targetSessions: whoever read the target before the final pass must not commit after the flip what it
// computed from that.
func targetSessions(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if !f.Runbook.Cutover.Enabled {
		return nil, nil
	}
	return seesSessions(ctx, &f.To, engine.SeverityWarning, []string{"pg_read_all_stats", "pg_signal_backend"},
		"the cutover cannot end other roles' transactions there that are older than the flip, and is put off as long as there are any")
}

// seesSessions asks for predefined roles (https://www.postgresql.org/docs/current/predefined-roles.html).
func seesSessions(ctx context.Context, s *Side, severity engine.Severity, roles []string, why string) ([]engine.Finding, error) {
	if !s.RoleKnown || s.Super {
		return nil, nil
	}
	lacking, err := s.list(ctx, "SELECT p FROM unnest($2::text[]) p WHERE NOT pg_has_role($1::name, p::name, 'USAGE')", s.Role, roles)
	if err != nil || len(lacking) == 0 {
		return nil, err
	}
	return one(finding(severity, s.Name, s.Role, s.join(lacking...),
		"The role %s does not have the rights of %s: %s.", s.Role, strings.Join(lacking, ", "), why)), nil
}

const databaseOwnerSQL = `
SELECT pg_get_userbyid(d.datdba)::text, r.rolsuper, pg_has_role($1::name, d.datdba, 'USAGE')
  FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = current_database()`

// databaseOwners: only an owner may ALTER DATABASE ... SET, which closes the old side to new clients.
// A target's own default has to go in the very transaction that opens it.
func databaseOwners(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	c := f.Runbook.Cutover
	if !c.Enabled {
		return nil, nil
	}
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		if !s.RoleKnown || s.Super {
			continue
		}
		var owner string
		var super, may bool
		if err := s.conn.QueryRow(ctx, databaseOwnerSQL, s.Role).Scan(&owner, &super, &may); err != nil {
			return nil, err
		}
		if may {
			continue
		}
		opens := false
		if s.Name == engine.Target {
			own, err := s.readOnlyDefault(ctx)
			if err != nil {
				return nil, err
			}
			opens = own != ""
		}
		severity, text := engine.SeverityWarning, "after a flip %s's default_transaction_read_only cannot be set, so new clients find out by their first write only (read_only = false in the cutover block leaves it alone)"
		switch {
		case opens:
			severity, text = engine.SeverityError, "the default_transaction_read_only of %s cannot be reset, and the flip has to"
		case !c.ReadOnly, s.Name == engine.Target && !f.Runbook.Rollback.Enabled:
			continue
		}
		fix := s.join(owner)
		if super {
			fix = fmt.Sprintf("ALTER DATABASE %s OWNER TO %s;", ident(s.Identity.Database), ident(s.Role))
		}
		out = append(out, finding(severity, s.Name, s.Identity.Database, fix, "The role %s does not own the database: "+text+".", s.Role, s.Identity.Database))
	}
	return out, nil
}

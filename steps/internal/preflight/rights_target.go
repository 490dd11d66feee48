package preflight

import (
	"context"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

func targetRole(_ context.Context, f *Facts) ([]engine.Finding, error) { return roleExists(&f.To), nil }

func targetCreate(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	return canCreate(ctx, &f.To)
}

// targetReplica: rows are loaded by sessions whose writes fire no trigger.
func targetReplica(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	return mayBeReplica(ctx, &f.To, f.Runbook.Target.ReplicaRoleFunction, "triggers and foreign keys would fire for copied rows", "")
}

// sourceReplica: the way back writes to the source as the copy does to the target, and is proved
// with a row before the cutover.
func sourceReplica(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if !f.Runbook.Rollback.Enabled || !f.Runbook.Cutover.Enabled {
		return nil, nil
	}
	return mayBeReplica(ctx, &f.From, f.Runbook.Source.ReplicaRoleFunction, "on the way back triggers and foreign keys would fire for carried rows", " Or give up the way back: rollback { enabled = false }.")
}

// mayBeReplica: a superuser may set session_replication_role, from 15 on whoever was granted the
// parameter (https://www.postgresql.org/docs/current/sql-grant.html), else a function must.
func mayBeReplica(ctx context.Context, s *Side, function, why, otherwise string) ([]engine.Finding, error) {
	if !s.RoleKnown {
		return nil, nil
	}
	if function != "" {
		return replicaFunction(ctx, s, function)
	}
	if s.Super {
		return nil, nil
	}
	fix := "Name a function that sets it in replica_role_function (on Amazon RDS: grant rds_superuser), or apply as a superuser." + otherwise
	if s.Identity.Major >= 15 {
		var may bool
		if err := s.conn.QueryRow(ctx, "SELECT has_parameter_privilege($1::name, 'session_replication_role', 'SET')", s.Role).Scan(&may); err != nil || may {
			return nil, err
		}
		fix = fmt.Sprintf("GRANT SET ON PARAMETER session_replication_role TO %s;", ident(s.Role))
	}
	return one(finding(engine.SeverityError, s.Name, s.Role, fix, "The role %s may not set session_replication_role: %s.", s.Role, why)), nil
}

func replicaFunction(ctx context.Context, s *Side, name string) ([]engine.Finding, error) {
	parts, err := pg.ParseIdentifier(name)
	if err != nil || len(parts) != 2 {
		return one(finding(engine.SeverityError, s.Name, name, `Write "schema.function".`, "replica_role_function is not of the form schema.function.")), nil
	}
	var known, may bool
	err = s.conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_or(has_function_privilege($3::name, p.oid, 'EXECUTE')), false)
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = $1 AND p.proname = $2 AND p.pronargs = 1`, parts[0], parts[1], s.Role).Scan(&known, &may)
	switch {
	case err != nil:
		return nil, err
	case !known:
		return one(finding(engine.SeverityError, s.Name, name, "Create it, taking one text argument, or correct replica_role_function.", "The function %s of one argument does not exist.", name)), nil
	case !may:
		return one(finding(engine.SeverityError, s.Name, name, fmt.Sprintf("GRANT EXECUTE ON FUNCTION %s(text) TO %s;", parts.Sanitize(), ident(s.Role)), "The role %s may not call %s.", s.Role, name)), nil
	}
	return nil, nil
}

// ownersSQL gives the owners of the tables in scope and of everything else that the schema phase
// makes: what extensions own, and schema public, comes with the target.
const ownersSQL = `
SELECT DISTINCT pg_get_userbyid(o.owner)::text
  FROM (SELECT 'pg_class'::regclass::oid AS class, oid, relowner AS owner, relnamespace AS nsp FROM pg_class WHERE relkind IN ('v', 'm', 'S', 'f', 'c') AND relpersistence <> 't'
        UNION ALL SELECT 'pg_proc'::regclass, oid, proowner, pronamespace FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid, typowner, typnamespace FROM pg_type WHERE typtype IN ('d', 'e', 'r')
        UNION ALL SELECT 'pg_namespace'::regclass, oid, nspowner, oid FROM pg_namespace WHERE nspname <> 'public') o
  JOIN pg_namespace n ON n.oid = o.nsp
 WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook') AND pg_get_userbyid(o.owner) !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
UNION
SELECT pg_get_userbyid(c.relowner)::text FROM pg_class c WHERE c.oid = ANY ($1::oid[])
 ORDER BY 1`

// targetOwners: objects are created for their owners, and only a member may give a table to a role
// (https://www.postgresql.org/docs/current/sql-altertable.html).
func targetOwners(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	s := &f.To
	if !s.RoleKnown || f.existing() {
		return nil, nil
	}
	owners, err := f.From.list(ctx, ownersSQL, f.relations(true))
	if err != nil {
		return nil, err
	}
	var out []engine.Finding
	seen := map[string]bool{}
	for _, owner := range owners {
		if mapped := f.Runbook.Schema.Owners[owner]; mapped != "" {
			owner = mapped
		}
		if seen[owner] {
			continue
		}
		seen[owner] = true
		found, err := targetOwner(ctx, f, s, owner)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func targetOwner(ctx context.Context, f *Facts, s *Side, owner string) ([]engine.Finding, error) {
	var known, super, member bool
	right, options := "MEMBER", ""
	if s.Identity.Major >= 16 { // CREATEROLE makes its holder a member that may neither give nor use anything
		right, options = "SET", " WITH INHERIT TRUE, SET TRUE"
	}
	err := s.conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_or(rolsuper), false), coalesce(bool_or(pg_has_role($2::name, oid, $3) AND pg_has_role($2::name, oid, 'USAGE')), false)
  FROM pg_roles WHERE rolname = $1`, owner, s.Role, right).Scan(&known, &super, &member)
	join := fmt.Sprintf("GRANT %s TO %s%s;", ident(owner), ident(s.Role), options)
	switch {
	case err != nil:
		return nil, err
	case member, !known && f.Runbook.Schema.Roles != "require": // made, or left out
		return nil, nil
	case !known:
		fix := fmt.Sprintf("CREATE ROLE %s;", ident(owner))
		if !s.Super {
			fix += " " + join
		}
		return one(finding(engine.SeverityError, engine.Target, owner, fix+` Or map it in owners, or set roles = "create".`, "%s owns objects that are carried and does not exist on the target.", owner)), nil
	case super:
		join = fmt.Sprintf("Map it in the schema block: owners = { %q = %q }", owner, s.Role)
	}
	return one(finding(engine.SeverityError, engine.Target, owner, join, "The role %s may not act as %s, which owns objects that are carried.", s.Role, owner)), nil
}

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

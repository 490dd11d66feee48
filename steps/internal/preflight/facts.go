package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Input is what a preflight looks at. Both connections have pinned settings and may be read-only.
type Input struct {
	Runbook                *runbook.Runbook
	Scope                  *scope.Scope
	Source, Target         *pg.Server
	SourceConn, TargetConn *pgx.Conn
	Dump                   DumpTool
	DeltaRoom              int64 // bytes of the deltas on the source when every row changes once
}

// DumpTool is the pg_dump that the schema phase would use.
type DumpTool struct {
	Dir, Version string
	Major        int
	Warning      string // of a minor with known holes
	Err          error  // none was found
	Needed       bool   // false where the schema exists and no table is loaded by pg_dump
}

// Facts is what the checks share; it is built once.
type Facts struct {
	Input
	From, To Side
	moved    bool         // a finished run left its closed gate on the source
	made     []dump.Owned // by the restore; read once
}

// Side is one server as the checks need it.
type Side struct {
	Name      engine.Side
	Identity  pg.Identity
	Role      string // that will apply
	Connected string // that looks
	RoleKnown bool
	Super     bool
	BypassRLS bool
	Inherits  bool     // has the rights of its roles without SET ROLE; from 16 on each membership says so
	MemberOf  []string // directly
	Encoding  string
	Collate   string
	CType     string
	Settings  map[string]string // as they are without our pins
	conn      *pgx.Conn
	server    *pg.Server
}

// Gather reads what all checks need.
func Gather(ctx context.Context, in Input) (*Facts, error) {
	if in.Runbook == nil || in.Scope == nil || in.Source == nil || in.Target == nil || in.SourceConn == nil || in.TargetConn == nil {
		return nil, errors.New("preflight needs a runbook, a scope and both servers")
	}
	f := &Facts{Input: in}
	var err error
	if f.From, err = readSide(ctx, engine.Source, in.Source, in.SourceConn, in.Runbook.Source.ApplyRole); err != nil {
		return nil, err
	}
	if f.To, err = readSide(ctx, engine.Target, in.Target, in.TargetConn, in.Runbook.Target.ApplyRole); err != nil {
		return nil, err
	}
	return f, nil
}

const sideSQL = `
SELECT current_user::text, coalesce(nullif($1, ''), current_user::text), r.oid IS NOT NULL, coalesce(r.rolsuper, false),
       coalesce(r.rolbypassrls, false), coalesce(r.rolinherit, true),
       ARRAY(SELECT pg_get_userbyid(m.roleid)::text FROM pg_auth_members m WHERE m.member = r.oid), pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text
  FROM pg_database d
  LEFT JOIN pg_roles r ON r.rolname = coalesce(nullif($1, ''), current_user::text)
 WHERE d.datname = current_database()`

func readSide(ctx context.Context, name engine.Side, server *pg.Server, conn *pgx.Conn, applyRole string) (Side, error) {
	s := Side{Name: name, conn: conn, server: server, Settings: map[string]string{}}
	id, err := server.Identity(ctx, conn)
	if err != nil {
		return s, err
	}
	s.Identity = id
	err = conn.QueryRow(ctx, sideSQL, applyRole).Scan(&s.Connected, &s.Role, &s.RoleKnown, &s.Super, &s.BypassRLS, &s.Inherits, &s.MemberOf, &s.Encoding, &s.Collate, &s.CType)
	if err != nil {
		return s, fmt.Errorf("reading the %s's role and database: %w", name, err)
	}
	rows, err := conn.Query(ctx, "SELECT name, coalesce(reset_val, '') FROM pg_settings")
	if err != nil {
		return s, fmt.Errorf("reading the %s's settings: %w", name, err)
	}
	var key, value string
	if _, err := pgx.ForEachRow(rows, []any{&key, &value}, func() error { s.Settings[key] = value; return nil }); err != nil {
		return s, fmt.Errorf("reading the %s's settings: %w", name, err)
	}
	return s, nil
}

// number reads a whole-number setting; 0 where the server does not have it.
func (s *Side) number(name string) int64 {
	var n int64
	if _, err := fmt.Sscan(s.Settings[name], &n); err != nil {
		return 0
	}
	return n
}

// list runs a query of one text column on a side.
func (s *Side) list(ctx context.Context, sql string, args ...any) ([]string, error) {
	rows, err := s.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// relations gives the oids on the source of all tables in scope; members too when asked for.
func (f *Facts) relations(members bool) []uint32 { return f.relationsOf(everyTable, members) }

// withRows tells tables whose rows are carried from those that are created empty.
func withRows(t *scope.Table) bool { return t.Data != scope.NoData }

func everyTable(*scope.Table) bool { return true }

func (f *Facts) relationsOf(wanted func(*scope.Table) bool, members bool) []uint32 {
	var out []uint32
	for i := range f.Scope.Tables {
		t := &f.Scope.Tables[i]
		if !wanted(t) {
			continue
		}
		out = append(out, t.OID)
		if !members {
			continue
		}
		for _, m := range t.Members {
			if !m.Foreign {
				out = append(out, m.OID)
			}
		}
	}
	return out
}

// join gives the statements after which the role has the rights of others by itself: our sessions never
// SET ROLE. A role with NOINHERIT gains nothing by a GRANT before 16, and only by one that says so after
// (https://www.postgresql.org/docs/current/role-membership.html).
func (s *Side) join(roles ...string) string {
	var list, lacking []string
	for _, r := range roles {
		list = append(list, ident(r))
		if !slices.Contains(s.MemberOf, r) {
			lacking = append(lacking, ident(r))
		}
	}
	if s.Identity.Major >= inheritGranted {
		return fmt.Sprintf("GRANT %s TO %s WITH INHERIT TRUE;", strings.Join(list, ", "), ident(s.Role))
	}
	var statements []string
	if !s.Inherits {
		statements = append(statements, fmt.Sprintf("ALTER ROLE %s INHERIT;", ident(s.Role)))
	}
	if len(lacking) > 0 {
		statements = append(statements, fmt.Sprintf("GRANT %s TO %s;", strings.Join(lacking, ", "), ident(s.Role)))
	}
	return strings.Join(statements, " ")
}

// inheritGranted is the major from which on each membership says whether its rights are inherited.
const inheritGranted = 16

// ident quotes one name for a statement that a person will type.
func ident(name string) string { return pgx.Identifier{name}.Sanitize() }

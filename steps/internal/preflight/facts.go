package preflight

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
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
	moved    bool // a finished run left its closed gate on the source
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
       coalesce(r.rolbypassrls, false), pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text
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
	err = conn.QueryRow(ctx, sideSQL, applyRole).Scan(&s.Connected, &s.Role, &s.RoleKnown, &s.Super, &s.BypassRLS, &s.Encoding, &s.Collate, &s.CType)
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
func (f *Facts) relations(members bool) []uint32 {
	var out []uint32
	for i := range f.Scope.Tables {
		t := &f.Scope.Tables[i]
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

// ident quotes one name for a statement that a person will type.
func ident(name string) string { return pgx.Identifier{name}.Sanitize() }

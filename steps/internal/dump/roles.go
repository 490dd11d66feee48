package dump

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Role is a role of the source that the carried objects need: it owns one, is granted something,
// or is linked by membership to one that does.
type Role struct {
	Name      string
	Direct    bool // owns or is granted something itself
	Super     bool // on the source; never given to a role that we make
	Elevated  bool // REPLICATION or BYPASSRLS: only a superuser may give these away
	create    string
	elevated  string
	settings  []string // statements
	memberOf  []membership
	password  string // the stored hash; only ever part of one statement to the target
	hasSecret bool
}

type membership struct{ role, options string }

// String never shows the password hash.
func (r Role) String() string { return r.Name }

// Statements gives what makes the role, for a plan; without the password.
func (r Role) Statements() []string {
	out := []string{r.create}
	out = append(out, r.settings...)
	for _, m := range r.memberOf {
		out = append(out, "GRANT "+ident(m.role)+" TO "+ident(r.Name)+m.options)
	}
	return out
}

// neededSQL gives the roles that objects of this database depend on (pg_shdepend), and the
// bootstrap superuser, whose dependencies are not recorded, where it owns something of the user's.
const neededSQL = `
SELECT DISTINCT r.rolname::text, d.classid, d.objid
  FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
 WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND r.rolname !~ '^pg_'
UNION
SELECT r.rolname::text, 'pg_catalog.pg_class'::regclass, c.oid
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
 WHERE r.oid < 16384 AND r.rolname !~ '^pg_' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook')`

const rolesSQL = `
SELECT r.oid, r.rolname::text, r.rolsuper, r.rolreplication, r.rolbypassrls, r.rolcanlogin, r.rolinherit, r.rolcreatedb, r.rolcreaterole,
       r.rolconnlimit, r.rolvaliduntil::text, %s
  FROM pg_roles r %s
 WHERE r.rolname !~ '^pg_'
 ORDER BY r.rolname`

// Roles reads the roles that the scope's objects need. Password hashes are read only where the
// connecting role may read pg_authid.
func Roles(ctx context.Context, conn *pgx.Conn, s *scope.Scope) ([]Role, error) {
	direct, err := directRoles(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	links, err := memberships(ctx, conn)
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	for name := range direct {
		needed[name] = true
	}
	for changed := true; changed; {
		changed = false
		for member, of := range links {
			for _, m := range of {
				if needed[member] != needed[m.role] && !strings.HasPrefix(m.role, "pg_") {
					needed[member], needed[m.role], changed = true, true, true
				}
			}
		}
	}
	all, err := readRoles(ctx, conn)
	if err != nil {
		return nil, err
	}
	var out []Role
	for _, r := range all {
		if needed[r.Name] {
			r.Direct, r.memberOf = direct[r.Name], links[r.Name]
			out = append(out, r)
		}
	}
	return out, nil
}

func directRoles(ctx context.Context, conn *pgx.Conn, s *scope.Scope) (map[string]bool, error) {
	gone, _, err := dependents(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, neededSQL)
	if err != nil {
		return nil, fmt.Errorf("reading which roles are needed: %w", err)
	}
	out := map[string]bool{}
	var name string
	var id objectID
	_, err = pgx.ForEachRow(rows, []any{&name, &id.class, &id.oid}, func() error {
		if !gone[id] {
			out[name] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading which roles are needed: %w", err)
	}
	return out, nil
}

func memberships(ctx context.Context, conn *pgx.Conn) (map[string][]membership, error) {
	rows, err := conn.Query(ctx, `SELECT DISTINCT m.rolname::text, r.rolname::text, a.admin_option
		FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member ORDER BY 1, 2, 3`)
	if err != nil {
		return nil, fmt.Errorf("reading memberships: %w", err)
	}
	out := map[string][]membership{}
	var member, role string
	var admin bool
	_, err = pgx.ForEachRow(rows, []any{&member, &role, &admin}, func() error {
		m := membership{role: role}
		if admin {
			m.options = " WITH ADMIN OPTION"
		}
		out[member] = append(out[member], m)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading memberships: %w", err)
	}
	return out, nil
}

func readRoles(ctx context.Context, conn *pgx.Conn) ([]Role, error) {
	var readable bool
	if err := conn.QueryRow(ctx, "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')").Scan(&readable); err != nil {
		return nil, fmt.Errorf("reading roles: %w", err)
	}
	hashColumn, join := "NULL::text", ""
	if readable {
		hashColumn, join = "a.rolpassword", "JOIN pg_authid a ON a.oid = r.oid"
	}
	rows, err := conn.Query(ctx, fmt.Sprintf(rolesSQL, hashColumn, join))
	if err != nil {
		return nil, fmt.Errorf("reading roles: %w", err)
	}
	var out []Role
	byOID := map[uint32]int{}
	var oid uint32
	var name string
	var super, replication, bypass, login, inherit, createDB, createRole bool
	var limit int32
	var until, hash *string
	_, err = pgx.ForEachRow(rows, []any{&oid, &name, &super, &replication, &bypass, &login, &inherit, &createDB, &createRole, &limit, &until, &hash}, func() error {
		r := Role{Name: name, Super: super, Elevated: replication || bypass}
		r.create = "CREATE ROLE " + ident(name) + " WITH" + word(login, "LOGIN") + word(inherit, "INHERIT") + word(createDB, "CREATEDB") + word(createRole, "CREATEROLE")
		if limit >= 0 {
			r.create += fmt.Sprintf(" CONNECTION LIMIT %d", limit)
		}
		if until != nil {
			r.create += " VALID UNTIL " + pg.Literal(*until)
		}
		if r.Elevated {
			r.elevated = "ALTER ROLE " + ident(name) + " WITH" + word(replication, "REPLICATION") + word(bypass, "BYPASSRLS")
		}
		if hash != nil {
			r.password, r.hasSecret = *hash, true
		}
		byOID[oid] = len(out)
		out = append(out, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading roles: %w", err)
	}
	return out, roleSettings(ctx, conn, out, byOID)
}

func word(on bool, w string) string {
	if on {
		return " " + w
	}
	return " NO" + w
}

// MissingRoles gives the names among roles that the target does not have. owners maps names of the
// source to names of the target.
func MissingRoles(ctx context.Context, target *pgx.Conn, roles []Role, owners map[string]string) ([]Role, error) {
	rows, err := target.Query(ctx, "SELECT rolname::text FROM pg_roles")
	if err != nil {
		return nil, fmt.Errorf("reading the target's roles: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the target's roles: %w", err)
	}
	have := map[string]bool{}
	for _, n := range names {
		have[n] = true
	}
	var out []Role
	for _, r := range roles {
		name := r.Name
		if to, ok := owners[name]; ok {
			name, r.Name = to, to
			r.create = ""
		}
		if have[name] {
			continue
		}
		r.memberOf = slices.Clone(r.memberOf)
		for i, m := range r.memberOf {
			if to, ok := owners[m.role]; ok {
				r.memberOf[i].role = to
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// CreateRoles makes roles that are missing on the target with their settings and memberships, each
// once, in one transaction. No role becomes a superuser. A maker that is none joins what it makes:
// only so may it give away tables (from 16 on CREATEROLE alone gives ADMIN, and neither SET nor
// INHERIT, https://www.postgresql.org/docs/current/role-attributes.html). It returns the names made.
func CreateRoles(ctx context.Context, target *pgx.Conn, roles []Role) ([]string, error) {
	var made []string
	err := pgx.BeginFunc(ctx, target, func(tx pgx.Tx) error {
		var super bool
		if err := tx.QueryRow(ctx, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user").Scan(&super); err != nil {
			return err
		}
		for _, r := range roles {
			if r.create == "" {
				continue
			}
			sql := r.create
			if r.hasSecret {
				sql += " PASSWORD " + pg.Literal(r.password)
			}
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("creating role %s: %w", r.Name, err)
			}
			made = append(made, r.Name)
			if !super {
				if _, err := tx.Exec(ctx, "GRANT "+ident(r.Name)+" TO CURRENT_USER"); err != nil {
					return fmt.Errorf("joining role %s: %w", r.Name, err)
				}
			}
			if r.elevated != "" && super {
				if _, err := tx.Exec(ctx, r.elevated); err != nil {
					return fmt.Errorf("creating role %s: %w", r.Name, err)
				}
			}
		}
		for _, r := range roles {
			if r.create == "" {
				continue
			}
			for _, sql := range r.Statements()[1:] {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return fmt.Errorf("running %s: %w", sql, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("creating the roles: %w", err)
	}
	failpoint.Hit("dump.roles")
	return made, nil
}

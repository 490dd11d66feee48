package preflight

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

// What the schema phase makes is made for the owners that it has on the source, and in the schemas that
// the target has already, where it has them.

// restored gives schema and owner of what the restore makes.
func (f *Facts) restored(ctx context.Context) ([]dump.Owned, error) {
	if f.made != nil {
		return f.made, nil
	}
	var err error
	f.made, err = dump.Restored(ctx, f.From.conn, f.Scope)
	return f.made, err
}

// shared is a schema of the target that the source has as well.
type shared struct {
	Name, Owner        string
	Creates, Uses, Own bool // what the role that applies may do there
}

const sharedSQL = `
SELECT n.nspname::text, pg_get_userbyid(n.nspowner)::text, coalesce(has_schema_privilege($2::name, n.oid, 'CREATE'), true),
       coalesce(has_schema_privilege($2::name, n.oid, 'USAGE'), true), pg_has_role($2::name, n.nspowner, 'USAGE')
  FROM pg_namespace n WHERE n.nspname = ANY ($1::text[]) ORDER BY 1`

// shared gives what the restore makes, and the schemas of the target that the source has as well.
func (f *Facts) shared(ctx context.Context) (made []dump.Owned, there []shared, err error) {
	if made, err = f.restored(ctx); err != nil {
		return nil, nil, err
	}
	names := []string{"public"}
	for _, o := range made {
		names = append(names, o.Schema)
	}
	rows, err := f.To.conn.Query(ctx, sharedSQL, names, f.To.Role)
	if err != nil {
		return nil, nil, err
	}
	there, err = pgx.CollectRows(rows, pgx.RowToStructByPos[shared])
	return made, there, err
}

// sharedSchemas: a schema that is on the target already stays its owner's. What is made there, the role
// that applies must be allowed to make, and its owners to have; rights of the schema that it may not
// grant are named, since the application would lack them.
func sharedSchemas(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	if ours, err := f.runGoesOn(ctx); err != nil || ours || f.existing() || f.moved || !f.To.RoleKnown || f.To.Super {
		return nil, err
	}
	made, there, err := f.shared(ctx)
	if err != nil {
		return nil, err
	}
	homeless, named, err := f.homeless(ctx, made, there)
	if err != nil {
		return nil, err
	}
	var creating, granting rights
	for _, s := range there {
		filled := slices.ContainsFunc(made, func(o dump.Owned) bool { return o.Schema == s.Name && !o.Self })
		if filled && !(s.Creates && s.Uses) {
			named[granted{f.To.Role, "CREATE", s.Name}], named[granted{f.To.Role, "USAGE", s.Name}] = true, true
			creating.lacks(fmt.Sprintf("GRANT CREATE, USAGE ON SCHEMA %s TO %s;", ident(s.Name), ident(f.To.Role)), s.Name)
		}
		if s.Own {
			continue
		}
		if err := f.ungranted(ctx, s, named, &granting); err != nil {
			return nil, err
		}
	}
	out := creating.findings(engine.Target, f.To.Role, "the right to create in a schema that is there already")
	for _, statement := range granting.order {
		out = append(out, finding(engine.SeverityWarning, engine.Target, granting.objects[statement][0], statement,
			"The schema is there already and another role's: %s cannot carry this right on it, which the source has.", f.To.Role))
	}
	return append(out, homeless...), nil
}

// granted is a right on a schema.
type granted struct{ Grantee, Right, Schema string }

// grantedSQL gives the rights that others than its owner have on a schema.
const grantedSQL = `
SELECT CASE e.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(e.grantee)::text END, e.privilege_type::text
  FROM pg_namespace n CROSS JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) e
 WHERE n.nspname = $1 AND e.grantee <> n.nspowner AND NOT (n.nspname = 'public' AND e.grantee = 0) ORDER BY 1, 2`

// ungranted finds rights on a schema that its roles have on the source and not on the target, but for those that
// other findings name.
func (f *Facts) ungranted(ctx context.Context, s shared, named map[granted]bool, lacking *rights) error {
	rows, err := f.From.conn.Query(ctx, grantedSQL, s.Name)
	if err != nil {
		return err
	}
	type grant struct{ Grantee, Right string }
	grants, err := pgx.CollectRows(rows, pgx.RowToStructByPos[grant])
	if err != nil {
		return err
	}
	for _, g := range grants {
		grantee := f.renamed(g.Grantee)
		lacks, err := f.To.list(ctx, `SELECT $1::text WHERE ($1::text = 'public' OR EXISTS (SELECT FROM pg_roles WHERE rolname = $1::text))
 AND NOT has_schema_privilege($1::name, $2::text, $3::text)`, grantee, s.Name, g.Right)
		if err != nil {
			return err
		}
		if len(lacks) > 0 && !named[granted{grantee, g.Right, s.Name}] {
			who := "PUBLIC"
			if grantee != "public" {
				who = ident(grantee)
			}
			lacking.lacks(fmt.Sprintf("GRANT %s ON SCHEMA %s TO %s; -- as %s", g.Right, ident(s.Name), who, ident(s.Owner)), s.Name)
		}
	}
	return nil
}

func (f *Facts) renamed(role string) string {
	if to := f.Runbook.Schema.Owners[role]; to != "" {
		return to
	}
	return role
}

const mayCreateSQL = `
SELECT x.nsp, x.owner FROM unnest($1::text[], $2::text[], $3::text[]) AS x (nsp, owner, master)
  JOIN pg_roles r ON r.rolname = x.owner LEFT JOIN pg_namespace n ON n.nspname = x.nsp LEFT JOIN pg_roles m ON m.rolname = x.master
 WHERE NOT CASE WHEN n.oid IS NOT NULL THEN has_schema_privilege(r.oid, n.oid, 'CREATE') WHEN m.oid IS NULL THEN true ELSE pg_has_role(r.oid, m.oid, 'USAGE') END ORDER BY 1, 2`

// homeless: a role that is no superuser can give an object only to who may create in its schema, and
// rights on a schema that the restore makes come last (https://www.postgresql.org/docs/current/sql-altertable.html).
func (f *Facts) homeless(ctx context.Context, made []dump.Owned, there []shared) ([]engine.Finding, map[granted]bool, error) {
	masters := map[string]string{}
	for _, o := range made {
		if o.Self {
			masters[o.Schema] = f.renamed(o.Owner)
		}
	}
	present := map[string]bool{}
	for _, s := range there {
		present[s.Name] = true
	}
	var schemas, owners, of []string
	for _, o := range made {
		if !o.Self && f.renamed(o.Owner) != f.To.Role {
			schemas, owners, of = append(schemas, o.Schema), append(owners, f.renamed(o.Owner)), append(of, masters[o.Schema])
		}
	}
	rows, err := f.To.conn.Query(ctx, mayCreateSQL, schemas, owners, of)
	if err != nil {
		return nil, nil, err
	}
	var out []engine.Finding
	named := map[granted]bool{}
	var schema, owner string
	_, err = pgx.ForEachRow(rows, []any{&schema, &owner}, func() error {
		if named[granted{owner, "CREATE", schema}] {
			return nil // owners may be mapped to the same one
		}
		named[granted{owner, "CREATE", schema}] = true
		fix := fmt.Sprintf("GRANT CREATE ON SCHEMA %s TO %s;", ident(schema), ident(owner))
		if !present[schema] { // by the first statement it is
			fix, present[schema] = fmt.Sprintf("CREATE SCHEMA %s AUTHORIZATION %s; %s", ident(schema), ident(masters[schema]), fix), true
		}
		out = append(out, finding(engine.SeverityError, engine.Target, schema, fix,
			"%s owns objects in the schema %s and may not create there: the role %s, which is no superuser, cannot give them to it.", owner, schema, f.To.Role))
		return nil
	})
	return out, named, err
}

// targetOwners: objects are created for their owners, and only a member may give a table to a role
// (https://www.postgresql.org/docs/current/sql-altertable.html). A schema that is there keeps its own.
func targetOwners(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	s := &f.To
	if !s.RoleKnown || f.existing() {
		return nil, nil
	}
	made, there, err := f.shared(ctx)
	if err != nil {
		return nil, err
	}
	var owners []string
	for _, o := range made {
		if !o.Self || !slices.ContainsFunc(there, func(s shared) bool { return s.Name == o.Schema }) {
			owners = append(owners, f.renamed(o.Owner))
		}
	}
	slices.Sort(owners)
	var out []engine.Finding
	for _, owner := range slices.Compact(owners) {
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
	right := "MEMBER"
	if s.Identity.Major >= inheritGranted { // CREATEROLE makes its holder a member that may neither give nor use anything
		right = "SET"
	}
	err := s.conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_or(rolsuper), false), coalesce(bool_or(pg_has_role($2::name, oid, $3) AND pg_has_role($2::name, oid, 'USAGE')), false)
  FROM pg_roles WHERE rolname = $1`, owner, s.Role, right).Scan(&known, &super, &member)
	join := s.join(owner)
	if s.Identity.Major >= inheritGranted {
		join = fmt.Sprintf("GRANT %s TO %s WITH INHERIT TRUE, SET TRUE;", ident(owner), ident(s.Role))
	}
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
		return one(finding(engine.SeverityError, engine.Target, owner, fix+"\n-- or in the schema block: owners = { ... }, or roles = \"create\"", "%s owns objects that are carried and does not exist on the target.", owner)), nil
	case super:
		join = fmt.Sprintf("Map it in the schema block: owners = { %q = %q }", owner, s.Role)
	}
	return one(finding(engine.SeverityError, engine.Target, owner, join, "The role %s may not act as %s, which owns objects that are carried.", s.Role, owner)), nil
}

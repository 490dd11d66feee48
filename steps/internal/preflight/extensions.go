package preflight

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
)

// offersSQL gives what the target has or could make, and whether only a superuser may make it
// (https://www.postgresql.org/docs/current/extend-extensions.html; trusted came with 13).
const offersSQL = `
SELECT e.name::text, coalesce(e.installed_version, e.default_version, ''),
       e.installed_version IS NULL AND coalesce(v.superuser AND NOT coalesce((to_jsonb(v) ->> 'trusted')::bool, false), false),
       coalesce(n.nspname::text, ''), coalesce(x.extrelocatable, false)
  FROM pg_available_extensions e LEFT JOIN pg_available_extension_versions v ON v.name = e.name AND v.version = e.default_version
  LEFT JOIN pg_extension x ON x.extname = e.name LEFT JOIN pg_namespace n ON n.oid = x.extnamespace`

type offer struct {
	version   string
	superuser bool
	schema    string // where it is; empty: it is not installed
	movable   bool
}

func (f *Facts) offers(ctx context.Context) (map[string]offer, error) {
	return f.offered(ctx, offersSQL)
}

// installed gives what the target has, where one control file that it cannot read, of whatever extension, ends
// the list of those that it could make.
func (f *Facts) installed(ctx context.Context) (map[string]offer, error) {
	return f.offered(ctx, `SELECT x.extname::text, x.extversion, false, n.nspname::text, x.extrelocatable FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace`)
}

func (f *Facts) offered(ctx context.Context, sql string) (map[string]offer, error) {
	rows, err := f.To.conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	offers := map[string]offer{}
	var name string
	var o offer
	_, err = pgx.ForEachRow(rows, []any{&name, &o.version, &o.superuser, &o.schema, &o.movable}, func() error {
		offers[name] = o
		return nil
	})
	return offers, err
}

// installedSQL gives the source's extensions, and whether something that is no part of one needs a part of
// it: names in definitions are qualified, so that it must be found in the same schema. Row and array types
// are no members themselves, nor are rules (which views are), constraints, triggers, policies and defaults of members.
const installedSQL = `
WITH named AS (SELECT classid, objid, refobjid AS ext FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'),
typed AS (SELECT * FROM named UNION ALL SELECT 'pg_type'::regclass, t.oid, e.ext FROM named e JOIN pg_type t ON t.typrelid = e.objid AND e.classid = 'pg_class'::regclass),
member AS (SELECT * FROM typed UNION ALL SELECT 'pg_type'::regclass, t.oid, e.ext FROM typed e JOIN pg_type t ON t.typelem = e.objid AND e.classid = 'pg_type'::regclass),
part (classid, objid, whole, of) AS (
  SELECT 'pg_rewrite'::regclass, oid, 'pg_class'::regclass, ev_class FROM pg_rewrite
  UNION ALL SELECT 'pg_constraint'::regclass, oid, CASE conrelid WHEN 0 THEN 'pg_type'::regclass ELSE 'pg_class'::regclass END, CASE conrelid WHEN 0 THEN contypid ELSE conrelid END FROM pg_constraint
  UNION ALL SELECT 'pg_trigger'::regclass, oid, 'pg_class'::regclass, tgrelid FROM pg_trigger
  UNION ALL SELECT 'pg_policy'::regclass, oid, 'pg_class'::regclass, polrelid FROM pg_policy
  UNION ALL SELECT 'pg_attrdef'::regclass, oid, 'pg_class'::regclass, adrelid FROM pg_attrdef)
SELECT x.extname::text AS name, x.extversion AS version, n.nspname::text AS schema,
       EXISTS (SELECT FROM member m JOIN pg_depend d ON d.refclassid = m.classid AND d.refobjid = m.objid AND d.deptype = 'n'
                 LEFT JOIN part p ON p.classid = d.classid AND p.objid = d.objid
                WHERE m.ext = x.oid AND (p.objid IS NOT NULL OR d.classid IN ('pg_class'::regclass, 'pg_type'::regclass, 'pg_proc'::regclass, 'pg_operator'::regclass, 'pg_opclass'::regclass, 'pg_cast'::regclass))
                  AND NOT EXISTS (SELECT FROM member o WHERE o.classid = coalesce(p.whole, d.classid) AND o.objid = coalesce(p.of, d.objid))) AS needed
  FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname <> 'plpgsql' ORDER BY 1`

type installed struct {
	Name, Version, Schema string
	Needed                bool
}

// creates gives the statement that makes it as the source has it.
func (i installed) creates() string {
	if i.Schema == "public" || i.Schema == "pg_catalog" {
		return fmt.Sprintf("CREATE EXTENSION %s SCHEMA %s;", ident(i.Name), ident(i.Schema))
	}
	return fmt.Sprintf("CREATE SCHEMA IF NOT EXISTS %[2]s; CREATE EXTENSION %[1]s SCHEMA %[2]s;", ident(i.Name), ident(i.Schema))
}

// extensions compares what is installed with what the target could install, and our role there.
func extensions(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	rows, err := f.From.conn.Query(ctx, installedSQL)
	if err != nil {
		return nil, err
	}
	have, err := pgx.CollectRows(rows, pgx.RowToStructByName[installed])
	if err != nil {
		return nil, err
	}
	offers, err := f.offers(ctx)
	var unread *pgconn.PgError
	if errors.As(err, &unread) && unread.Code == "42601" {
		offers, err = f.installed(ctx)
	}
	if err != nil {
		return nil, err
	}
	var out []engine.Finding
	for _, h := range have {
		offer, known := offers[h.Name]
		if !known && unread != nil {
			out = append(out, finding(engine.SeverityWarning, engine.Target, h.Name, h.creates()+" -- on the target, to see whether it can; mend the file that the error names", "Whether the target has the extension %s cannot be said: its list of extensions cannot be read: %v.", h.Name, unread))
			continue
		}
		if !known {
			out = append(out, finding(engine.SeverityError, engine.Target, h.Name, "Install its package on the target's server, or drop it on the source if nothing uses it.", "The extension %s %s is not available on the target.", h.Name, h.Version))
			continue
		}
		if offer.superuser && !f.existing() && f.To.RoleKnown && !f.To.Super {
			out = append(out, finding(engine.SeverityWarning, engine.Target, h.Name, h.creates()+" -- in this database, as its administrator", "The role %s may not be able to make the extension %s: only a superuser may, but where a provider lets its roles do so.", f.To.Role, h.Name))
		}
		if offer.schema != "" && offer.schema != h.Schema && !f.existing() {
			out = append(out, elsewhere(h, offer))
		}
		if offer.version != h.Version {
			out = append(out, finding(engine.SeverityWarning, engine.Target, h.Name, fmt.Sprintf("Read its release notes; ALTER EXTENSION %s UPDATE on the source may bring them together.", ident(h.Name)), "The extension %s is %s on the source and %s on the target.", h.Name, h.Version, offer.version))
		}
	}
	return out, nil
}

// elsewhere: the restore leaves an extension where it is.
func elsewhere(h installed, o offer) engine.Finding {
	fix := fmt.Sprintf("DROP EXTENSION %s; %s -- in this database, as its administrator", ident(h.Name), h.creates())
	if o.movable {
		fix = fmt.Sprintf("CREATE SCHEMA IF NOT EXISTS %[2]s; ALTER EXTENSION %[1]s SET SCHEMA %[2]s; -- in this database, as its administrator", ident(h.Name), ident(h.Schema))
	}
	severity, text := engine.SeverityWarning, "functions may look for it there"
	if h.Needed {
		severity, text = engine.SeverityError, "definitions that are carried name it there"
	}
	return finding(severity, engine.Target, h.Name, fix, "The extension %s is in schema %s on the source and in %s on the target: %s.", h.Name, h.Schema, o.schema, text)
}

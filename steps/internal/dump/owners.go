package dump

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Renamed gives the target's name for a role of the source; false means that the target has no
// such role and the object stays with the role that restored it.
type Renamed func(role string) (string, bool)

// ownedSQL gives the owner of each object of the archive that has one. Sequences that belong to a
// column follow their table.
const ownedSQL = `
SELECT i.type, i.identity, pg_get_userbyid(o.owner)::text
  FROM unnest($1::oid[], $2::oid[]) WITH ORDINALITY AS x (classid, objid, no)
  JOIN (SELECT 'pg_class'::regclass::oid AS classid, oid AS objid, relowner AS owner FROM pg_class
        UNION ALL SELECT 'pg_namespace'::regclass, oid, nspowner FROM pg_namespace
        UNION ALL SELECT 'pg_proc'::regclass, oid, proowner FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid, typowner FROM pg_type
        UNION ALL SELECT 'pg_operator'::regclass, oid, oprowner FROM pg_operator
        UNION ALL SELECT 'pg_opclass'::regclass, oid, opcowner FROM pg_opclass
        UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfowner FROM pg_opfamily
        UNION ALL SELECT 'pg_collation'::regclass, oid, collowner FROM pg_collation
        UNION ALL SELECT 'pg_conversion'::regclass, oid, conowner FROM pg_conversion
        UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgowner FROM pg_ts_config
        UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictowner FROM pg_ts_dict
        UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, fdwowner FROM pg_foreign_data_wrapper
        UNION ALL SELECT 'pg_foreign_server'::regclass, oid, srvowner FROM pg_foreign_server
        UNION ALL SELECT 'pg_language'::regclass, oid, lanowner FROM pg_language
        UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxowner FROM pg_statistic_ext) o USING (classid, objid)
  CROSS JOIN LATERAL pg_identify_object(x.classid, x.objid, 0) i
 WHERE NOT EXISTS (SELECT FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
        WHERE d.classid = 'pg_class'::regclass AND x.classid = 'pg_class'::regclass AND d.objid = x.objid AND d.refobjsubid <> 0 AND d.deptype IN ('a', 'i'))
 ORDER BY x.classid <> 'pg_namespace'::regclass, x.no`

// alterWord turns the type of pg_identify_object into the word of ALTER ... OWNER TO.
var alterWord = map[string]string{
	"function": "ROUTINE", "procedure": "ROUTINE", "aggregate": "ROUTINE", "foreign-data wrapper": "FOREIGN DATA WRAPPER",
	"statistics object": "STATISTICS", "composite type": "TYPE",
}

// SetOwners gives restored objects their owners, by the target's names. It is the second half of a
// restore without owners, which is used when owners are mapped or roles are missing: pg_restore
// itself cannot rename a role. Who reads a table already does not wait behind us.
func SetOwners(ctx context.Context, source, target *pgx.Conn, entries []Entry, rename Renamed, onWait func(pg.LockWait)) error {
	classes, oids := ids(entries)
	rows, err := source.Query(ctx, ownedSQL, classes, oids)
	if err != nil {
		return fmt.Errorf("reading owners: %w", err)
	}
	var owned []string
	statements := map[string]string{}
	var kind, identity, owner string
	_, err = pgx.ForEachRow(rows, []any{&kind, &identity, &owner}, func() error {
		to, ok := rename(owner)
		if !ok {
			return nil
		}
		w := alterWord[kind]
		if w == "" {
			w = strings.ToUpper(kind)
		}
		sql := "ALTER " + w + " " + identity + " OWNER TO " + ident(to)
		owned = append(owned, sql)
		statements[sql] = identity
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading owners: %w", err)
	}
	for _, sql := range owned {
		if err := setOwner(ctx, target, statements[sql], sql, onWait); err != nil {
			return fmt.Errorf("running %s: %w", sql, err)
		}
	}
	return nil
}

// setOwner asks who is in the way only where somebody is: there may be thousands of objects.
func setOwner(ctx context.Context, conn *pgx.Conn, identity, sql string, onWait func(pg.LockWait)) error {
	_, err := conn.Exec(ctx, sql)
	if pg.SQLState(err) != "55P03" { // lock_not_available: the session's lock_timeout is short
		return err
	}
	e := pg.Etiquette{Object: identity, Mode: pg.AccessExclusive, Report: onWait}
	rows, err := conn.Query(ctx, "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE quote_ident(n.nspname) || '.' || quote_ident(c.relname) = $1", identity)
	if err != nil {
		return err
	}
	if e.Relations, err = pgx.CollectRows(rows, pgx.RowTo[uint32]); err != nil {
		return err
	}
	return pg.WithSessionLock(ctx, conn, e, func(ctx context.Context) error {
		_, err := conn.Exec(ctx, sql)
		return err
	})
}

func ids(entries []Entry) (classes, oids []uint32) {
	for _, e := range entries {
		if e.Class != 0 {
			classes, oids = append(classes, e.Class), append(oids, e.OID)
		}
	}
	return classes, oids
}

func runAll(ctx context.Context, conn *pgx.Conn, statements []string) error {
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("running %s: %w", sql, err)
		}
	}
	return nil
}

// grantsSQL gives every right on the archive's objects, one row a right; a row without a grantee
// begins an object whose rights are not the default ones.
const grantsSQL = `
WITH x AS (SELECT * FROM unnest($1::oid[], $2::oid[]) WITH ORDINALITY AS x (classid, objid, no)),
a (no, sub, word, identity, column_name, acl) AS (
  SELECT x.no, 0, CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text, NULL::text, c.relacl
    FROM x JOIN pg_class c ON x.classid = 'pg_class'::regclass AND c.oid = x.objid
  UNION ALL SELECT x.no, t.attnum, 'TABLE', t.attrelid::regclass::text, t.attname::text, t.attacl
    FROM x JOIN pg_attribute t ON x.classid = 'pg_class'::regclass AND t.attrelid = x.objid AND NOT t.attisdropped
  UNION ALL SELECT x.no, 0, 'SCHEMA', quote_ident(n.nspname), NULL, n.nspacl FROM x JOIN pg_namespace n ON x.classid = 'pg_namespace'::regclass AND n.oid = x.objid
  UNION ALL SELECT x.no, 0, 'ROUTINE', p.oid::regprocedure::text, NULL, p.proacl FROM x JOIN pg_proc p ON x.classid = 'pg_proc'::regclass AND p.oid = x.objid
  UNION ALL SELECT x.no, 0, 'TYPE', format_type(t.oid, NULL), NULL, t.typacl FROM x JOIN pg_type t ON x.classid = 'pg_type'::regclass AND t.oid = x.objid
  UNION ALL SELECT x.no, 0, 'LANGUAGE', quote_ident(l.lanname), NULL, l.lanacl FROM x JOIN pg_language l ON x.classid = 'pg_language'::regclass AND l.oid = x.objid
  UNION ALL SELECT x.no, 0, 'FOREIGN DATA WRAPPER', quote_ident(f.fdwname), NULL, f.fdwacl FROM x JOIN pg_foreign_data_wrapper f ON x.classid = 'pg_foreign_data_wrapper'::regclass AND f.oid = x.objid
  UNION ALL SELECT x.no, 0, 'FOREIGN SERVER', quote_ident(s.srvname), NULL, s.srvacl FROM x JOIN pg_foreign_server s ON x.classid = 'pg_foreign_server'::regclass AND s.oid = x.objid)
SELECT a.word, a.identity, a.column_name, NULL::text, NULL::text, false, a.no, a.sub, 0 AS step FROM a WHERE a.acl IS NOT NULL AND a.column_name IS NULL
UNION ALL
SELECT a.word, a.identity, a.column_name, CASE e.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(e.grantee)::text END, e.privilege_type, e.is_grantable, a.no, a.sub, 1
  FROM a CROSS JOIN LATERAL aclexplode(a.acl) e WHERE a.acl IS NOT NULL
 ORDER BY 7, 8, 9`

// SetGrants repeats rights on restored objects, by the target's role names; rights of roles that
// the target does not have are passed over. Rights are granted by the owner, whoever granted them
// on the source.
func SetGrants(ctx context.Context, source, target *pgx.Conn, entries []Entry, rename Renamed) error {
	classes, oids := ids(entries)
	rows, err := source.Query(ctx, grantsSQL, classes, oids)
	if err != nil {
		return fmt.Errorf("reading grants: %w", err)
	}
	var statements []string
	var kind, identity string
	var column, grantee, privilege *string
	var grantable bool
	var no int64
	var sub, step int32
	_, err = pgx.ForEachRow(rows, []any{&kind, &identity, &column, &grantee, &privilege, &grantable, &no, &sub, &step}, func() error {
		if grantee == nil {
			statements = append(statements, "REVOKE ALL ON "+kind+" "+identity+" FROM PUBLIC")
			return nil
		}
		to, ok := grantedTo(*grantee, rename)
		if !ok {
			return nil
		}
		right := *privilege
		if column != nil {
			right += " (" + ident(*column) + ")"
		}
		statements = append(statements, "GRANT "+right+" ON "+kind+" "+identity+" TO "+to+grantOption(grantable))
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading grants: %w", err)
	}
	return runAll(ctx, target, statements)
}

func grantedTo(role string, rename Renamed) (string, bool) {
	if role == "" {
		return "PUBLIC", true
	}
	to, ok := rename(role)
	return ident(to), ok
}

func grantOption(on bool) string {
	if on {
		return " WITH GRANT OPTION"
	}
	return ""
}

// defaultsSQL gives default privileges; a row without a grantee begins one.
const defaultsSQL = `
SELECT pg_get_userbyid(d.defaclrole)::text, coalesce(n.nspname::text, ''), d.defaclobjtype::text,
       CASE e.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(e.grantee)::text END, e.privilege_type, e.is_grantable
  FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace
  CROSS JOIN LATERAL aclexplode(d.defaclacl) e
 ORDER BY d.oid`

var defaultWord = map[string]string{"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS", "T": "TYPES", "n": "SCHEMAS", "L": "LARGE OBJECTS"}

// SetDefaultPrivileges repeats ALTER DEFAULT PRIVILEGES, by the target's role names.
func SetDefaultPrivileges(ctx context.Context, source, target *pgx.Conn, rename Renamed) error {
	rows, err := source.Query(ctx, defaultsSQL)
	if err != nil {
		return fmt.Errorf("reading default privileges: %w", err)
	}
	var statements []string
	begun := map[string]bool{}
	var role, schema, kind, grantee, privilege string
	var grantable bool
	_, err = pgx.ForEachRow(rows, []any{&role, &schema, &kind, &grantee, &privilege, &grantable}, func() error {
		forRole, ok := rename(role)
		to, known := grantedTo(grantee, rename)
		if !ok || !known {
			return nil
		}
		head := "ALTER DEFAULT PRIVILEGES FOR ROLE " + ident(forRole)
		if schema != "" {
			head += " IN SCHEMA " + ident(schema)
		} else if (kind == "f" || kind == "T") && !begun[head+kind] {
			begun[head+kind] = true
			statements = append(statements, head+" REVOKE ALL ON "+defaultWord[kind]+" FROM PUBLIC")
		}
		statements = append(statements, head+" GRANT "+privilege+" ON "+defaultWord[kind]+" TO "+to+grantOption(grantable))
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading default privileges: %w", err)
	}
	return runAll(ctx, target, statements)
}

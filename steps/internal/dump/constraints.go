package dump

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// foreignKeysSQL leaves out the copies that a foreign key to a partitioned table has for each
// partition of that table: the server makes them itself. The copies on partitions of the
// referencing table are wanted, since they are built and validated one by one.
const foreignKeysSQL = `
SELECT con.oid, n.nspname::text, c.relname::text, c.relkind::text, con.conname::text, pg_get_constraintdef(con.oid),
       con.convalidated, coalesce(p.conname::text, ''), obj_description(con.oid, 'pg_constraint'), fn.nspname::text, f.relname::text
  FROM pg_constraint con
  JOIN pg_class c ON c.oid = con.conrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class f ON f.oid = con.confrelid
  JOIN pg_namespace fn ON fn.oid = f.relnamespace
  LEFT JOIN pg_constraint p ON p.oid = %s
 WHERE con.contype = 'f' AND (p.oid IS NULL OR p.conrelid <> con.conrelid) AND ` + mine + `
 ORDER BY p.oid IS NULL, con.oid`

func (r *reader) foreignKeys(ctx context.Context) error {
	parent := "con.conparentid" // came in 11
	if r.major < 11 {
		parent = "NULL"
	}
	rows, err := r.conn.Query(ctx, fmt.Sprintf(foreignKeysSQL, parent))
	if err != nil {
		return err
	}
	var oid uint32
	var schema, table, relkind, name, def, parentName string
	var valid bool
	var comment *string
	var to scope.Name
	_, err = pgx.ForEachRow(rows, []any{&oid, &schema, &table, &relkind, &name, &def, &valid, &parentName, &comment, &to.Schema, &to.Name}, func() error {
		if r.gone(classConstraint, oid) {
			return nil
		}
		o := Object{Kind: ForeignKey, Name: name, NotValid: !valid, Parent: parentName, Partition: parentName != "", Root: relkind == "p", References: to}
		o.Table.Schema, o.Table.Name = schema, table
		rel := pg.Name(schema, table)
		def = strings.TrimSuffix(def, " NOT VALID")
		// A partitioned table takes no NOT VALID foreign key before 18. Its partitions' own are made
		// and validated first; the root's then finds them and has nothing to check.
		if !o.Root {
			def += " NOT VALID"
		}
		o.SQL = []string{"ALTER TABLE " + rel + " ADD CONSTRAINT " + ident(name) + " " + def}
		r.add(o, comment, "CONSTRAINT "+ident(name)+" ON "+rel)
		return nil
	})
	return err
}

// checksSQL gives the check constraints, and since 18 the not-null constraints, that the source
// itself has not validated: old rows may break them.
const checksSQL = `
SELECT con.oid, coalesce(n.nspname, tn.nspname)::text, coalesce(c.relname, '')::text, coalesce(t.typname, '')::text, con.conname::text,
       pg_get_constraintdef(con.oid), obj_description(con.oid, 'pg_constraint')
  FROM pg_constraint con
  LEFT JOIN pg_class c ON c.oid = con.conrelid
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_type t ON t.oid = con.contypid
  LEFT JOIN pg_namespace tn ON tn.oid = t.typnamespace
 WHERE con.contype IN ('c', 'n') AND NOT con.convalidated AND con.coninhcount = 0
   AND coalesce(n.nspname, tn.nspname) !~ '^pg_' AND coalesce(n.nspname, tn.nspname) NOT IN ('information_schema', 'pgrunbook')
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e'
         AND (e.classid = 'pg_catalog.pg_class'::regclass AND e.objid = c.oid OR e.classid = 'pg_catalog.pg_type'::regclass AND e.objid = t.oid))
 ORDER BY con.oid`

// checks wait for the flip: while passes run, a row that is carried again would have to obey a
// constraint that it breaks on the source.
func (r *reader) checks(ctx context.Context) error {
	rows, err := r.conn.Query(ctx, checksSQL)
	if err != nil {
		return err
	}
	var oid uint32
	var schema, table, typ, name, def string
	var comment *string
	_, err = pgx.ForEachRow(rows, []any{&oid, &schema, &table, &typ, &name, &def, &comment}, func() error {
		if r.gone(classConstraint, oid) {
			return nil
		}
		o := Object{Kind: Check, Name: name, NotValid: true}
		if !strings.HasSuffix(def, "NOT VALID") {
			def += " NOT VALID"
		}
		what, on := "DOMAIN "+pg.Name(schema, typ), "DOMAIN "+pg.Name(schema, typ)
		if table == "" {
			o.domain = scope.Name{Schema: schema, Name: typ}
		} else {
			o.Table.Schema, o.Table.Name = schema, table
			what, on = "TABLE "+pg.Name(schema, table), pg.Name(schema, table)
		}
		o.AtFlip = []string{"ALTER " + what + " ADD CONSTRAINT " + ident(name) + " " + def}
		if comment != nil {
			o.AtFlip = append(o.AtFlip, "COMMENT ON CONSTRAINT "+ident(name)+" ON "+on+" IS "+pg.Literal(*comment))
		}
		r.add(o, nil, "")
		return nil
	})
	return err
}

const statisticsSQL = `
SELECT s.oid, c.oid, sn.nspname::text, s.stxname::text, n.nspname::text, c.relname::text, pg_get_statisticsobjdef(s.oid), pg_get_userbyid(s.stxowner)::text, %s,
       obj_description(s.oid, 'pg_statistic_ext')
  FROM pg_statistic_ext s
  JOIN pg_namespace sn ON sn.oid = s.stxnamespace
  JOIN pg_class c ON c.oid = s.stxrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE ` + mine + `
 ORDER BY s.oid`

func (r *reader) statistics(ctx context.Context) error {
	target := "-1"
	if r.major >= 13 {
		target = "coalesce(s.stxstattarget, -1)::int4"
	}
	rows, err := r.conn.Query(ctx, fmt.Sprintf(statisticsSQL, target))
	if err != nil {
		return err
	}
	var oid, rel uint32
	var schema, name, tableSchema, table, def, owner string
	var stat int32
	var comment *string
	_, err = pgx.ForEachRow(rows, []any{&oid, &rel, &schema, &name, &tableSchema, &table, &def, &owner, &stat, &comment}, func() error {
		if r.gone(classStatistic, oid) || r.gone(classRelation, rel) {
			return nil
		}
		o := Object{Kind: Statistics, Name: pg.Name(schema, name), SQL: []string{def}, owner: owner}
		o.Table.Schema, o.Table.Name = tableSchema, table
		if stat >= 0 {
			o.SQL = append(o.SQL, fmt.Sprintf("ALTER STATISTICS %s SET STATISTICS %d", o.Name, stat))
		}
		r.add(o, comment, "STATISTICS "+o.Name)
		return nil
	})
	return err
}

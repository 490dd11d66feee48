package scope

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// columnRow is one column of a table in scope.
type columnRow struct {
	Rel       uint32
	Num       int16
	Name      string
	Type      string // format_type
	TypeOID   uint32
	NotNull   bool
	Generated bool
	Identity  string
	Collation string // quoted and qualified; empty where the type has none
}

const columnsSQL = `
SELECT a.attrelid, a.attnum, a.attname::text, format_type(a.atttypid, a.atttypmod), a.atttypid, a.attnotnull, {generated}, a.attidentity::text,
       coalesce(quote_ident(n.nspname) || '.' || quote_ident(co.collname), '')
  FROM pg_attribute a
  LEFT JOIN pg_collation co ON co.oid = a.attcollation
  LEFT JOIN pg_namespace n ON n.oid = co.collnamespace
 WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum`

// indexRow is one unique index of a table in scope.
type indexRow struct {
	rel        uint32
	name       Name
	constraint string
	primary    bool
	immediate  bool
	valid      bool
	total      bool // no predicate, no expressions, btree
	columns    []indexColumn
}

type indexColumn struct {
	num       int16
	collation string
	operator  string // OPERATOR(schema.=); empty where the operator class has none
}

// indexesSQL gives one row for each key column of each unique index, with the equality of the
// column's operator class: its family's member for strategy 3 over the class's own input type. What
// has a name of its own is looked up, not joined: a dozen joins take a server longer to plan than to read.
const indexesSQL = `
SELECT i.indexrelid, i.indrelid, n.nspname::text, x.relname::text,
       coalesce((SELECT con.conname::text FROM pg_constraint con WHERE con.conindid = i.indexrelid AND con.contype IN ('p', 'u') AND con.conrelid = i.indrelid), ''),
       i.indisprimary, i.indimmediate, i.indisvalid AND i.indisready,
       i.indpred IS NULL AND i.indexprs IS NULL AND am.amname = 'btree' AND NOT i.indisexclusion, i.indkey[k.n],
       coalesce((SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = i.indcollation[k.n]), ''),
       coalesce((SELECT 'OPERATOR(' || quote_ident(onsp.nspname) || '.' || o.oprname || ')'
          FROM pg_opclass oc
          JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype AND ao.amopstrategy = 3 AND ao.amoppurpose = 's'
          JOIN pg_operator o ON o.oid = ao.amopopr
          JOIN pg_namespace onsp ON onsp.oid = o.oprnamespace
         WHERE oc.oid = i.indclass[k.n]), '')
  FROM pg_index i
  JOIN pg_class x ON x.oid = i.indexrelid
  JOIN pg_namespace n ON n.oid = x.relnamespace
  JOIN pg_am am ON am.oid = x.relam
  CROSS JOIN LATERAL generate_series(0, {keyatts} - 1) AS k (n)
 WHERE i.indrelid = ANY ($1::oid[]) AND i.indisunique
 ORDER BY i.indrelid, i.indexrelid, k.n`

// readTables reads the details of the tables in scope, a handful of queries for all of them.
func (c *catalog) readTables(ctx context.Context, tx pgx.Tx, roots []*relation) error {
	var oids, all []uint32
	for _, r := range roots {
		oids = append(oids, r.oid)
		all = append(all, r.oid)
		for _, m := range c.members(r) {
			all = append(all, m.oid)
		}
	}
	for _, read := range []func() error{
		func() error { return c.readSizes(ctx, tx, all) },
		func() error { return c.readColumns(ctx, tx, oids) },
		func() error { return c.readIndexes(ctx, tx, oids) },
		func() error { return c.readTypes(ctx, tx) },
		func() error { return c.readSequences(ctx, tx) },
		func() error { return c.readForeignKeys(ctx, tx, all) },
		func() error { return c.readFacts(ctx, tx) },
	} {
		if err := read(); err != nil {
			return err
		}
	}
	return nil
}

func (c *catalog) readColumns(ctx context.Context, tx pgx.Tx, oids []uint32) error {
	generated := "false"
	if c.major >= 12 {
		generated = "a.attgenerated <> ''"
	}
	cols, err := collect(ctx, tx, strings.Replace(columnsSQL, "{generated}", generated, 1), pgx.RowToStructByPos[columnRow], oids)
	if err != nil {
		return fmt.Errorf("reading the columns: %w", err)
	}
	c.columns = make(map[uint32][]columnRow, len(oids))
	for _, col := range cols {
		c.columns[col.Rel] = append(c.columns[col.Rel], col)
	}
	return nil
}

func (c *catalog) readIndexes(ctx context.Context, tx pgx.Tx, oids []uint32) error {
	keyatts := "i.indnkeyatts"
	if c.major < 11 {
		keyatts = "i.indnatts"
	}
	rows, err := tx.Query(ctx, strings.Replace(indexesSQL, "{keyatts}", keyatts, 1), oids)
	if err != nil {
		return fmt.Errorf("reading the indexes: %w", err)
	}
	c.indexes = map[uint32][]*indexRow{}
	var last uint32
	var oid uint32
	var in indexRow
	var col indexColumn
	into := []any{&oid, &in.rel, &in.name.Schema, &in.name.Name, &in.constraint, &in.primary, &in.immediate, &in.valid, &in.total, &col.num, &col.collation, &col.operator}
	_, err = pgx.ForEachRow(rows, into, func() error {
		if oid != last {
			row := in
			row.columns = nil
			c.indexes[in.rel] = append(c.indexes[in.rel], &row)
			last = oid
		}
		list := c.indexes[in.rel]
		current := list[len(list)-1]
		current.columns = append(current.columns, col)
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the indexes: %w", err)
	}
	return nil
}

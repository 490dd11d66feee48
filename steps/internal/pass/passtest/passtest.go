// Package passtest describes tables for the tests of the packages that move rows, without the
// resolver that they are tested apart from.
package passtest

import (
	"fmt"
	"hash/fnv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const tablesSQL = `
SELECT c.oid, c.relname::text, c.relkind = 'p' FROM pg_class c
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.relname`

const columnsSQL = `
SELECT a.attnum, a.attname::text, format_type(a.atttypid, a.atttypmod), a.atttypid, coalesce(to_jsonb(a) ->> 'attgenerated', '') <> '', a.attidentity::text,
       a.atttypid < 16384 AND format_type(a.atttypid, NULL) !~ '^reg'
  FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1`

const keySQL = `
SELECT a.attname::text,
       CASE WHEN bt.oid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) THEN 'pg_catalog.int8' ELSE format('%I.%I', n.nspname, bt.typname) END,
       CASE WHEN a.attcollation <> 0 THEN format('%I.%I', cn.nspname, co.collname) ELSE '' END,
       (SELECT format('OPERATOR(%I.%s)', opn.nspname, o.oprname) FROM pg_amop am JOIN pg_operator o ON o.oid = am.amopopr JOIN pg_namespace opn ON opn.oid = o.oprnamespace
          JOIN pg_opclass oc ON oc.opcfamily = am.amopfamily WHERE oc.oid = i.indclass[k.n - 1] AND am.amopstrategy = 3 AND am.amoplefttype = oc.opcintype AND am.amoprighttype = oc.opcintype)
  FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (att, n)
  JOIN pg_attribute a ON a.attnum = k.att
  JOIN pg_type t ON t.oid = a.atttypid JOIN pg_type bt ON bt.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
  JOIN pg_namespace n ON n.oid = bt.typnamespace
  LEFT JOIN pg_collation co ON co.oid = i.indcollation[k.n - 1] LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
 WHERE i.indrelid = $1 AND a.attrelid = $1 AND i.indisprimary AND k.n <= coalesce((to_jsonb(i) ->> 'indnkeyatts')::int, i.indnatts) ORDER BY k.n`

// pg_partition_tree came in 12.
const membersSQL = `
WITH RECURSIVE m (oid) AS (SELECT inhrelid FROM pg_inherits WHERE inhparent = $1::oid UNION ALL SELECT i.inhrelid FROM m JOIN pg_inherits i ON i.inhparent = m.oid)
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind <> 'p' FROM m JOIN pg_class c ON c.oid = m.oid
  JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY c.relname`

// Tables describes the tables of schema public, with their primary keys: live, captured by
// statement triggers, those without a key as full_row.
func Tables(t *testing.T, conn *pgx.Conn) []scope.Table {
	t.Helper()
	tables := collect(t, conn, tablesSQL, nil, func(row pgx.CollectableRow) (scope.Table, error) {
		tbl := scope.Table{Data: scope.Live, Identity: scope.ByKey, Capture: scope.Statement, Kind: scope.Plain, Name: scope.Name{Schema: "public"}, Method: scope.Stream}
		var parted bool
		err := row.Scan(&tbl.OID, &tbl.Name.Name, &parted)
		if parted {
			tbl.Kind = scope.Partitioned
		}
		return tbl, err
	})
	for i := range tables {
		tbl := &tables[i]
		tbl.ID = int32(i + 1)
		tbl.Columns = collect(t, conn, columnsSQL, []any{tbl.OID}, func(row pgx.CollectableRow) (c scope.Column, err error) {
			return c, row.Scan(&c.Num, &c.Name, &c.Type, &c.TypeOID, &c.Generated, &c.Identity, &c.Binary)
		})
		key := collect(t, conn, keySQL, []any{tbl.OID}, func(row pgx.CollectableRow) (k scope.KeyColumn, err error) {
			return k, row.Scan(&k.Name, &k.DeltaType, &k.Collation, &k.Operator)
		})
		if tbl.Kind == scope.Partitioned {
			tbl.Members = collect(t, conn, membersSQL, []any{tbl.OID}, func(row pgx.CollectableRow) (m scope.Member, err error) {
				return m, row.Scan(&m.OID, &m.Schema, &m.Name.Name, &m.Leaf)
			})
		}
		if len(key) == 0 {
			tbl.Identity = scope.FullRow
			continue
		}
		h := fnv.New32a()
		for _, k := range key {
			fmt.Fprintln(h, k.DeltaType, k.Collation)
		}
		tbl.Key = &scope.Key{Primary: true, Columns: key, Shape: fmt.Sprintf("%08x", h.Sum32())}
	}
	return tables
}

func collect[T any](t *testing.T, conn *pgx.Conn, sql string, args []any, f func(row pgx.CollectableRow) (T, error)) []T {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

package dump

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// indexesSQL gives every index in creation order. Parents of partitioned indexes are found in
// pg_inherits; a constraint of a partition that its parent made still has its own pg_constraint row.
const indexesSQL = `
SELECT i.indexrelid, c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relispartition,
       x.relname::text, pg_get_indexdef(i.indexrelid), i.indisunique, i.indisprimary, i.indisexclusion, i.indisvalid,
       i.indisclustered, i.indisreplident,
       con.oid, con.conname::text, pg_get_constraintdef(con.oid), con.condeferrable, con.condeferred, con.contype::text, %s,
       pn.nspname::text, p.relname::text, coalesce(ts.spcname::text, ''), x.relpages::int8,
       obj_description(i.indexrelid, 'pg_class'), obj_description(con.oid, 'pg_constraint'),
       ARRAY(SELECT a.attnum::int4 FROM pg_attribute a WHERE a.attrelid = i.indexrelid AND coalesce(a.attstattarget, -1) >= 0 ORDER BY a.attnum),
       ARRAY(SELECT a.attstattarget::int4 FROM pg_attribute a WHERE a.attrelid = i.indexrelid AND coalesce(a.attstattarget, -1) >= 0 ORDER BY a.attnum)
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indrelid
  JOIN pg_class x ON x.oid = i.indexrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u', 'x')
  LEFT JOIN pg_inherits h ON h.inhrelid = i.indexrelid
  LEFT JOIN pg_class p ON p.oid = h.inhparent
  LEFT JOIN pg_namespace pn ON pn.oid = p.relnamespace
  LEFT JOIN pg_tablespace ts ON ts.oid = x.reltablespace
 WHERE c.relkind IN ('r', 'p', 'm') AND ` + mine + `
 ORDER BY i.indexrelid`

type indexRow struct {
	oid, rel                          uint32
	schema, table, relkind            string
	partition                         bool
	name, def                         string
	unique, primary, exclusion, valid bool
	clustered, replident              bool
	conOID                            *uint32
	conName, conDef                   *string
	deferrable, deferred              *bool
	conType                           *string
	period                            bool
	parentSchema, parentName          *string
	tablespace                        string
	pages                             int64
	comment, conComment               *string
	statColumns, statTargets          []int32
}

func (r *reader) indexes(ctx context.Context) error {
	period := "false" // WITHOUT OVERLAPS came in 18
	if r.major >= 18 {
		period = "coalesce(con.conperiod, false)"
	}
	rows, err := r.conn.Query(ctx, fmt.Sprintf(indexesSQL, period))
	if err != nil {
		return err
	}
	var all []indexRow
	var i indexRow
	_, err = pgx.ForEachRow(rows, []any{
		&i.oid, &i.rel, &i.schema, &i.table, &i.relkind, &i.partition, &i.name, &i.def, &i.unique, &i.primary, &i.exclusion, &i.valid,
		&i.clustered, &i.replident, &i.conOID, &i.conName, &i.conDef, &i.deferrable, &i.deferred, &i.conType, &i.period,
		&i.parentSchema, &i.parentName, &i.tablespace, &i.pages, &i.comment, &i.conComment, &i.statColumns, &i.statTargets,
	}, func() error {
		if !r.gone(classRelation, i.oid) && !r.gone(classRelation, i.rel) && (i.conOID == nil || !r.gone(classConstraint, *i.conOID)) {
			all = append(all, i)
		}
		i = indexRow{}
		return nil
	})
	if err != nil {
		return err
	}
	r.spreadKeys(all)
	for _, i := range all {
		r.addIndex(i)
	}
	return nil
}

// spreadKeys marks the indexes of partitions that belong to a key's index, level by level.
func (r *reader) spreadKeys(all []indexRow) {
	for changed := true; changed; {
		changed = false
		for _, i := range all {
			name := pg.Name(i.schema, i.name)
			if i.parentName != nil && !r.keys[name] && r.keys[pg.Name(*i.parentSchema, *i.parentName)] {
				r.keys[name], changed = true, true
			}
		}
	}
}

func (r *reader) addIndex(i indexRow) {
	full := pg.Name(i.schema, i.name)
	o := Object{
		Kind: Index, Name: i.name, SQL: []string{i.def}, Tablespace: i.tablespace, Key: r.keys[full], Primary: i.primary, Pages: i.pages,
		Partition: i.partition, Root: i.relkind == "p", Late: i.relkind == "m",
	}
	o.Table.Schema, o.Table.Name = i.schema, i.table
	if i.unique {
		o.Kind = Unique
	}
	if !i.valid && i.relkind != "p" {
		o.NotCarried = fmt.Sprintf("index %s is invalid on the source (a build that failed) and is not made", full)
	}
	if i.conOID != nil {
		i.asConstraint(&o)
	}
	r.add(o, i.comment, "INDEX "+full)
	if o.NotCarried != "" {
		return
	}
	if i.conComment != nil {
		r.setting(o, fmt.Sprintf("COMMENT ON CONSTRAINT %s ON %s IS %s", ident(*i.conName), pg.Name(i.schema, i.table), pg.Literal(*i.conComment)))
	}
	if i.parentName != nil {
		a := Object{Kind: Attach, Table: o.Table, Name: i.name, Key: o.Key, Partition: true, Parent: pg.Name(*i.parentSchema, *i.parentName)}
		a.SQL = []string{"ALTER INDEX " + a.Parent + " ATTACH PARTITION " + full}
		r.add(a, nil, "")
	}
	if i.replident {
		r.setting(o, "ALTER TABLE ONLY "+pg.Name(i.schema, i.table)+" REPLICA IDENTITY USING INDEX "+ident(i.name))
	}
	if i.clustered {
		r.setting(o, "ALTER "+tableWord(i.relkind)+" "+pg.Name(i.schema, i.table)+" CLUSTER ON "+ident(i.name))
	}
	for k, column := range i.statColumns {
		r.setting(o, fmt.Sprintf("ALTER INDEX %s ALTER COLUMN %d SET STATISTICS %d", full, column, i.statTargets[k]))
	}
}

// asConstraint turns an index into its constraint. On a plain table a unique index becomes a
// constraint by USING INDEX, so that it can be built like any index, also CONCURRENTLY and with its
// storage parameters; partitioned tables, exclusion and temporal constraints have no such way.
func (i *indexRow) asConstraint(o *Object) {
	table := pg.Name(i.schema, i.table)
	if i.exclusion && !i.period {
		o.Kind = Exclusion
	}
	if i.exclusion || i.period || i.relkind == "p" {
		only := ""
		if i.relkind == "p" {
			only = "ONLY "
		}
		o.SQL = []string{"ALTER TABLE " + only + table + " ADD CONSTRAINT " + ident(*i.conName) + " " + *i.conDef}
		return
	}
	word := "UNIQUE"
	if i.primary {
		word = "PRIMARY KEY"
	}
	o.Constraint = "ALTER TABLE " + table + " ADD CONSTRAINT " + ident(*i.conName) + " " + word + " USING INDEX " + ident(i.name)
	if *i.deferrable {
		o.Constraint += " DEFERRABLE"
	}
	if *i.deferred {
		o.Constraint += " INITIALLY DEFERRED"
	}
}

func (r *reader) setting(of Object, sql string) {
	r.add(Object{Kind: IndexSetting, Table: of.Table, Name: of.Name, Key: of.Key, Partition: of.Partition, SQL: []string{sql}}, nil, "")
}

func tableWord(relkind string) string {
	if relkind == "m" {
		return "MATERIALIZED VIEW"
	}
	return "TABLE"
}

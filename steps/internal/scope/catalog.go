package scope

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// relation is one row of pg_class that a scope may concern.
type relation struct {
	Name
	oid         uint32
	kind        string // as in pg_class.relkind
	persistence string
	partition   bool
	tuples      int64
	uncounted   bool   // pg_class knows no number of rows
	extension   string // name of the extension that owns it
	parents     []uint32
	children    []uint32 // partitions and legacy children
	bytes       int64
	blocks      int64 // of the heap
	filled      bool  // there is something in the heap, or it could not be looked at
	indexBytes  int64
	subscribed  bool // an apply worker writes it

	own      runbook.Decision // what the patterns say of it alone
	decision runbook.Decision
}

// Display writes the name for a person, with quotes where they are needed. There is no String: a
// Table embeds Name and would print as its name alone.
func (n Name) Display() string {
	return pg.Display(n.Schema, n.Name)
}

func (r *relation) String() string { return r.Display() }

// unanalyzed reports that it has rows of which pg_class knows no number.
func (r *relation) unanalyzed() bool { return r.uncounted && r.filled }

func (r *relation) isTable() bool { return r.kind == "r" || r.kind == "p" }

// catalog is what one snapshot of the source says.
type catalog struct {
	major     int
	relations []*relation
	byOID     map[uint32]*relation
	schemas   []schemaRow

	columns     map[uint32][]columnRow
	indexes     map[uint32][]*indexRow
	types       map[uint32]*typeRow
	sequences   []sequenceRow
	foreignKeys []foreignKeyRow
	tempLimit   int64 // smallest temp_file_limit in bytes; 0 means none
	facts       factRow
}

type schemaRow struct {
	Name         string
	HasExtension bool
}

const majorSQL = `SELECT current_setting('server_version_num')::int4 / 10000`

// relationsSQL: before 14 a table that was never analyzed has reltuples 0 and no pages, later -1
// (https://www.postgresql.org/docs/current/catalog-pg-class.html).
const relationsSQL = `
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relispartition,
       greatest(c.reltuples, 0)::int8, c.reltuples < 0 OR c.reltuples = 0 AND c.relpages = 0, coalesce(e.extname::text, '')
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
  LEFT JOIN pg_extension e ON e.oid = d.refobjid
 WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook')
 ORDER BY n.nspname, c.relname`

const inheritsSQL = `SELECT i.inhrelid, i.inhparent FROM pg_inherits i ORDER BY i.inhseqno`

const schemasSQL = `
SELECT n.nspname::text, EXISTS (SELECT FROM pg_extension e WHERE e.extnamespace = n.oid)
  FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook') ORDER BY 1`

const subscribedSQL = `SELECT srrelid FROM pg_subscription_rel`

// readRelations reads what patterns are matched against.
func readRelations(ctx context.Context, tx pgx.Tx) (*catalog, error) {
	c := &catalog{byOID: map[uint32]*relation{}}
	if err := tx.QueryRow(ctx, majorSQL).Scan(&c.major); err != nil {
		return nil, fmt.Errorf("reading the version: %w", err)
	}
	var err error
	c.relations, err = collect(ctx, tx, relationsSQL, func(row pgx.CollectableRow) (*relation, error) {
		r := &relation{}
		return r, row.Scan(&r.oid, &r.Schema, &r.Name.Name, &r.kind, &r.persistence, &r.partition, &r.tuples, &r.uncounted, &r.extension)
	})
	if err != nil {
		return nil, fmt.Errorf("reading the tables: %w", err)
	}
	for _, r := range c.relations {
		c.byOID[r.oid] = r
	}
	if c.schemas, err = collect(ctx, tx, schemasSQL, pgx.RowToStructByPos[schemaRow]); err != nil {
		return nil, fmt.Errorf("reading the schemas: %w", err)
	}
	links, err := collect(ctx, tx, inheritsSQL, pgx.RowToStructByPos[struct{ Child, Parent uint32 }])
	if err != nil {
		return nil, fmt.Errorf("reading the partitions: %w", err)
	}
	for _, l := range links {
		if child, parent := c.byOID[l.Child], c.byOID[l.Parent]; child != nil && parent != nil {
			child.parents = append(child.parents, l.Parent)
			parent.children = append(parent.children, l.Child)
		}
	}
	subscribed, err := collect(ctx, tx, subscribedSQL, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("reading the subscriptions: %w", err)
	}
	for _, oid := range subscribed {
		if r := c.byOID[oid]; r != nil {
			r.subscribed = true
		}
	}
	return c, nil
}

// collect runs a query and gives its rows.
func collect[T any](ctx context.Context, tx pgx.Tx, sql string, to pgx.RowToFunc[T], args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, to)
}

// root gives the top of a partition's tree.
func (c *catalog) root(r *relation) *relation {
	for r.partition && len(r.parents) > 0 {
		r = c.byOID[r.parents[0]]
	}
	return r
}

// members gives every relation below a partition root.
func (c *catalog) members(root *relation) []*relation {
	var out []*relation
	for _, oid := range root.children {
		child := c.byOID[oid]
		if child.partition {
			out = append(append(out, child), c.members(child)...)
		}
	}
	return out
}

const sizesSQL = `
SELECT c.oid, coalesce(pg_table_size(c.oid), 0), CASE WHEN c.relkind = 'p' THEN 0 ELSE coalesce(pg_indexes_size(c.oid), 0) END,
       coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int8, coalesce(pg_relation_size(c.oid), 0) > 0
  FROM pg_class c WHERE c.oid = ANY ($1::oid[]) AND c.relkind IN ('r', 'p')`

// estimatesSQL needs no lock on the tables; relpages is as old as the last VACUUM or ANALYZE.
const estimatesSQL = `
SELECT c.oid, (c.relpages + coalesce(t.relpages, 0))::int8 * current_setting('block_size')::int8,
       coalesce((SELECT sum(x.relpages) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid), 0)::int8 * current_setting('block_size')::int8,
       c.relpages::int8, c.relkind = 'r'
  FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = ANY ($1::oid[])`

// readSizes waits a second at most: the size functions open each table, and DDL that holds one
// must not hold up a plan.
func (c *catalog) readSizes(ctx context.Context, tx pgx.Tx, oids []uint32) error {
	type size struct {
		OID          uint32
		Bytes, Index int64
		Blocks       int64
		Filled       bool
	}
	sizes, err := collectUnlessLocked(ctx, tx, sizesSQL, pgx.RowToStructByPos[size], oids)
	if pg.SQLState(err) == "55P03" {
		sizes, err = collect(ctx, tx, estimatesSQL, pgx.RowToStructByPos[size], oids)
	}
	if err != nil {
		return fmt.Errorf("reading the sizes: %w", err)
	}
	for _, s := range sizes {
		r := c.byOID[s.OID]
		r.bytes, r.indexBytes, r.blocks, r.filled = s.Bytes, s.Index, s.Blocks, s.Filled
	}
	return nil
}

func collectUnlessLocked[T any](ctx context.Context, tx pgx.Tx, sql string, to pgx.RowToFunc[T], args ...any) (out []T, err error) {
	err = pgx.BeginFunc(ctx, tx, func(sub pgx.Tx) error {
		if _, err := sub.Exec(ctx, "SET LOCAL lock_timeout = '1s'"); err != nil {
			return err
		}
		out, err = collect(ctx, sub, sql, to, args...)
		return err
	})
	return out, err
}

package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const defaultChunk = 128 << 20 // bytes

// lower is a chunk's beginning as the journal stores it: the relation, and where in it.
type lower struct {
	Relation string  `json:"relation"`        // quoted and qualified; a leaf of a tree
	Block    int64   `json:"block,omitempty"` // first block
	Key      *string `json:"key,omitempty"`   // first value of the key's first column, as text
	ByKey    bool    `json:"by_key,omitempty"`
	Whole    bool    `json:"whole,omitempty"` // one snapshot of the whole table
}

// leaf is one relation with rows.
type leaf struct {
	name   string
	blocks int64
	bytes  int64 // with TOAST
}

const leavesSQL = `
SELECT pg_relation_size(c.oid) / current_setting('block_size')::int8, pg_table_size(c.oid)
  FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'm')`

// leaves lists the relations that hold t's rows. Foreign ones are left out: their rows are not in
// this database.
func leaves(ctx context.Context, conn *pgx.Conn, t scope.Table) ([]leaf, error) {
	names := []string{tableName(t)}
	if t.Kind == scope.Partitioned {
		names = names[:0]
		for _, m := range t.Members {
			if m.Leaf && !m.Foreign {
				names = append(names, pg.Name(m.Schema, m.Name.Name))
			}
		}
	}
	list := make([]leaf, 0, len(names))
	for _, name := range names {
		l := leaf{name: name}
		err := conn.QueryRow(ctx, leavesSQL, name).Scan(&l.blocks, &l.bytes)
		if errors.Is(err, pgx.ErrNoRows) {
			continue // dropped since: a chunk's reader, or the check after the last one, says so
		}
		if err != nil {
			return nil, fmt.Errorf("measuring %s: %w", name, err)
		}
		list = append(list, l)
	}
	return list, nil
}

// Chunks cuts a table into ranges that cover everything: of blocks where the server can scan a
// range of them (PostgreSQL 14, "TID range scans"), else of the key's first column, else one. The
// last range of each relation has no end.
func Chunks(ctx context.Context, from *pgx.Conn, t scope.Table) ([]journal.Item, error) {
	version, err := pg.Version(ctx, from)
	if err != nil {
		return nil, err
	}
	rels, err := leaves(ctx, from, t)
	if err != nil {
		return nil, err
	}
	chunk := t.Chunk
	if chunk <= 0 {
		chunk = defaultChunk
	}
	c := &cutter{table: t.ID}
	for _, r := range rels {
		n := scope.Pieces(r.bytes, r.blocks, chunk)
		switch {
		case t.Identity == scope.FullRow:
			c.size += r.bytes
		case t.Method != scope.Stream && t.Method != "":
			c.size += r.bytes
		case n == 1:
			c.add(lower{Relation: r.name}, nil, r.bytes)
		case version >= 140000:
			c.blocks(r, n)
		default:
			bounds, err := keyBounds(ctx, from, t, r, n)
			if err != nil {
				return nil, err
			}
			c.keys(r, bounds)
		}
	}
	if t.Identity == scope.FullRow || (t.Method != scope.Stream && t.Method != "") {
		c.add(lower{Relation: tableName(t), Whole: true}, nil, c.size)
	}
	if len(c.items) == 0 { // a tree without a leaf, or a table that is not there
		c.add(lower{Relation: tableName(t)}, nil, 0)
	}
	return c.items, nil
}

type cutter struct {
	table int32
	size  int64
	items []journal.Item
}

func (c *cutter) add(lo lower, hi *string, size int64) {
	b, err := json.Marshal(lo)
	if err != nil {
		panic(fmt.Sprintf("a chunk is not JSON: %v", err)) // strings and numbers only: cannot happen
	}
	text := string(b)
	c.items = append(c.items, journal.Item{Table: c.table, No: int32(len(c.items)), Lo: &text, Hi: hi, Size: size})
}

func (c *cutter) blocks(r leaf, n int64) {
	step := (r.blocks + n - 1) / n
	for at := int64(0); at < r.blocks; at += step {
		var hi *string
		if at+step < r.blocks {
			text := strconv.FormatInt(at+step, 10)
			hi = &text
		}
		c.add(lower{Relation: r.name, Block: at}, hi, r.bytes/n)
	}
}

func (c *cutter) keys(r leaf, bounds []string) {
	if len(bounds) == 0 {
		c.add(lower{Relation: r.name}, nil, r.bytes)
		return
	}
	size := r.bytes / int64(len(bounds)+1)
	var lo *string
	for i := range bounds {
		c.add(lower{Relation: r.name, Key: lo, ByKey: true}, &bounds[i], size)
		lo = &bounds[i]
	}
	c.add(lower{Relation: r.name, Key: lo, ByKey: true}, nil, size)
}

// keyBounds samples the key's first column for the inner bounds of n ranges. Fewer come back where
// there are few values. No sample means one range.
func keyBounds(ctx context.Context, conn *pgx.Conn, t scope.Table, r leaf, n int64) ([]string, error) {
	if t.Key == nil || !strings.HasSuffix(t.Key.Columns[0].Operator, ".=)") {
		return nil, nil
	}
	k := t.Key.Columns[0]
	col, order := "t."+pgx.Identifier{k.Name}.Sanitize(), ""
	if k.Collation != "" {
		order = " COLLATE " + k.Collation
	}
	percent := min(100, max(float64(n)*3000/float64(max(r.blocks, 1)), 0.01)) // some 30 pages a bound
	sql := fmt.Sprintf(`SELECT DISTINCT ON (b.v) b.v::text FROM (SELECT v, row_number() OVER w AS i, count(*) OVER () AS n
		FROM (SELECT %s%s AS v FROM ONLY %s AS t TABLESAMPLE SYSTEM (%f)) s WINDOW w AS (ORDER BY v)) b
		WHERE b.i %% greatest(b.n / %d, 1) = 0 AND b.i < b.n ORDER BY b.v`, col, order, r.name, percent, n)
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("sampling the key of %s: %w", r.name, err)
	}
	bounds, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("sampling the key of %s: %w", r.name, err)
	}
	return bounds, nil
}

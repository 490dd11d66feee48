package pass

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A session of a pass makes every lookup by key an index lookup, whatever stale or missing statistics say: the planner is
// left with nested loops, and with no sequential scan where there is an index. Where most of a table changed, or there is no key, a
// statement reads the whole table and joins by hash or merge, and never by nested loops: the table may be taken for an
// empty one. jit, which would start for the huge cost that a disabled node pretends to have, is off in all sessions of package pg.
const (
	lookups = "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off"
	wholes  = "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET LOCAL enable_seqscan = on; SET LOCAL enable_nestloop = off"
	back    = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_nestloop = on"
)

// how the rows of keys are found.
type how int

const (
	lookUp how = iota // one by one
	join              // with the whole table
)

// fewKeys are looked up in any table, and no more than manyKeys: their places have to be kept.
const (
	fewKeys  = 10_000
	manyKeys = 50_000_000
)

// finding says how to find so many keys of a table: a join with the whole of it is cheaper than very many lookups. A table that
// was never analyzed has as many rows as fit; each page of one that was has a row or more, which tells statistics from
// when it was empty.
func finding(t scope.Table, keys int64) how {
	const page, row = 8192, 100
	rows := max(t.Rows, t.Bytes/page)
	if t.Rows == 0 {
		rows = t.Bytes / row
	}
	if keys > manyKeys || keys > fewKeys && keys*4 > rows {
		return join
	}
	return lookUp
}

// on runs f in a transaction whose statements find keys so.
func (h how) on(ctx context.Context, conn *pgx.Conn, f func() error) error {
	if h == lookUp {
		return f()
	}
	if err := run(ctx, conn, wholes); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return run(ctx, conn, back)
}

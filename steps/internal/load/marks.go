package load

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// forgetMarks lets go of a keyed table's truncations that were captured before its new chunks are read: the
// chunks hold what was left by them. A pass would empty the table afterwards, and put back only rows
// whose keys were captured; a table that starts over has others, written while its triggers were
// disabled or in a partition that was elsewhere. A death before the new chunks are there leads here
// again: what asked for them is still to be seen then. The caller's transaction holds the table's items, so none of the new
// chunks has been read.
func forgetMarks(ctx context.Context, from *pgx.Conn, t scope.Table) error {
	if !keyed(t) {
		return nil
	}
	if _, err := from.Exec(ctx, "DELETE FROM pgrunbook.truncated WHERE rel = $1", t.ID); err != nil {
		return fmt.Errorf("forgetting the truncations of %s: %w", tableName(t), err)
	}
	return nil
}

// imagesClass is the first number of the advisory locks, one a table, that keep chunks of append_only tables
// and forgetImages apart: a chunk leaves out the rows that have images.
const imagesClass = 0x70677269 // "pgri"

// forgetImages lets go of an append_only table's images before it is loaded again, in a transaction that
// keep commits: its rows are read with the others then. Left there, images would be applied beside
// rows whose xmin a rewrite has changed, or never, where they do not fit the columns any more. The chunks of the new load have to be
// durable before: a death in between leaves rows and images as they were for each other. No chunk is read
// meanwhile, and none of the application's sessions waits.
func forgetImages(ctx context.Context, from *pgx.Conn, t scope.Table) (keep func() error, err error) {
	if t.Identity != scope.AppendOnly {
		return func() error { return nil }, nil
	}
	tx, err := from.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return nil, fmt.Errorf("forgetting the images of %s: %w", tableName(t), err)
	}
	for _, sql := range []string{
		fmt.Sprintf("SELECT pg_advisory_xact_lock(%d, %d)", imagesClass, t.ID),
		fmt.Sprintf("DELETE FROM pgrunbook.image_%d", t.ID),
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("forgetting the images of %s: %w", tableName(t), err)
		}
	}
	return func() error {
		if err := tx.Commit(ctx); err != nil {
			return fmt.Errorf("forgetting the images of %s: %w", tableName(t), err)
		}
		return nil
	}, nil
}

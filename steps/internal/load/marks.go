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

package load

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// forget lets go of what was captured of an empty table before its chunks are read, and would act on their rows.
//
// Truncations: the chunks hold what was left by them. A pass would empty the table afterwards, and put
// back only rows whose keys were captured; a table that starts over has others, written while its
// triggers were disabled or in a partition that was elsewhere.
//
// The images of an append_only table: the chunks hold those rows. They leave out the ones that have an image
// of the same xmin, and a rewrite gives rows another; the texts may be of an older type.
//
// The images of other tables without a key stay: those that the snapshot of their one chunk shows are not
// applied. The caller has read the file nodes and its transaction, which is fenced, holds the chunks back: a
// rewrite in between makes them fail, and none of them has been read.
func forget(ctx context.Context, from *pgx.Conn, t scope.Table) error {
	var err error
	switch {
	case keyed(t):
		_, err = from.Exec(ctx, "DELETE FROM pgrunbook.truncated WHERE rel = $1", t.ID)
	case t.Identity == scope.AppendOnly:
		_, err = from.Exec(ctx, "DELETE FROM "+capture.ImageName(t.ID))
	}
	if err != nil {
		return fmt.Errorf("forgetting what was captured of %s: %w", tableName(t), err)
	}
	return nil
}

package capture

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Present gives the present snapshot of a side, for ForgetSeen.
func Present(ctx context.Context, conn *pgx.Conn) (snapshot string, err error) {
	major, err := majorOf(ctx, conn)
	if err != nil {
		return "", err
	}
	if err := conn.QueryRow(ctx, "SELECT "+snapshotFunctions(major)[0]+"()::text").Scan(&snapshot); err != nil {
		return "", fmt.Errorf("reading the present snapshot: %w", err)
	}
	return snapshot, nil
}

// ForgetSeen forgets what was captured on a side by transactions that a snapshot from Present shows as ended. No pass takes
// it: whoever calls it knows by other means that its rows are right.
func ForgetSeen(ctx context.Context, conn *pgx.Conn, snapshot string) (n int64, err error) {
	deltas, images, err := recordTables(ctx, conn)
	if err != nil {
		return 0, err
	}
	major, err := majorOf(ctx, conn)
	if err != nil {
		return 0, err
	}
	names := []string{"pgrunbook.truncated"}
	for _, d := range deltas {
		names = append(names, pg.Name(Schema, d.name))
	}
	for _, i := range images {
		names = append(names, pg.Name(Schema, i))
	}
	f := snapshotFunctions(major)
	err = inTx(ctx, conn, func(tx pgx.Tx) error {
		for _, name := range names {
			tag, err := tx.Exec(ctx, fmt.Sprintf("DELETE FROM %s WHERE %s(x, %s::%s)", name, f[1], pg.Literal(snapshot), f[2]))
			if err != nil {
				return err
			}
			n += tag.RowsAffected()
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("forgetting captured changes: %w", err)
	}
	return n, nil
}

// snapshotFunctions are what gives a snapshot, what asks one, and its type.
func snapshotFunctions(major int) [3]string {
	if major < 13 {
		return [3]string{"txid_current_snapshot", "txid_visible_in_snapshot", "txid_snapshot"}
	}
	return [3]string{"pg_current_snapshot", "pg_visible_in_snapshot", "pg_snapshot"}
}

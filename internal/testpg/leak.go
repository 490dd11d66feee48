package testpg

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// leakQuery lists what a run must not leave behind in a database ($1; empty: in any). A backend
// ends a moment after its client, so who asks does so more than once.
const leakQuery = `
SELECT pg_catalog.format('backend %s of %s, %s: %s', pid, application_name, state, pg_catalog.left(query, 200))
FROM pg_catalog.pg_stat_activity
WHERE ($1 = '' OR datname = $1) AND pid <> pg_catalog.pg_backend_pid() AND application_name LIKE 'pgrunbook%'
UNION ALL
SELECT pg_catalog.format('advisory lock %s/%s/%s, %s, held by backend %s', classid, objid, objsubid, mode, coalesce(pid::text, 'none (prepared)'))
FROM pg_catalog.pg_locks
WHERE locktype = 'advisory' AND ($1 = '' OR database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = $1))
UNION ALL
SELECT pg_catalog.format('prepared transaction %s', gid) FROM pg_catalog.pg_prepared_xacts WHERE $1 IN ('', database)
UNION ALL
SELECT pg_catalog.format('replication slot %s', slot_name) FROM pg_catalog.pg_replication_slots WHERE $1 IN ('', database)
ORDER BY 1`

// Leaks lists what is left in a database: backends named pgrunbook..., advisory
// locks, prepared transactions, logical slots. It waits up to patience for the
// list to become empty.
func Leaks(ctx context.Context, url string, patience time.Duration) ([]string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("looking for leaks: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return untilEmpty(patience, func() ([]string, error) { return leaksIn(ctx, conn, conn.Config().Database) })
}

func leaksIn(ctx context.Context, conn *pgx.Conn, database string) ([]string, error) {
	rows, err := conn.Query(ctx, leakQuery, database)
	if err != nil {
		return nil, fmt.Errorf("looking for leaks: %w", err)
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("looking for leaks: %w", err)
	}
	return left, nil
}

// leaks asks over the session that the cluster keeps: no new one for each test.
func (c *Cluster) leaks(ctx context.Context, database string, patience time.Duration) ([]string, error) {
	return untilEmpty(patience, func() (left []string, err error) {
		err = c.admin.do(ctx, c, func(conn *pgx.Conn) error {
			left, err = leaksIn(ctx, conn, database)
			return err
		})
		return left, err
	})
}

// untilEmpty looks again for a while where something is left.
func untilEmpty(patience time.Duration, look func() ([]string, error)) ([]string, error) {
	pause := 20 * time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(pause) {
		pause = min(pause*2, 500*time.Millisecond)
		left, err := look()
		if err != nil || len(left) == 0 || time.Now().After(deadline) {
			return left, err
		}
	}
}

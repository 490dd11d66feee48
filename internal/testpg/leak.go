package testpg

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// leakQuery lists what a run must not leave behind in its database. A backend
// ends a moment after its client, so Leaks asks more than once.
const leakQuery = `
SELECT pg_catalog.format('backend %s of %s, %s: %s', pid, application_name, state, pg_catalog.left(query, 200))
FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND application_name LIKE 'pgrunbook%'
UNION ALL
SELECT pg_catalog.format('advisory lock %s/%s/%s, %s, held by backend %s', classid, objid, objsubid, mode, coalesce(pid::text, 'none (prepared)'))
FROM pg_catalog.pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
UNION ALL
SELECT pg_catalog.format('prepared transaction %s', gid) FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()
UNION ALL
SELECT pg_catalog.format('replication slot %s', slot_name) FROM pg_catalog.pg_replication_slots WHERE database = pg_catalog.current_database()
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
	for deadline := time.Now().Add(patience); ; {
		rows, err := conn.Query(ctx, leakQuery)
		if err != nil {
			return nil, fmt.Errorf("looking for leaks: %w", err)
		}
		left, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("looking for leaks: %w", err)
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// NoLeaks fails the test at its end when something is left. Call it right after
// NewDB or Pair: cleanups run backwards, so it looks before the database goes.
func NoLeaks(t TB, urls ...string) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, url := range urls {
			left, err := Leaks(ctx, url, 5*time.Second)
			if err != nil {
				t.Errorf("%v", err)
			}
			if len(left) > 0 {
				t.Errorf("left behind in the database:\n  %s", strings.Join(left, "\n  "))
			}
		}
	})
}

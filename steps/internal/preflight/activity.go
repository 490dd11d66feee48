package preflight

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// longTransactions: CREATE TRIGGER waits for every writer, and an open snapshot keeps dead rows.
func longTransactions(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	return openFor(ctx, f, time.Minute)
}

func openFor(ctx context.Context, f *Facts, age time.Duration) ([]engine.Finding, error) {
	found, err := f.From.list(ctx, `SELECT format('pid %s (%s, %s): %s, open for %s s', pid, usename, application_name, coalesce(state, 'unknown'),
        extract(epoch FROM clock_timestamp() - xact_start)::int8)
  FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename IS NOT NULL
   AND xact_start < clock_timestamp() - make_interval(secs => $1) ORDER BY xact_start`, age.Seconds())
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return one(finding(engine.SeverityWarning, engine.Source, "", "Let them end, or end them with pg_terminate_backend, before apply.",
		"Transactions are open for more than %s; installing the capture waits for those that write: %s.", age, some(found))), nil
}

func preparedTransactions(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	gids, err := f.From.list(ctx, `SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared`)
	if err != nil || len(gids) == 0 {
		return nil, err
	}
	return one(finding(engine.SeverityWarning, engine.Source, gids[0], fmt.Sprintf("COMMIT PREPARED or ROLLBACK PREPARED '%s'.", gids[0]),
		"Prepared transactions hold locks until somebody finishes them; the capture and the cutover wait for them: %s.", some(gids))), nil
}

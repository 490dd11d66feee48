package pg

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// leftoversSQL finds sessions of a run that are not this process's. Worker processes may be
// alive and claim chunks only; what a dead one held goes with its session. A COMMIT that waits for a synchronous standby
// is not ended: it would stand without it, and a failover would take it back.
const leftoversSQL = `
SELECT pid FROM pg_catalog.pg_stat_activity
 WHERE pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
   AND datname OPERATOR(pg_catalog.=) pg_catalog.current_database() -- the other side may be in this cluster
   AND pg_catalog.left(application_name, pg_catalog.length($1)) OPERATOR(pg_catalog.=) $1
   AND pg_catalog.substr(application_name, pg_catalog.length($1) + 1, 6) OPERATOR(pg_catalog.<>) 'worker'
   AND coalesce(wait_event, '') OPERATOR(pg_catalog.<>) 'SyncRep'
   AND pg_catalog.right(application_name, pg_catalog.length($2)) OPERATOR(pg_catalog.<>) $2`

// leftoversWait bounds the time that ended backends get to be gone.
const leftoversWait = 10 * time.Second

// TerminateLeftovers ends the backends that a dead runner of the run left behind, found by
// application_name, and waits until they are gone: until then they hold locks. This process's own
// sessions and those of worker processes stay. It gives the process ids.
func (s *Server) TerminateLeftovers(ctx context.Context, conn *pgx.Conn) ([]int32, error) {
	list := func() ([]int32, error) {
		rows, err := conn.Query(ctx, leftoversSQL, appPrefix(s.cfg.RunID), "~"+s.token)
		if err != nil {
			return nil, fmt.Errorf("looking for sessions of a dead runner: %w", err)
		}
		pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		if err != nil {
			return nil, fmt.Errorf("looking for sessions of a dead runner: %w", err)
		}
		return pids, nil
	}
	if s.cfg.RunID == "" {
		return nil, nil
	}
	ended, err := list()
	if err != nil || len(ended) == 0 {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "SELECT pg_catalog.pg_terminate_backend(p) FROM pg_catalog.unnest($1::pg_catalog.int4[]) p", ended); err != nil {
		return nil, fmt.Errorf("ending sessions of a dead runner: %w", err)
	}
	for start := time.Now(); ; {
		left, err := list()
		if err != nil || len(left) == 0 {
			return ended, err
		}
		if time.Since(start) > leftoversWait {
			return ended, fmt.Errorf("sessions %v of a dead runner do not end", left)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return ended, err
		}
	}
}

package dump

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// lockedSQL finds the tables that somebody else has locked even against readers. Their definitions wait for that.
const lockedSQL = `
SELECT DISTINCT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
  FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
 ORDER BY 2`

// locked names whom reading the definitions has waited for since start. Where that cannot be told, or nobody is
// there any more, err is returned as it is.
func locked(ctx context.Context, conn *pgx.Conn, start time.Time, err error) error {
	waited := time.Since(start)
	var (
		tables []uint32
		names  []string
		table  uint32
		name   string
	)
	rows, lookErr := conn.Query(ctx, lockedSQL)
	if lookErr == nil {
		_, lookErr = pgx.ForEachRow(rows, []any{&table, &name}, func() error {
			tables, names = append(tables, table), append(names, name)
			return nil
		})
	}
	if lookErr != nil || len(tables) == 0 {
		return err
	}
	blockers, lookErr := pg.Blockers(ctx, conn, pg.AccessShare, tables...)
	if lookErr != nil || len(blockers) == 0 {
		return err
	}
	object := strings.Join(names, ", ")
	hint := fmt.Sprintf("Wait for pid %d to end, or on that side: SELECT pg_terminate_backend(%[1]d)", blockers[0].PID)
	if gid := blockers[0].Prepared; gid != "" {
		hint = "On that side: COMMIT PREPARED or ROLLBACK PREPARED " + pg.Literal(gid)
	}
	return &engine.Error{
		Op: "reading the definitions", Err: &pg.LockError{Object: object, Waited: waited, Blockers: blockers, Err: err},
		Hint: hint + ". Then run the same command again: it goes on.",
	}
}

package capture

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Heartbeat makes what was read on a side durable there, before the other one keeps what follows from it: under
// asynchronous commits a crash could take changes back, and their keys with them. conn is a session of package pg, or a
// transaction of one.
func Heartbeat(ctx context.Context, conn interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
},
) error {
	tag, err := conn.Exec(ctx, "UPDATE pgrunbook.heartbeat SET at = clock_timestamp()")
	if err == nil && tag.RowsAffected() == 0 { // which writes no commit
		_, err = conn.Exec(ctx, "INSERT INTO pgrunbook.heartbeat (at) VALUES (clock_timestamp()) ON CONFLICT DO NOTHING")
	}
	if session, ok := conn.(*pgx.Conn); ok && err == nil { // a transaction has its COMMIT before it
		err = pg.Durable(ctx, session)
	}
	if err != nil {
		return fmt.Errorf("writing the heartbeat: %w", err)
	}
	return nil
}

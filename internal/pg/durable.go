package pg

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// WaitForStandby is where in its source a server says, in a WARNING, that a COMMIT no longer waits for a synchronous
// standby: the text is translated, this is not (10 to 18, src/backend/replication/syncrep.c).
const WaitForStandby = "SyncRepWaitForLSN"

// ErrAlone says that a COMMIT stands on its server without the synchronous standby, since somebody cancelled the wait
// (PostgreSQL docs, 27.2.8.3): a failover to that standby takes it back. It counts as a COMMIT whose answer was lost.
var ErrAlone = errors.New("somebody cancelled the COMMIT's wait for a synchronous standby, which may not have it")

// alone is set in the custom data of a session that was told so.
const alone = "alone"

func hear(conn *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == WaitForStandby {
		conn.CustomData()[alone] = true
	}
}

// Durable is ErrAlone, and the session closed, where a COMMIT of it stands alone. It comes after each COMMIT on whose
// word the other side is changed for good.
func Durable(ctx context.Context, conn *pgx.Conn) error {
	if conn.PgConn().CustomData()[alone] == nil {
		return nil
	}
	closeQuietly(ctx, conn)
	return ErrAlone
}

// MakeDurable makes durable, on the server and its synchronous standbys, whatever the session has seen committed. What
// is seen may be there alone: a client that loses its connection asks for its COMMIT's wait to be cancelled. A later COMMIT waits
// for the log up to its own place, and so for all before it. conn is outside a transaction, and no AsyncCommit session.
func MakeDurable(ctx context.Context, conn *pgx.Conn) error {
	delete(conn.PgConn().CustomData(), alone) // this COMMIT waits for those before it, too
	_, err := conn.Exec(ctx, "SELECT pg_catalog.pg_logical_emit_message(true, 'pgrunbook', '')")
	if err == nil {
		err = Durable(ctx, conn)
	}
	if err != nil {
		return fmt.Errorf("making durable what is committed, with a COMMIT that waits for the synchronous standby: %w", err)
	}
	return nil
}

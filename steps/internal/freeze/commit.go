package freeze

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// commit sends COMMIT and gives the server's tag, waiting for at most answerWait. It uses up the connection, and goes
// past pgx, which ends a wait by asking the server to cancel: a COMMIT that waits for a synchronous standby then
// stands without it (PostgreSQL docs, 27.2.8.3), and a failover to that standby opens the side again. Here
// the socket is closed, and the COMMIT waits on, with the gate's key in hand. The hold's statement_timeout would
// cancel it as well, so it is lifted in the same message. A COMMIT that somebody else kept from waiting is an
// error, of which nobody knows what comes.
func commit(ctx context.Context, conn *pgconn.PgConn) (tag string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	if err := conn.SyncConn(ctx); err != nil {
		return "", fmt.Errorf("%w: %w", errNoCommit, err)
	}
	raw, err := conn.Hijack()
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoCommit, err)
	}
	defer func() { _ = raw.Conn.Close() }() // what the server answered counts
	deadline, _ := ctx.Deadline()
	if err := raw.Conn.SetDeadline(deadline); err != nil {
		return "", fmt.Errorf("%w: %w", errNoCommit, err)
	}
	statements := []string{"SET LOCAL statement_timeout = 0", "COMMIT"}
	for _, sql := range statements {
		raw.Frontend.Send(&pgproto3.Query{String: sql})
	}
	if err := raw.Frontend.Flush(); err != nil {
		return "", err
	}
	var refusal, alone error
	for answered := 0; answered < len(statements); {
		message, err := raw.Frontend.Receive()
		if err != nil {
			return "", errors.Join(refusal, err)
		}
		switch m := message.(type) {
		case *pgproto3.ErrorResponse:
			refusal = pgconn.ErrorResponseToPgError(m)
		case *pgproto3.NoticeResponse:
			if m.Routine == pg.WaitForStandby {
				alone = pg.ErrAlone
			}
		case *pgproto3.CommandComplete:
			tag, refusal = string(m.CommandTag), alone // of an aborted transaction SET fails, and COMMIT answers ROLLBACK
		case *pgproto3.ReadyForQuery:
			answered++
		}
	}
	return tag, refusal
}

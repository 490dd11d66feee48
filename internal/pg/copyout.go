package pg

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// copyOut runs COPY ... TO STDOUT and writes the bytes of its rows to w. The driver's own CopyTo
// holds each row as a whole, up to 1 GiB of it; here a row goes through in pieces. After an error of
// the server the session can be used, after any other one it is closed.
// The messages are those of https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY.
func copyOut(ctx context.Context, conn *pgx.Conn, w io.Writer, sql string) (pgconn.CommandTag, error) {
	if err := ctx.Err(); err != nil {
		return pgconn.CommandTag{}, err
	}
	raw := conn.PgConn()
	if err := raw.SyncConn(ctx); err != nil { // nothing of the session is in the driver's buffers
		return pgconn.CommandTag{}, fmt.Errorf("preparing the session: %w", err)
	}
	// The past as a deadline ends a read that waits.
	stop := context.AfterFunc(ctx, func() { _ = raw.Conn().SetDeadline(time.Unix(1, 0)) })
	defer stop()
	out := &outStream{r: bufio.NewReaderSize(raw.Conn(), pipeBuffer), w: w}
	raw.Frontend().SendQuery(&pgproto3.Query{String: sql})
	err := raw.Frontend().Flush()
	if err == nil {
		err = out.run()
	}
	if !stop() && err == nil { // the deadline is set, or about to be
		err = ctx.Err()
	}
	if err == nil {
		return out.tag, out.failed
	}
	abandon(ctx, conn)
	return pgconn.CommandTag{}, errors.Join(err, context.Cause(ctx))
}

// abandon ends a session in the middle of a COPY, and its statement on the server.
func abandon(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.PgConn().CancelRequest(ctx)
	_ = conn.Close(ctx)
}

// outStream reads the answer to one COPY ... TO STDOUT.
type outStream struct {
	r      *bufio.Reader
	w      io.Writer
	tag    pgconn.CommandTag
	failed error // what the server said
}

// run reads up to ReadyForQuery, and what the server sent unasked behind it: left in the buffer it
// would be missing in the stream that the driver reads next.
func (o *outStream) run() error {
	for ready := false; !ready || o.r.Buffered() > 0; {
		head, err := o.r.Peek(5)
		if err != nil {
			return fmt.Errorf("reading from the server: %w", err)
		}
		kind, size := head[0], int(binary.BigEndian.Uint32(head[1:]))-4
		if size < 0 {
			return fmt.Errorf("reading from the server: a message %q of a negative size", kind)
		}
		if _, err := o.r.Discard(len(head)); err != nil {
			return fmt.Errorf("reading from the server: %w", err)
		}
		if kind == 'd' {
			err = o.data(size)
		} else {
			ready = ready || kind == 'Z'
			err = o.message(kind, size)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// data hands on one CopyData, in pieces where it is larger than the buffer.
func (o *outStream) data(size int) error {
	for size > 0 {
		piece, err := o.r.Peek(min(size, pipeBuffer))
		if err != nil {
			return fmt.Errorf("reading from the server: %w", err)
		}
		if _, err := o.w.Write(piece); err != nil {
			return err
		}
		size -= len(piece)
		if _, err := o.r.Discard(len(piece)); err != nil {
			return fmt.Errorf("reading from the server: %w", err)
		}
	}
	return nil
}

// message takes in any other message.
func (o *outStream) message(kind byte, size int) error {
	body := make([]byte, size)
	if _, err := io.ReadFull(o.r, body); err != nil {
		return fmt.Errorf("reading from the server: %w", err)
	}
	switch kind {
	case 'C': // CommandComplete
		o.tag = pgconn.NewCommandTag(strings.TrimRight(string(body), "\x00"))
	case 'E': // ErrorResponse
		var msg pgproto3.ErrorResponse
		if err := msg.Decode(body); err != nil {
			return fmt.Errorf("reading the server's error: %w", err)
		}
		o.failed = pgconn.ErrorResponseToPgError(&msg)
	case 'H', 'c', 'Z', 'N', 'S', 'A': // CopyOutResponse, CopyDone, ReadyForQuery; notice, parameter, notification
	default:
		return fmt.Errorf("the server answered COPY with a message %q", kind)
	}
	return nil
}

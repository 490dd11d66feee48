package pg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pipeBuffer joins the one-row messages of COPY TO STDOUT into large writes, and is the most of a row
// that is in memory.
const pipeBuffer = 128 << 10

// errOtherEnd closes the reading half of a pipe whose writing half failed first.
var errOtherEnd = errors.New("the receiving side stopped")

// Piped is what went through a Pipe.
type Piped struct {
	Rows  int64
	Bytes int64
}

// Meter is told of every n bytes before they are written; it may wait, to slow a pipe down.
type Meter func(ctx context.Context, n int) error

// Pipe runs read (COPY ... TO STDOUT) on one session and feeds its bytes, unparsed, to write
// (COPY ... FROM STDIN) on another. It fails when the row counts of the two command tags differ:
// a BEFORE trigger or a rule that swallows rows raises nothing else. A session whose other end
// failed is closed.
func Pipe(ctx context.Context, from, to *pgx.Conn, read, write string, meter Meter) (Piped, error) {
	type outcome struct {
		tag   pgconn.CommandTag
		bytes int64
		err   error
	}
	pr, pw := io.Pipe()
	stop := context.AfterFunc(ctx, func() {
		_ = pr.CloseWithError(context.Cause(ctx))
		_ = pw.CloseWithError(context.Cause(ctx))
	})
	defer stop()
	done := make(chan outcome, 1)
	go func() {
		sink := &metered{ctx: ctx, w: pw, meter: meter}
		buffered := bufio.NewWriterSize(sink, pipeBuffer)
		tag, err := copyOut(ctx, from, buffered, read)
		if err == nil {
			err = buffered.Flush()
		}
		_ = pw.CloseWithError(err) // nil ends the stream
		done <- outcome{tag: tag, bytes: sink.n, err: err}
	}()
	tag, writeErr := to.PgConn().CopyFrom(ctx, pr, write)
	_ = pr.CloseWithError(errOtherEnd)
	got := <-done
	piped := Piped{Rows: tag.RowsAffected(), Bytes: got.bytes}
	switch {
	case ctx.Err() != nil && (got.err != nil || writeErr != nil):
		return piped, context.Cause(ctx)
	case got.err != nil && !errors.Is(got.err, errOtherEnd):
		return piped, fmt.Errorf("reading: %w", got.err)
	case writeErr != nil:
		return piped, fmt.Errorf("writing: %w", writeErr)
	case got.tag.RowsAffected() != tag.RowsAffected():
		return piped, fmt.Errorf("%d rows were read but %d were written", got.tag.RowsAffected(), tag.RowsAffected())
	}
	return piped, nil
}

type metered struct {
	ctx   context.Context
	w     io.Writer
	meter Meter
	n     int64
}

func (m *metered) Write(p []byte) (int, error) {
	if m.meter != nil {
		if err := m.meter(m.ctx, len(p)); err != nil {
			return 0, err
		}
	}
	n, err := m.w.Write(p)
	m.n += int64(n)
	return n, err
}

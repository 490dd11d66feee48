package testpg

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sync/errgroup"
)

// merge walks two ordered streams and lists the rows that only one of them has.
func merge(ctx context.Context, sides [2]*side, queries [2]string, table string, columns []column) ([]Difference, error) {
	group, ctx := errgroup.WithContext(ctx)
	var streams [2]*rowStream
	for i, s := range sides {
		r, w := io.Pipe()
		streams[i] = &rowStream{r: bufio.NewReader(r)}
		group.Go(func() error {
			_, err := s.conn.PgConn().CopyTo(ctx, w, queries[i])
			return errors.Join(err, w.CloseWithError(err))
		})
		defer func() { _ = r.Close() }()
	}
	var diffs []Difference
	more := 0
	found := func(kind Kind, row [][]byte) {
		if len(diffs) >= maxDifferences {
			more++
			return
		}
		diffs = append(diffs, Difference{table, kind, showRow(columns, row)})
	}
	a, b := streams[0], streams[1]
	a.next()
	b.next()
	for a.row != nil || b.row != nil {
		switch order := compareRows(a.row, b.row); {
		case order < 0:
			found(Missing, a.row)
			a.next()
		case order > 0:
			found(Extra, b.row)
			b.next()
		default:
			a.next()
			b.next()
		}
	}
	if err := errors.Join(group.Wait(), a.err, b.err); err != nil {
		return nil, err
	}
	if more > 0 {
		diffs = append(diffs, Difference{table, More, fmt.Sprintf("%d rows that are not listed", more)})
	}
	return diffs, nil
}

// rowStream reads COPY's text format; row is nil at its end.
type rowStream struct {
	r   *bufio.Reader
	row [][]byte // a field of nil is NULL
	err error
}

func (s *rowStream) next() {
	line, err := s.r.ReadBytes('\n')
	if err != nil {
		s.row = nil
		if !errors.Is(err, io.EOF) {
			s.err = err
		}
		return
	}
	fields := bytes.Split(line[:len(line)-1], []byte{'\t'})
	for i, f := range fields {
		if string(f) == `\N` {
			fields[i] = nil
		} else {
			fields[i] = unescape(f)
		}
	}
	s.row = fields
}

// unescape undoes COPY's backslashes (PostgreSQL docs, COPY, File Formats). The
// result is not nil.
func unescape(f []byte) []byte {
	out := make([]byte, 0, len(f))
	for i := 0; i < len(f); i++ {
		if f[i] == '\\' && i+1 < len(f) {
			i++
			if at := strings.IndexByte("bfnrtv", f[i]); at >= 0 {
				out = append(out, "\b\f\n\r\t\v"[at])
				continue
			}
		}
		out = append(out, f[i])
	}
	return out
}

// compareRows orders as the server does: bytes, NULL last; the end of a stream
// is after everything.
func compareRows(a, b [][]byte) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == nil && b[i] == nil:
			continue
		case a[i] == nil:
			return 1
		case b[i] == nil:
			return -1
		}
		if c := bytes.Compare(a[i], b[i]); c != 0 {
			return c
		}
	}
	return len(a) - len(b)
}

// showRow writes a row for people, long values cut.
func showRow(columns []column, row [][]byte) string {
	const most = 80
	var parts []string
	for i, c := range columns {
		if i >= len(row) {
			break
		}
		v := "NULL"
		if row[i] != nil {
			v = fmt.Sprintf("%q", row[i][:min(len(row[i]), most)])
			if len(row[i]) > most {
				v += fmt.Sprintf("... (%d bytes)", len(row[i]))
			}
		}
		parts = append(parts, c.Name+"="+v)
	}
	return strings.Join(parts, " ")
}

package testpg

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
)

// readClient splits what the client sends into messages, so that a commit is
// the end of its piece. After a startup that it cannot read (TLS, GSS, cancel)
// it passes bytes as they are.
func (c *proxyConn) readClient(to chan<- piece) {
	r := bufio.NewReaderSize(c.client, pieceSize)
	if plain, err := c.startup(r, to); err != nil || !plain {
		if err == nil {
			c.readAll(r, to)
		}
		return
	}
	var commits commitFinder
	for {
		header, err := r.Peek(5)
		if err != nil {
			return
		}
		left := 1 + int(binary.BigEndian.Uint32(header[1:]))
		start, err := r.Peek(min(left, 512)) // enough for names and the first word
		if err != nil || left < 5 {
			return
		}
		commit := commits.message(start)
		for left > 0 {
			// Take along what has arrived of a long message; never wait for all of it.
			buf := make([]byte, min(left, max(r.Buffered(), 1)))
			n, err := io.ReadFull(r, buf)
			left -= n
			if err != nil || !c.send(to, buf, commit && left == 0) {
				return
			}
		}
	}
}

// Request codes of the startup packet (PostgreSQL docs, 54.7).
const (
	cancelRequest = 80877102
	sslRequest    = 80877103
	gssRequest    = 80877104
)

// startup forwards the untyped first packets. plain is false when what follows
// is not the plain message stream.
func (c *proxyConn) startup(r *bufio.Reader, to chan<- piece) (plain bool, err error) {
	for {
		header, err := r.Peek(8)
		if err != nil {
			return false, err
		}
		size, code := binary.BigEndian.Uint32(header), binary.BigEndian.Uint32(header[4:])
		if size < 8 || size > 1<<20 {
			return false, errors.New("not PostgreSQL")
		}
		packet := make([]byte, size)
		if _, err := io.ReadFull(r, packet); err != nil {
			return false, err
		}
		if f, _ := c.p.now(); f.lose && code == cancelRequest {
			c.p.count(FaultCancel)
			return false, net.ErrClosed
		}
		if !c.send(to, packet, false) {
			return false, net.ErrClosed
		}
		switch code {
		case cancelRequest:
			return false, nil
		case sslRequest, gssRequest:
			next, err := r.Peek(1) // a TLS record starts with 22; a startup packet's length with 0
			if err != nil || next[0] != 0 {
				return false, err
			}
		default:
			return true, nil
		}
	}
}

// commitFinder follows the messages of one client and finds those at which the
// server commits: a simple query, or the Execute of a portal that was bound to
// a statement whose text is a commit.
type commitFinder struct {
	statements, portals map[string]bool
}

// message takes the start of a message, header included.
func (f *commitFinder) message(b []byte) bool {
	if f.statements == nil {
		f.statements, f.portals = map[string]bool{}, map[string]bool{}
	}
	kind, body := b[0], b[5:]
	first, rest, _ := bytes.Cut(body, []byte{0})
	switch kind {
	case 'Q':
		return isCommit(body)
	case 'P':
		f.statements[string(first)] = isCommit(rest)
	case 'B':
		statement, _, _ := bytes.Cut(rest, []byte{0})
		f.portals[string(first)] = f.statements[string(statement)]
	case 'E':
		return f.portals[string(first)]
	}
	return false
}

func isCommit(sql []byte) bool {
	word := strings.ToUpper(strings.TrimLeft(string(sql), " \t\r\n"))
	for _, w := range []string{"COMMIT", "END"} {
		if rest, ok := strings.CutPrefix(word, w); ok && (rest == "" || strings.ContainsRune(" ;\t\r\n\x00", rune(rest[0]))) {
			return true
		}
	}
	return false
}

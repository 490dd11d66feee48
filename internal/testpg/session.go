package testpg

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Session is a connection for a statement or two of a test's own. Close keeps it, cleaned, for the
// next one who asks for the same URL: a new process of the server costs more than most statements.
// What must be seen by a client that comes anew (a setting of the database, a closed door), and what
// must live through a flip, which ends the sessions of the side that is left, needs pgx.Connect.
type Session struct {
	*pgx.Conn

	url string
}

// idle are the sessions that nobody uses, by URL.
var idle = struct {
	sync.Mutex
	conns map[string][]*pgx.Conn
}{conns: map[string][]*pgx.Conn{}}

// idleMax is how many sessions are kept for one URL.
const idleMax = 2

// Connect opens a session, or takes one that was given back.
func Connect(ctx context.Context, url string) (*Session, error) {
	for {
		idle.Lock()
		kept := idle.conns[url]
		if len(kept) == 0 {
			idle.Unlock()
			break
		}
		conn := kept[len(kept)-1]
		idle.conns[url] = kept[:len(kept)-1]
		idle.Unlock()
		if usable(ctx, conn) {
			return &Session{conn, url}, nil
		}
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	return &Session{conn, url}, nil
}

// usable is false for a session whose server was stopped, or that was ended: who asks gets a new one.
func usable(ctx context.Context, conn *pgx.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if conn.Ping(ctx) == nil {
		return true
	}
	_ = conn.Close(ctx)
	return false
}

// Close gives the session back, or ends it where it is not as it was.
func (s *Session) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if s.PgConn().TxStatus() != 'I' || s.DeallocateAll(ctx) != nil {
		return s.Conn.Close(ctx)
	}
	if _, err := s.Exec(ctx, "DISCARD ALL"); err != nil {
		return s.Conn.Close(ctx)
	}
	idle.Lock()
	defer idle.Unlock()
	if len(idle.conns[s.url]) >= idleMax {
		return s.Conn.Close(ctx)
	}
	idle.conns[s.url] = append(idle.conns[s.url], s.Conn)
	return nil
}

// endIdle ends the kept sessions of a URL, or all where it is empty.
func endIdle(ctx context.Context, url string) {
	idle.Lock()
	defer idle.Unlock()
	for u, conns := range idle.conns {
		if url != "" && u != url {
			continue
		}
		for _, conn := range conns {
			_ = conn.Close(ctx)
		}
		delete(idle.conns, u)
	}
}

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// turnstile stands between the clients and a server that may not have them yet. It lets nobody
// through before the other server refuses writes, and takes a snapshot first: what the server held
// before anybody wrote there. That must be equal to the closed server.
type turnstile struct {
	listener net.Listener
	addr     string // behind it
	direct   string // URL past it
	other    string // URL of the server that must be closed

	mu       sync.Mutex
	open     bool
	conn     *pgx.Conn // keeps the snapshot
	snapshot string
}

// newTurnstile is shut; the server that clients begin at is behind an open one.
func newTurnstile(direct, other string, open bool) (*turnstile, error) {
	config, err := pgx.ParseConfig(direct)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &turnstile{listener: l, addr: fmt.Sprintf("%s:%d", config.Host, config.Port), direct: direct, other: other, open: open}
	go t.accept()
	return t, nil
}

// url is the way through.
func (t *turnstile) url() string {
	u, err := url.Parse(t.direct)
	if err != nil {
		panic(err) // it was parsed before
	}
	u.Host = t.listener.Addr().String()
	return u.String()
}

func (t *turnstile) accept() {
	for {
		client, err := t.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = client.Close() }()
			if t.admit() {
				t.join(client)
			}
		}()
	}
}

// admit takes the snapshot, then asks the other server: a snapshot that is older than the answer
// "closed" holds all that the other server ever got, or the final pass has lost something.
func (t *turnstile) admit() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if !closed(ctx, t.other) {
		return false
	}
	conn, err := pgx.Connect(ctx, t.direct)
	if err != nil {
		return false
	}
	if _, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err == nil {
		err = conn.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&t.snapshot)
	}
	if err != nil {
		_ = conn.Close(ctx)
		return false
	}
	t.open, t.conn = true, conn
	return true
}

// closed says whether a server's gate refuses writes: the words of the protocol page, read past it.
func closed(ctx context.Context, url string) bool {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, "BEGIN; UPDATE app.probe SET n = n; ROLLBACK")
	return sqlState(err) == "25006"
}

// wait gives the snapshot once the first client has come through.
func (t *turnstile) wait(ctx context.Context) (string, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		t.mu.Lock()
		open, snapshot := t.open, t.snapshot
		t.mu.Unlock()
		switch {
		case open:
			return snapshot, nil
		case time.Now().After(deadline):
			return "", errors.New("no client came through after the flip")
		case ctx.Err() != nil:
			return "", ctx.Err()
		}
	}
}

// shut makes the next client wait for a new snapshot.
func (t *turnstile) shut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release()
	t.open, t.snapshot = false, ""
}

func (t *turnstile) release() {
	if t.conn != nil {
		_ = t.conn.Close(context.Background())
		t.conn = nil
	}
}

func (t *turnstile) join(client net.Conn) {
	server, err := net.Dial("tcp", t.addr)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		done <- struct{}{}
	}
	go pipe(server, client)
	go pipe(client, server)
	<-done
}

func (t *turnstile) close() {
	_ = t.listener.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release()
}

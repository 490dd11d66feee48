package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// turnstile stands between the clients and the target. Before it lets the first one through it
// takes a snapshot of the target: what the target was before anybody wrote there. Clients come
// only once the source refuses them, so that snapshot must equal the closed source.
type turnstile struct {
	url      string
	listener net.Listener
	target   string // address behind it
	direct   string // URL past it

	once     sync.Once
	taken    chan struct{}
	conn     *pgx.Conn
	snapshot string
	err      error
}

func newTurnstile(target, direct string) (*turnstile, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(direct)
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	u.Host = l.Addr().String()
	t := &turnstile{url: u.String(), listener: l, target: target, direct: direct, taken: make(chan struct{})}
	go t.accept()
	return t, nil
}

func (t *turnstile) accept() {
	for {
		client, err := t.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = client.Close() }()
			t.once.Do(t.take)
			if t.err == nil {
				t.join(client)
			}
		}()
	}
}

// take exports the snapshot; its session stays open until close.
func (t *turnstile) take() {
	defer close(t.taken)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, t.direct)
	if err == nil {
		_, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	}
	if err == nil {
		err = conn.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&t.snapshot)
	}
	if t.conn = conn; err != nil {
		t.err = fmt.Errorf("taking the target's snapshot: %w", err)
	}
}

// wait returns the snapshot's name once the first client has come through.
func (t *turnstile) wait(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	select {
	case <-t.taken:
		return t.snapshot, t.err
	case <-ctx.Done():
		return "", fmt.Errorf("no client came to the target after the cutover: %w", ctx.Err())
	}
}

func (t *turnstile) join(client net.Conn) {
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", t.target)
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
	if t.conn != nil {
		_ = t.conn.Close(context.Background())
	}
}

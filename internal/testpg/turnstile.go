package testpg

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
	"github.com/jackc/pgx/v5/pgconn"
)

// Turnstile stands between the clients and a server that may not have them yet. It lets nobody
// through before the other server refuses writes, and takes a snapshot first: what the server held
// before anybody wrote there. That must be equal to the closed server.
type Turnstile struct {
	// Prepare, where set before the first client comes, may take locks before the snapshot is taken.
	Prepare func(ctx context.Context, conn *pgx.Conn) error
	// Opened, where set before the first client comes, is told of each snapshot, before anybody is
	// let through.
	Opened func(snapshot string)

	listener net.Listener
	addr     string // behind it
	direct   string // URL past it
	other    string // URL of the server that must be closed
	probe    string // a write that a closed server refuses

	mu       sync.Mutex
	open     bool
	conn     *pgx.Conn // keeps the snapshot
	snapshot string
}

// NewTurnstile is shut unless open; the server that clients begin at is behind an open one. probe is
// a write that a closed server refuses with SQLSTATE 25006.
func NewTurnstile(direct, other, probe string, open bool) (*Turnstile, error) {
	config, err := pgx.ParseConfig(direct)
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &Turnstile{listener: l, addr: fmt.Sprintf("%s:%d", config.Host, config.Port), direct: direct, other: other, probe: probe, open: open}
	go t.accept()
	return t, nil
}

// URL is the way through.
func (t *Turnstile) URL() string {
	u, err := url.Parse(t.direct)
	if err != nil {
		panic(err) // it was parsed before
	}
	u.Host = t.listener.Addr().String()
	return u.String()
}

// Connect goes through in this process: it waits for admission like any other client, and its bytes
// then need no way around.
func (t *Turnstile) Connect(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(t.direct)
	if err != nil {
		return nil, err
	}
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !t.admit() {
			return nil, errors.New("the turnstile is shut")
		}
		return dial(ctx, network, addr)
	}
	return pgx.ConnectConfig(ctx, config)
}

func (t *Turnstile) accept() {
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
func (t *Turnstile) admit() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if !Refuses(ctx, t.other, t.probe) {
		return false
	}
	conn, err := pgx.Connect(ctx, t.direct)
	if err != nil {
		return false
	}
	_, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	if err == nil && t.Prepare != nil {
		err = t.Prepare(ctx, conn)
	}
	if err == nil {
		err = conn.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&t.snapshot)
	}
	if err != nil {
		_ = conn.Close(ctx)
		return false
	}
	t.open, t.conn = true, conn
	if t.Opened != nil {
		t.Opened(t.snapshot)
	}
	return true
}

// Refuses says whether a server refuses a write as a closed gate does. It is rolled back.
func Refuses(ctx context.Context, url, probe string) bool {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, "BEGIN; "+probe+"; ROLLBACK")
	return sqlState(err) == readOnlyState
}

// readOnlyState is read_only_sql_transaction.
const readOnlyState = "25006"

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// Wait gives the snapshot once the first client has come through.
func (t *Turnstile) Wait(ctx context.Context) (string, error) {
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

// Shut makes the next client wait for a new snapshot.
func (t *Turnstile) Shut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release()
	t.open, t.snapshot = false, ""
}

// Release gives the snapshot and its locks up.
func (t *Turnstile) Release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release()
}

func (t *Turnstile) release() {
	if t.conn != nil {
		_ = t.conn.Close(context.Background())
		t.conn = nil
	}
}

func (t *Turnstile) join(client net.Conn) {
	server, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", t.addr)
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

// Close ends it; clients inside are not cut off.
func (t *Turnstile) Close() {
	_ = t.listener.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release()
}

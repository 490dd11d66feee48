package pg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// miniPooler speaks the protocol as a pooler does: it answers the start of a session itself and
// gives each transaction (or each session) a server connection from its stack.
type miniPooler struct {
	t       *testing.T
	server  string
	session bool  // session mode
	silent  int32 // which client gets no answer; 0: none
	late    bool  // a client's server connection comes back only after another client got one
	oldest  bool  // it gives the connection out first that has been idle for longest
	clients atomic.Int32
	mu      sync.Mutex
	idle    []*pgproto3.Frontend
	kept    *pgproto3.Frontend // comes back late
	keptOf  any                // its client
}

func (p *miniPooler) listen() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if n := p.clients.Add(1); n == p.silent {
				p.t.Cleanup(func() { _ = conn.Close() })
				continue
			}
			go p.serve(conn)
		}
	}()
	return l.Addr().String()
}

func (p *miniPooler) take(client any) (*pgproto3.Frontend, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.kept; f != nil {
		p.kept = nil
		if p.keptOf == client {
			return f, nil
		}
		p.late = false
		defer func() { p.idle = append(p.idle, f) }()
	}
	if n := len(p.idle); n > 0 {
		at := n - 1
		if p.oldest {
			at = 0
		}
		f := p.idle[at]
		p.idle = slices.Delete(p.idle, at, at+1)
		return f, nil
	}
	conn, err := net.Dial("tcp", p.server)
	if err != nil {
		return nil, err
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	f := pgproto3.NewFrontend(conn, conn)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "postgres", "database": "postgres"}})
	if err := f.Flush(); err != nil {
		return nil, err
	}
	for {
		msg, err := f.Receive()
		if err != nil {
			return nil, err
		}
		if _, ready := msg.(*pgproto3.ReadyForQuery); ready {
			return f, nil
		}
	}
}

func (p *miniPooler) give(client any, f *pgproto3.Frontend) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late {
		p.kept, p.keptOf = f, client
		return
	}
	p.idle = append(p.idle, f)
}

// serve runs one client: from its first message on it has a server connection, until the
// transaction is over.
func (p *miniPooler) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: "15.1"})
	b.Send(&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"})
	b.Send(&pgproto3.BackendKeyData{ProcessID: 4711, SecretKey: []byte{1, 2, 3, 4}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if b.Flush() != nil {
		return
	}
	var f *pgproto3.Frontend
	for {
		msg, err := b.Receive()
		if err != nil {
			return
		}
		if f == nil {
			if f, err = p.take(b); err != nil {
				return
			}
		}
		f.Send(msg)
		switch msg.(type) {
		case *pgproto3.Terminate:
			return
		case *pgproto3.Query, *pgproto3.Sync:
		default:
			continue
		}
		status, err := relay(f, b)
		if err != nil {
			return
		}
		if status == 'I' && !p.session {
			p.give(b, f)
			f = nil
		}
	}
}

// relay passes the server's answer on until it is ready again.
func relay(f *pgproto3.Frontend, b *pgproto3.Backend) (byte, error) {
	if err := f.Flush(); err != nil {
		return 0, err
	}
	for {
		msg, err := f.Receive()
		if err != nil {
			return 0, err
		}
		b.Send(msg)
		if ready, ok := msg.(*pgproto3.ReadyForQuery); ok {
			return ready.TxStatus, b.Flush()
		}
	}
}

func TestPoolerInTransactionModeIsRefused(t *testing.T) {
	for _, p := range []*miniPooler{{}, {oldest: true}, {late: true}, {late: true, oldest: true}} {
		t.Run(fmt.Sprintf("late %v, oldest first %v", p.late, p.oldest), func(t *testing.T) { refusedBehind(t, p) })
	}
}

func refusedBehind(t *testing.T, p *miniPooler) {
	c := testpg.Shared(t, testMajor)
	late := p.late
	p.t, p.server = t, c.Addr()
	s := newServer(t, Config{URL: "postgresql://postgres@" + p.listen() + "/postgres?sslmode=disable"})
	var refused *PoolerError
	if _, err := s.Connect(testContext(t), Use{ReadOnly: true}); !errors.As(err, &refused) {
		t.Errorf("Connect: %v", err)
	}
	if late && p.late {
		t.Error("no connection came back late")
	}
	f, err := p.take(nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Send(&pgproto3.Query{String: "SHOW default_transaction_read_only"})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := f.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if row, ok := msg.(*pgproto3.DataRow); ok && string(row.Values[0]) != "off" {
			t.Errorf("a setting of ours stayed behind in the pool: %s", row.Values[0])
		}
		if _, ok := msg.(*pgproto3.ReadyForQuery); ok {
			break
		}
	}
}

func TestPoolerInSessionModeIsFine(t *testing.T) {
	c := testpg.Shared(t, testMajor)
	p := &miniPooler{t: t, server: c.Addr(), session: true}
	s := newServer(t, Config{URL: "postgresql://postgres@" + p.listen() + "/postgres?sslmode=disable"})
	conn := connect(t, s, Use{ReadOnly: true})
	if got := show(t, conn, "SHOW default_transaction_read_only"); got != "on" {
		t.Errorf("read only is %s", got)
	}
	connect(t, newServer(t, Config{URL: c.ConnString()}), Use{ReadOnly: true})
}

// A pooler is asked once, by whichever copy of the side comes first; a session of the freeze asks for the mode alone.
// Another address may be another pooler.
func TestPoolerIsAskedOnce(t *testing.T) {
	p := &miniPooler{t: t, server: testpg.Shared(t, testMajor).Addr(), session: true}
	at := p.listen()
	s := newServer(t, Config{URL: "postgresql://postgres@" + at + "/postgres?sslmode=disable"})
	opened := func(s *Server, use Use) int32 {
		before := p.clients.Load()
		connect(t, s, use)
		return p.clients.Load() - before
	}
	if n := opened(s, Use{Hold: true}); n != 2 {
		t.Errorf("a session of the freeze opened %d, want itself and one for the mode", n)
	}
	if n := opened(s.ForRun("r1", "m"), Use{}); n < 3 {
		t.Errorf("%d sessions do not show whether the pooler resets them", n)
	}
	for name, same := range map[string]*Server{"the same": s, "of the run": s.ForRun("r1", "m"), "read-only": s.ReadOnly()} {
		if n := opened(same, Use{}); n != 1 {
			t.Errorf("%s: %d sessions for one", name, n)
		}
	}
	other, err := s.At(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	if n := opened(other, Use{}); n == 1 {
		t.Error("another address was taken for the same pooler")
	}
}

// A look that a silent network keeps keeps no other session.
func TestPoolerThatFallsSilentWhileItIsAsked(t *testing.T) {
	p := &miniPooler{t: t, server: testpg.Shared(t, testMajor).Addr(), session: true, silent: 2}
	s := newServer(t, Config{URL: "postgresql://postgres@" + p.listen() + "/postgres?sslmode=disable"})
	ctx, cancel := context.WithCancel(testContext(t))
	kept := make(chan error, 1)
	go func() {
		conn, err := s.Connect(ctx, Use{Hold: true})
		if err == nil {
			closeQuietly(ctx, conn)
		}
		kept <- err
	}()
	for p.clients.Load() < 2 {
		if len(kept) > 0 {
			t.Fatalf("the pooler was not asked: %v", <-kept)
		}
		runtime.Gosched()
	}
	connect(t, s, Use{Hold: true})
	if len(kept) > 0 {
		t.Errorf("another session came after the look that was kept: %v", <-kept)
	}
	cancel()
	if err := <-kept; err == nil {
		t.Error("the silent pooler gave a session")
	}
}

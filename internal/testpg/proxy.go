package testpg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"
)

// Direction is which way bytes go through a Proxy.
type Direction int

// The two directions.
const (
	ToServer Direction = iota
	ToClient
)

// Fault names a kind of fault for Fired.
type Fault string

// The faults. Fired counts: connections reset or refused; pieces of data that a
// black hole, a dropped direction, latency or the bandwidth held up; connections
// cut by bytes, once or again and again; commits cut; cancel requests lost.
const (
	FaultReset     Fault = "reset"
	FaultRefuse    Fault = "refuse"
	FaultBlackHole Fault = "black hole"
	FaultHalfOpen  Fault = "half-open"
	FaultBandwidth Fault = "bandwidth"
	FaultLatency   Fault = "latency"
	FaultCutBytes  Fault = "cut after bytes"
	FaultCutEvery  Fault = "cut every so many bytes"
	FaultCommit    Fault = "cut at commit"
	FaultCancel    Fault = "cancel request lost"
)

// CommitCut is what happens to a COMMIT.
type CommitCut int

// The ways to cut. All but CommitNotSent commit on the server.
const (
	CommitNotSent    CommitCut = iota + 1 // the server never sees it; the connection is reset
	CommitUnanswered                      // the server has answered; the client gets a reset instead
	CommitSilent                          // the server has answered; the client hears nothing, ever
)

// faults are the settings in force; the zero value passes everything.
type faults struct {
	refuse    bool
	lose      bool    // cancel requests
	drop      [2]bool // by Direction; both: a black hole
	bandwidth int64   // bytes per second and direction
	latency   time.Duration
	cutAfter  [2]int64     // bytes left by Direction; 0: none
	cutEvery  func() int64 // draws how many bytes a connection may carry; nil: any
	commit    CommitCut
	skip      int // commits to let pass first
}

// Proxy forwards TCP to one server, with faults that can be switched while
// connections are open. It reads the PostgreSQL protocol (without TLS) as far
// as it must to see commits. A fault that holds data keeps it and delivers it
// when the fault is lifted, as a network that heals does; TCP keepalives are
// answered all the while, by the proxy.
type Proxy struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex
	target  string
	f       faults
	changed chan struct{} // closed and replaced when f changes
	conns   map[*proxyConn]struct{}
	fired   map[Fault]int
	closed  bool
}

// Listen starts a proxy on a free port of 127.0.0.1 in front of target
// (host:port, such as Cluster.Addr).
func Listen(ctx context.Context, target string) (*Proxy, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting a proxy for %s: %w", target, err)
	}
	p := &Proxy{target: target, listener: l, changed: make(chan struct{}), conns: map[*proxyConn]struct{}{}, fired: map[Fault]int{}}
	p.wg.Go(p.accept)
	return p, nil
}

// ListenT starts a proxy in front of a cluster and closes it at the test's end.
func ListenT(t TB, c *Cluster) *Proxy {
	t.Helper()
	p, err := Listen(context.Background(), c.Addr())
	if err != nil {
		t.Fatalf("%v", err)
		return nil
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("closing a proxy: %v", err)
		}
	})
	return p
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL is serverURL with the proxy's address in place of the server's.
func (p *Proxy) URL(serverURL string) string {
	u, err := url.Parse(serverURL)
	if err != nil {
		return "postgresql://" + p.Addr() + "/?invalid_url=1" // connecting to it names the error
	}
	u.Host = p.Addr()
	return u.String()
}

// Fired says how often a fault has had an effect. A test of a fault asserts
// that it is not 0.
func (p *Proxy) Fired(f Fault) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fired[f]
}

// Connections counts the open ones.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Reset sends a TCP reset to both ends of every open connection and returns how
// many there were. New ones work.
func (p *Proxy) Reset() int {
	p.mu.Lock()
	conns := make([]*proxyConn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.fired[FaultReset] += len(conns)
	p.mu.Unlock()
	for _, c := range conns {
		c.abort()
	}
	return len(conns)
}

// Refuse resets new connections as soon as they are made.
func (p *Proxy) Refuse(on bool) { p.set(func(f *faults) { f.refuse = on }) }

// LoseCancels keeps cancel requests from the server. A client that lost its connection sends one, and the server then
// stops to wait for a standby that has not answered.
func (p *Proxy) LoseCancels(on bool) { p.set(func(f *faults) { f.lose = on }) }

// BlackHole keeps connections, accepts new ones and delivers nothing.
func (p *Proxy) BlackHole(on bool) { p.set(func(f *faults) { f.drop = [2]bool{on, on} }) }

// HalfOpen delivers nothing in one direction; the other works.
func (p *Proxy) HalfOpen(d Direction, on bool) { p.set(func(f *faults) { f.drop[d] = on }) }

// Bandwidth limits each direction of each connection; 0 lifts the limit.
func (p *Proxy) Bandwidth(bytesPerSecond int64) {
	p.set(func(f *faults) { f.bandwidth = bytesPerSecond })
}

// Latency delays each direction; 0 lifts it.
func (p *Proxy) Latency(d time.Duration) { p.set(func(f *faults) { f.latency = d }) }

// Heal lifts every fault.
func (p *Proxy) Heal() { p.set(func(f *faults) { *f = faults{} }) }

// Retarget leads new connections to another server, as an address does that moves with a failover.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Close resets all connections and ends the proxy.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.listener.Close()
	p.Heal()
	p.mu.Lock()
	for c := range p.conns {
		c.abort()
	}
	p.mu.Unlock()
	p.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *Proxy) set(change func(*faults)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.f)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) count(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fired[f]++
}

// now is the settings in force and a channel that closes when they change.
func (p *Proxy) now() (faults, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.f, p.changed
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		if f, _ := p.now(); f.refuse {
			p.count(FaultRefuse)
			resetConn(client)
			continue
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// serve runs one connection until either end is done with it.
func (p *Proxy) serve(client net.Conn) {
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", target)
	if err != nil { // what a client of a dead server sees
		resetConn(client)
		return
	}
	c := &proxyConn{p: p, client: client, server: server, done: make(chan struct{})}
	p.mu.Lock()
	p.conns[c] = struct{}{}
	closed := p.closed
	p.mu.Unlock()
	if closed {
		c.abort()
	}
	c.run()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

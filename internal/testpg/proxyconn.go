package testpg

import (
	"bytes"
	"io"
	"net"
	"sync"
	"time"
)

// proxyConn is one client's connection and the one to the server behind it.
type proxyConn struct {
	p              *Proxy
	client, server net.Conn
	commit         sync.Mutex
	swallow        CommitCut // under commit: what happens to the server's answers
	left           int64     // under p.mu: bytes until it is reset, where CutEvery drew some
	done           chan struct{}
	end            sync.Once
}

// piece is data on its way, with the time at which it came in.
type piece struct {
	data   []byte
	commit bool // the last byte completes a COMMIT
	at     time.Time
}

// inFlight bounds the pieces (of up to pieceSize bytes) that latency can hold.
const (
	inFlight  = 64
	pieceSize = 32 << 10
)

func (c *proxyConn) run() {
	var wg sync.WaitGroup
	toServer, toClient := make(chan piece, inFlight), make(chan piece, inFlight)
	wg.Go(func() { defer close(toServer); c.readClient(toServer) })
	wg.Go(func() { defer close(toClient); c.readServer(toClient) })
	wg.Go(func() { c.write(ToServer, toServer) })
	wg.Go(func() { c.write(ToClient, toClient) })
	wg.Wait()
	c.abort()
}

// abort ends both sides with a reset.
func (c *proxyConn) abort() {
	c.end.Do(func() {
		close(c.done)
		resetConn(c.client)
		resetConn(c.server)
	})
}

// leave resets the client but lets the server read what it was sent.
func (c *proxyConn) leave() {
	c.end.Do(func() {
		close(c.done)
		resetConn(c.client)
		_ = c.server.Close()
	})
}

// resetConn closes with RST in place of FIN.
func resetConn(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// send queues a piece; false when the connection is over.
func (c *proxyConn) send(to chan<- piece, data []byte, commit bool) bool {
	select {
	case to <- piece{data: data, commit: commit, at: time.Now()}:
		return true
	case <-c.done:
		return false
	}
}

func (c *proxyConn) readServer(to chan<- piece) { c.readAll(c.server, to) }

// readAll sends what comes as it comes. Most pieces are small: only what one holds is kept.
func (c *proxyConn) readAll(r io.Reader, to chan<- piece) {
	buf := make([]byte, pieceSize)
	for {
		n, err := r.Read(buf)
		if n > 0 && !c.send(to, bytes.Clone(buf[:n]), false) {
			return
		}
		if err != nil {
			return
		}
	}
}

// write delivers pieces in one direction, under the faults in force.
func (c *proxyConn) write(d Direction, from <-chan piece) {
	out := c.server
	if d == ToClient {
		out = c.client
	}
	for pc := range from {
		if !c.hold(d, pc.at) {
			return
		}
		if !c.deliver(d, out, pc) {
			return
		}
	}
	if !c.hold(d, time.Time{}) { // the end of a stream travels like its data
		return
	}
	if tcp, ok := out.(*net.TCPConn); ok && d == ToServer && !c.silent() {
		_ = tcp.CloseWrite() // the server's last words may still come
		return
	}
	c.abort()
}

// deliver writes a piece, or does what a cut wants. False when the connection
// is over.
func (c *proxyConn) deliver(d Direction, out net.Conn, pc piece) bool {
	if d == ToClient && !c.answer() {
		return false
	}
	if pc.commit {
		c.commit.Lock() // an answer is looked at after its commit is on its way
		defer c.commit.Unlock()
		if !c.atCommit() {
			return false
		}
	}
	for data := pc.data; len(data) > 0; {
		drop := c.drop(len(data))
		pass, cut := c.p.takeBytes(c, d, drop)
		if _, err := out.Write(data[:pass]); err != nil || cut {
			c.abort()
			return false
		}
		data = data[drop:]
		c.slow(drop)
	}
	return true
}

// silent says whether the client was left without an answer for good.
func (c *proxyConn) silent() bool {
	c.commit.Lock()
	defer c.commit.Unlock()
	return c.swallow == CommitSilent
}

// answer decides about an answer of the server after a cut commit.
func (c *proxyConn) answer() bool {
	c.commit.Lock()
	how := c.swallow
	c.commit.Unlock()
	switch how {
	case CommitUnanswered:
		c.p.count(FaultCommit)
		c.leave()
		return false
	case CommitSilent:
		c.p.count(FaultCommit)
		<-c.done
		return false
	case CommitNotSent:
	}
	return true
}

// hold waits until the fault settings let data of a direction pass. False when
// the connection is over.
func (c *proxyConn) hold(d Direction, since time.Time) bool {
	counted := false
	for {
		f, changed := c.p.now()
		if f.drop[d] {
			if !counted && !since.IsZero() {
				c.p.count(heldBy(f))
				counted = true
			}
			select {
			case <-changed:
			case <-c.done:
				return false
			}
			continue
		}
		wait := f.latency - time.Since(since)
		if wait <= 0 || since.IsZero() {
			return true
		}
		c.p.count(FaultLatency)
		select {
		case <-time.After(wait):
			since = time.Time{} // but look at the other faults again
		case <-c.done:
			return false
		}
	}
}

func heldBy(f faults) Fault {
	if f.drop == [2]bool{true, true} {
		return FaultBlackHole
	}
	return FaultHalfOpen
}

// drop says how many of n bytes go at once: a slow line gives a little all the time, not much now and then.
func (c *proxyConn) drop(n int) int {
	const perSecond = 8
	if f, _ := c.p.now(); f.bandwidth > 0 {
		return min(n, int(f.bandwidth/perSecond)+1)
	}
	return n
}

// slow spends the time that n bytes need at the limited bandwidth.
func (c *proxyConn) slow(n int) {
	f, changed := c.p.now()
	if f.bandwidth <= 0 {
		return
	}
	c.p.count(FaultBandwidth)
	select {
	case <-time.After(time.Duration(int64(n) * int64(time.Second) / f.bandwidth)):
	case <-changed:
	case <-c.done:
	}
}

// atCommit decides about a COMMIT before it is forwarded; false when it is not.
func (c *proxyConn) atCommit() bool {
	switch how := c.p.takeCommit(); how {
	case CommitNotSent:
		c.p.count(FaultCommit)
		c.abort()
		return false
	case CommitUnanswered, CommitSilent:
		c.swallow = how
	}
	return true
}

package steps

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// stoodStill is a little less than the silence after which the guardian undoes the switch of a runner that it
// takes for dead.
const stoodStill = silentAfter - 2*signEvery

var errStoodStill = errors.New("this process stood still meanwhile, and may have been replaced: nothing more is sent")

// fence keeps a request of the switch from being sent by a runner that stood still, was replaced and woke up:
// what it asks for would come after its undo. A command's process group is ended from outside instead. What
// had been sent before is with the server.
type fence struct {
	transport *http.Transport
	begun     time.Time
	beat      atomic.Int64 // nanoseconds after begun
	broken    atomic.Bool
	stop      chan struct{}
}

func newFence() *fence {
	f := &fence{transport: http.DefaultTransport.(*http.Transport).Clone(), begun: time.Now(), stop: make(chan struct{})}
	dial := f.transport.DialContext
	f.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return fencedConn{Conn: conn, steady: f.steady}, nil
	}
	go func() {
		tick := time.NewTicker(signEvery)
		defer tick.Stop()
		for {
			select {
			case <-f.stop:
				return
			case <-tick.C:
				f.steady()
				f.beat.Store(int64(time.Since(f.begun)))
			}
		}
	}()
	return f
}

// steady reports whether this process has gone on all the time; once it has not, that stays so.
func (f *fence) steady() bool {
	if time.Since(f.begun)-time.Duration(f.beat.Load()) >= stoodStill {
		f.broken.Store(true)
	}
	return !f.broken.Load()
}

func (f *fence) close() {
	close(f.stop)
	f.transport.CloseIdleConnections()
}

// fencedConn writes while steady allows it.
type fencedConn struct {
	net.Conn
	steady func() bool
}

func (c fencedConn) Write(b []byte) (int, error) {
	if !c.steady() {
		return 0, errStoodStill
	}
	return c.Conn.Write(b)
}

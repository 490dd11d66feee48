package pg

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// A network that loses an answer but acknowledges what is sent (a proxy, a firewall that forgot one
// connection) is silent for ever: keepalives see nothing. But the server knows: a session whose
// process has been idle since before we began to wait will never answer, and is closed here.
const (
	watchEvery = 3 * time.Second
	silentFor  = 8 * time.Second // of waiting, before the server is asked
)

// watch keeps an eye on all connections of one side.
type watch struct {
	mu      sync.Mutex
	conns   map[*watchedConn]struct{}
	running bool
}

// watchedConn remembers who spoke last.
type watchedConn struct {
	net.Conn
	w *watch

	mu       sync.Mutex
	pid      uint32 // of the server's process; 0 is not known
	asked    time.Time
	answered time.Time
	idle     string // what the last look found, if it looked bad

	waits   bool      // for the answer to what was asked since turned
	turned  time.Time // the first question after the last answer
	trips   int       // how often it was asked, since somebody wanted to know
	fastest time.Duration
}

func newWatch() *watch { return &watch{conns: map[*watchedConn]struct{}{}} }

func (w *watch) add(conn net.Conn) net.Conn {
	c := &watchedConn{Conn: conn, w: w}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[c] = struct{}{}
	return c
}

func (c *watchedConn) Write(b []byte) (int, error) {
	c.turn()
	n, err := c.Conn.Write(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = time.Now()
	return n, err
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = time.Now()
	if took := c.answered.Sub(c.turned); c.waits && (c.fastest == 0 || took < c.fastest) {
		c.fastest = took
	}
	c.waits = false
	return n, err
}

// turn notes a question after an answer: a round trip begins.
func (c *watchedConn) turn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.waits {
		c.waits, c.turned = true, time.Now()
		c.trips++
	}
}

// Trips says how many round trips a session has made since it was asked last, and how long the fastest of them
// took, which is what the network takes. Both are 0 over a socket, which has none.
func Trips(conn *pgx.Conn) (n int, fastest time.Duration) {
	c := watched(conn)
	if c == nil {
		return 0, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, fastest = c.trips, c.fastest
	c.trips, c.fastest = 0, 0
	return n, fastest
}

// Trip measures a round trip to a session's server, not to what stands before it: the fastest of a few. It is 0 over a socket.
func Trip(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	Trips(conn)
	for range 3 {
		if err := conn.Ping(ctx); err != nil {
			return 0, err
		}
	}
	_, fastest := Trips(conn)
	return fastest, nil
}

// watched finds the connection under a session; nil is a socket, or none of ours.
func watched(conn *pgx.Conn) *watchedConn {
	under := conn.PgConn().Conn()
	if t, ok := under.(*tls.Conn); ok {
		under = t.NetConn()
	}
	c, _ := under.(*watchedConn)
	return c
}

func (c *watchedConn) Close() error {
	c.w.mu.Lock()
	delete(c.w.conns, c)
	c.w.mu.Unlock()
	return c.Conn.Close()
}

// waiting reports whether an answer is due for long, and of which process.
func (c *watchedConn) waiting() (pid uint32, yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	yes = c.pid != 0 && c.asked.After(c.answered) && time.Since(c.asked) > silentFor
	if !yes {
		c.idle = ""
	}
	return c.pid, yes
}

// belongs tells a connection which process of the server it leads to, and lets the watch begin.
func (s *Server) belongs(conn *pgx.Conn, pid uint32) {
	c := watched(conn)
	if c == nil {
		return
	}
	c.mu.Lock()
	c.pid = pid
	c.mu.Unlock()
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	if !s.watch.running {
		s.watch.running = true
		go s.watchOver()
	}
}

// watchOver looks at what waits until no connection is left.
func (s *Server) watchOver() {
	var probe *pgx.Conn
	defer func() {
		if probe != nil {
			closeQuietly(context.Background(), probe)
		}
	}()
	for {
		time.Sleep(watchEvery)
		silent, over := s.watch.silent()
		if over {
			return
		}
		if len(silent) == 0 {
			if probe != nil {
				closeQuietly(context.Background(), probe)
				probe = nil
			}
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), watchEvery)
		if probe == nil || probe.IsClosed() {
			probe, _ = s.open(ctx, Use{Name: "watch"}) // nobody answers: others find that out
		}
		if probe != nil {
			s.lookAt(ctx, probe, silent)
		}
		cancel()
	}
}

// silent gives the connections that wait; over when there is none at all.
func (w *watch) silent() (out map[uint32]*watchedConn, over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out = map[uint32]*watchedConn{}
	known := false
	for c := range w.conns {
		c.mu.Lock()
		known = known || c.pid != 0
		c.mu.Unlock()
		if pid, yes := c.waiting(); yes {
			out[pid] = c
		}
	}
	w.running = known
	return out, !known
}

// watchSQL gives for each process since when it waits for its client; empty where it works.
const watchSQL = `
SELECT pid, CASE WHEN pg_catalog."left"(state, 4) OPERATOR(pg_catalog.=) 'idle' THEN state_change::pg_catalog.text ELSE '' END
  FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.int4[])`

// lookAt closes the connections whose process is gone, or idle in the same wait at two looks.
func (s *Server) lookAt(ctx context.Context, probe *pgx.Conn, silent map[uint32]*watchedConn) {
	pids := make([]int32, 0, len(silent))
	for pid := range silent {
		pids = append(pids, int32(pid))
	}
	const gone = "gone"
	found := map[uint32]string{}
	for pid := range silent {
		found[pid] = gone
	}
	rows, err := probe.Query(ctx, watchSQL, pids)
	if err != nil {
		return
	}
	var pid int32
	var since *string
	if _, err := pgx.ForEachRow(rows, []any{&pid, &since}, func() error {
		found[uint32(pid)] = ""
		if since != nil {
			found[uint32(pid)] = *since
		}
		return nil
	}); err != nil {
		return
	}
	for pid, c := range silent {
		c.mu.Lock()
		twice := found[pid] != "" && found[pid] == c.idle && c.asked.After(c.answered)
		c.idle = found[pid]
		c.mu.Unlock()
		if twice {
			_ = c.Close() // the session's reader gets net.ErrClosed: a lost connection
		}
	}
}

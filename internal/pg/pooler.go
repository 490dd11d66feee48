package pg

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// PoolerError says that something between us and the server does not keep a session together, or
// apart from the next one.
type PoolerError struct {
	Side, Address string
	Why           string
	Leaks         bool // the next client gets a session as the last one left it
}

func (e *PoolerError) Error() string {
	if e.Leaks {
		return fmt.Sprintf("the %s at %s is behind a pooler that does not reset sessions (%s): an application that gets one of ours would write with session_replication_role = replica, and its triggers and foreign keys would not fire", e.Side, e.Address, e.Why)
	}
	return fmt.Sprintf("the %s at %s is behind a pooler in transaction or statement mode (%s): settings, locks and snapshots would go astray; connect to the server itself or to a pool in session mode", e.Side, e.Address, e.Why)
}

// Fix says what to change.
func (e *PoolerError) Fix() string {
	if e.Leaks {
		return "Give the address of the server itself in the " + e.Side + " block, or let the pooler reset each session before the next client gets it (PgBouncer: server_reset_query = DISCARD ALL, then RELOAD and RECONNECT on its console)."
	}
	return "Give the address of the server itself in the " + e.Side + " block, or of a pool in session mode."
}

const (
	poolerRounds  = 3
	poolerTimeout = 10 * time.Second
)

// proxy is what was found out about what stands between us and the server. Nobody waits for another's look,
// which may wait for a silent network: two that come first look both.
type proxy struct {
	mu       sync.Mutex
	together bool // it keeps a session together
	apart    bool // it resets a session before the next client gets it, or did not show that it does not
}

func (p *proxy) found() (together, apart bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.together, p.apart
}

func (p *proxy) find(together, apart bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.together, p.apart = p.together || together, p.apart || apart
}

// checkPooler is cheap where no proxy is in between: the process id of the connection's start is
// that of the server's process. A session of the freeze waits for no look at resets: neither side may take
// writes meanwhile, and what it gets of a session that was not reset it still sees.
func (s *Server) checkPooler(ctx context.Context, conn *pgx.Conn, use Use) error {
	pid, err := backendPID(ctx, conn)
	if err != nil {
		return err
	}
	s.belongs(conn, pid)
	if pid == conn.PgConn().PID() {
		return nil
	}
	together, apart := s.proxy.found()
	if !together {
		if err := s.probePooler(ctx, conn); err != nil {
			return err
		}
		s.proxy.find(true, false)
	}
	if apart || use.Hold {
		return s.unused(ctx, conn)
	}
	if err := s.probeReset(ctx, conn); err != nil {
		return err
	}
	s.proxy.find(true, true)
	return nil
}

// probePooler interleaves two sessions. A pool in transaction mode gives the server process that
// the first one has just left to the second one's transaction, or the first one another process. One that takes a process
// back late, after its client has heard, gives both sessions one each at first: then the process that the second one leaves
// is the next for the first one, or the one after.
func (s *Server) probePooler(ctx context.Context, a *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, poolerTimeout)
	defer cancel()
	found := func(why string) error { return &PoolerError{Side: s.cfg.Side, Address: s.Address(), Why: why} }
	b, err := s.open(ctx, Use{Name: "look for a pooler"})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return found("a second session did not get through")
		}
		return err
	}
	defer closeQuietly(ctx, b)
	first, err := backendPID(ctx, a)
	if err != nil {
		return err
	}
	for range poolerRounds {
		if err := s.probeRound(ctx, a, b, first, found); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) probeRound(ctx context.Context, a, b *pgx.Conn, first uint32, found func(string) error) error {
	if _, err := b.Exec(ctx, "BEGIN"); err != nil {
		return found("it refuses transactions: " + err.Error())
	}
	other, err := backendPID(ctx, b)
	if err != nil {
		return err
	}
	again, err := backendPID(ctx, a)
	if err != nil {
		return err
	}
	if _, err := b.Exec(ctx, "ROLLBACK"); err != nil {
		return err
	}
	if other == first {
		return found(fmt.Sprintf("two sessions got the same server process %d", other))
	}
	for n := 0; again == first; n++ {
		if n == 2 {
			return nil
		}
		if again, err = backendPID(ctx, a); err != nil {
			return err
		}
	}
	return found(fmt.Sprintf("one session moved from server process %d to %d", first, again))
}

func backendPID(ctx context.Context, conn *pgx.Conn) (uint32, error) {
	var pid uint32
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_backend_pid()", pgx.QueryExecModeExec).Scan(&pid); err != nil {
		return 0, fmt.Errorf("reading the session's process id: %w", err)
	}
	return pid, nil
}

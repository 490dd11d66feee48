package pg

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// MovedError says that a session reached another life of a side than the one that the run has seen:
// a standby was promoted, or one that still is one answers. A standby that lagged has lost commits.
type MovedError struct {
	Side     string
	Address  string
	Was, Is  int64 // timelines
	Recovery bool
}

// Error says what answered.
func (e *MovedError) Error() string {
	if e.Recovery {
		return fmt.Sprintf("the %s at %s is a standby: it is in recovery", e.Side, e.Address)
	}
	return fmt.Sprintf("the %s at %s was promoted from a standby: it is on timeline %d, the run has seen timeline %d", e.Side, e.Address, e.Is, e.Was)
}

// OnTimeline gives the same side, every session of which must be on a timeline; another one is a
// *MovedError, put into the caller's words by explain unless that is nil. 0 is any. Both servers'
// sessions count as this process's own.
func (s *Server) OnTimeline(timeline int64, explain func(*MovedError) error) *Server {
	other := s.copy()
	other.cfg.Timeline, other.explain = timeline, explain
	return other
}

const recoverySQL = "SELECT pg_catalog.pg_is_in_recovery()"

// checkPlace refuses a server that was promoted meanwhile. It looks at each new session, since a
// failover breaks the old ones.
func (s *Server) checkPlace(ctx context.Context, conn *pgx.Conn) error {
	if s.cfg.Timeline == 0 {
		return nil
	}
	moved := &MovedError{Side: s.cfg.Side, Address: s.Address(), Was: s.cfg.Timeline}
	if err := conn.QueryRow(ctx, recoverySQL, pgx.QueryExecModeExec).Scan(&moved.Recovery); err != nil {
		return fmt.Errorf("asking whether the %s is a standby: %w", s.cfg.Side, err)
	}
	if moved.Recovery {
		return s.explained(moved)
	}
	var err error
	if moved.Is, err = timeline(ctx, conn, true, false); err != nil {
		return fmt.Errorf("reading the %s's timeline: %w", s.cfg.Side, err)
	}
	if moved.Is == 0 || moved.Is == moved.Was { // 0: the right to read it was taken away
		return nil
	}
	return s.explained(moved)
}

func (s *Server) explained(moved *MovedError) error {
	if s.explain == nil {
		return moved
	}
	return s.explain(moved)
}

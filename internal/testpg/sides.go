package testpg

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Sides tries to write on both of two servers at once, all the time: with a write open on the one it
// writes on the other. Both succeeding means that two sides take writes. It rolls everything back.
type Sides struct {
	URLs  [2]string
	Probe string // the write, of one row

	refused [2]bool

	mu      sync.Mutex
	both    []string // when two sides took writes
	samples int
}

// Run samples until ctx ends.
func (s *Sides) Run(ctx context.Context) {
	var conns [2]*pgx.Conn
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close(context.WithoutCancel(ctx))
			}
		}
	}()
	for first := 0; ctx.Err() == nil; first = 1 - first {
		for i := range conns {
			if conns[i] == nil || conns[i].IsClosed() {
				conns[i] = dialSampler(ctx, s.URLs[i])
			}
		}
		if conns[0] != nil && conns[1] != nil {
			s.sample(context.WithoutCancel(ctx), conns, first)
		}
		select {
		case <-ctx.Done():
		case <-time.After(40 * time.Millisecond):
		}
	}
}

func dialSampler(ctx context.Context, url string) *pgx.Conn {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil
	}
	if _, err := conn.Exec(ctx, "SET statement_timeout = '150ms'; SET default_transaction_read_only = off; SET application_name = 'sampler'"); err != nil {
		_ = conn.Close(ctx)
		return nil
	}
	return conn
}

// sample counts the target only once it has refused a write: before, in the schema phase, nobody
// has promised anything about it.
func (s *Sides) sample(ctx context.Context, conns [2]*pgx.Conn, first int) {
	var ok [2]bool
	for _, i := range [2]int{first, 1 - first} {
		_, err := conns[i].Exec(ctx, "BEGIN; "+s.Probe)
		ok[i] = err == nil
		switch sqlState(err) {
		case readOnlyState:
			s.refused[i] = true
		case "42P01":
			s.refused[i] = false // an abort took the table away
		}
		if !ok[i] {
			break // what the other one does is its own business
		}
	}
	for _, c := range conns {
		if !c.IsClosed() && c.PgConn().TxStatus() != 'I' {
			_, _ = c.Exec(ctx, "ROLLBACK")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples++
	if ok[0] && ok[1] && s.refused[1] {
		s.both = append(s.both, fmt.Sprint(time.Now()))
	}
}

// Err says when both sides took writes, or that nobody looked.
func (s *Sides) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.both) > 0 {
		return fmt.Errorf("both sides took writes %d times, first at %s", len(s.both), s.both[0])
	}
	if s.samples == 0 {
		return errors.New("nobody looked whether one side takes writes")
	}
	return nil
}

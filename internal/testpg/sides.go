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
	// Torn, where set, gives a line for what must not be so in any state of a side that takes writes. It is asked with the
	// write open, so that the side cannot be left meanwhile.
	Torn string

	refused [2]bool

	mu      sync.Mutex
	both    []string // when two sides took writes
	samples int
	looked  [2]int // how often Torn was answered, by side
	torn    string // its first line

	again [2]time.Time // when Torn is due
}

// tornShare is the share of a sampler's time that Torn may take: what it reads grows.
const tornShare = 20

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
		if i == 0 || s.refused[1] {
			s.look(ctx, i, conns[i])
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

// look asks a side that takes writes for what must not be so.
func (s *Sides) look(ctx context.Context, side int, conn *pgx.Conn) {
	began := time.Now()
	if s.Torn == "" || began.Before(s.again[side]) {
		return
	}
	defer func() { s.again[side] = began.Add(tornShare * time.Since(began)) }()
	rows, err := conn.Query(ctx, s.Torn)
	if err != nil {
		return
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil { // its server has ended, it takes too long, or an abort took the tables away
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looked[side]++
	if len(lines) > 0 && s.torn == "" {
		s.torn = fmt.Sprintf("side %d showed at %s: %s", side, time.Now(), lines[0])
	}
}

// Looked says how often each side was seen as one that takes writes.
func (s *Sides) Looked() [2]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.looked
}

// Err says when both sides took writes, what one showed that must not be so, or that nobody looked.
func (s *Sides) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.both) > 0 {
		return fmt.Errorf("both sides took writes %d times, first at %s", len(s.both), s.both[0])
	}
	if s.torn != "" {
		return errors.New(s.torn)
	}
	if s.samples == 0 || s.Torn != "" && s.looked == [2]int{} {
		return errors.New("nobody looked whether one side takes writes")
	}
	return nil
}

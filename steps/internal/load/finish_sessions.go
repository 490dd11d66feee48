package load

import (
	"context"
	"sync"
)

// finishSessions are the sessions that finish tables, one table after the other: thousands of small
// tables do not cost thousands of connections.
type finishSessions struct {
	mu   sync.Mutex
	idle []sides
}

func (f *finishSessions) take(ctx context.Context, l *Loader) (sides, error) {
	f.mu.Lock()
	if n := len(f.idle); n > 0 {
		s := f.idle[n-1]
		f.idle = f.idle[:n-1]
		f.mu.Unlock()
		return s, nil
	}
	f.mu.Unlock()
	return l.connect(ctx, "finish")
}

// give keeps the sessions, unless they did not end well what they were taken for.
func (f *finishSessions) give(s sides, err error) {
	if err != nil || s.from.PgConn().TxStatus() != 'I' || s.to.PgConn().TxStatus() != 'I' {
		s.close()
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = append(f.idle, s)
}

func (f *finishSessions) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.idle {
		s.close()
	}
	f.idle = nil
}

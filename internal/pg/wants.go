package pg

import (
	"errors"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

// wantsKept bounds how many refusals of a side are remembered.
const wantsKept = 1000

// wants remembers what a side's server refused for want of something (class 53: disk, memory, connections): the error
// itself does not tell whose it is.
type wants struct {
	mu   sync.Mutex
	said map[string]bool
}

func wanting(err *pgconn.PgError) string { return err.Code + " " + err.Message }

// hear takes in each error of a session on its way.
func (w *wants) hear(next pgconn.PgErrorHandler) pgconn.PgErrorHandler {
	return func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		if strings.HasPrefix(err.Code, "53") {
			w.mu.Lock()
			if len(w.said) >= wantsKept || w.said == nil {
				w.said = map[string]bool{}
			}
			w.said[wanting(err)] = true
			w.mu.Unlock()
		}
		return next(conn, err)
	}
}

// Wants reports whether this side's server refused a statement with err for want of something.
func (s *Server) Wants(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	s.wants.mu.Lock()
	defer s.wants.mu.Unlock()
	return s.wants.said[wanting(pgErr)]
}

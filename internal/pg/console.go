package pg

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"
)

// ConnectConsole opens a session to a pooler's admin console. Such a console knows neither SET nor
// the extended protocol, so nothing is pinned and the plain connection is given: its Exec speaks
// the simple protocol. A silent network is noticed within 3 s.
func (s *Server) ConnectConsole(ctx context.Context) (*pgconn.PgConn, error) {
	conn, err := s.open(ctx, Use{Name: "console", Hold: true})
	if err != nil {
		return nil, err
	}
	return conn.PgConn(), nil
}

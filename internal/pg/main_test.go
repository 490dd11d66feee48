package pg

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func TestMain(m *testing.M) { testpg.Main(m) }

const testMajor = 15

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Side == "" {
		cfg.Side = "source"
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t *testing.T, s *Server, use Use) *pgx.Conn {
	t.Helper()
	conn, err := s.Connect(testContext(t), use)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(context.Background(), conn) })
	return conn
}

func run(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := conn.Exec(testContext(t), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func show(t *testing.T, conn *pgx.Conn, query string, args ...any) string {
	t.Helper()
	var s string
	if err := conn.QueryRow(testContext(t), query, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return s
}

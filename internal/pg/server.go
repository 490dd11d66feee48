package pg

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Config says how to reach one side. It may hold secrets; it has no String method on purpose and
// must not be printed.
type Config struct {
	Side                string // "source" or "target": for messages and application_name
	URL                 string
	Service             string
	InheritEnv          bool
	PasswordCommand     []string // run before each connection; its first line of output is the password
	Dir                 string   // working directory of PasswordCommand
	ReplicaRoleFunction string   // "schema.function"; empty means SET session_replication_role
	RunID               string   // part of application_name, so that a new runner finds what a dead one left
	Mark                string   // the run's token; sessions opened with Use.Marked carry it in pgrunbook.mark
}

// Server opens sessions to one side.
type Server struct {
	cfg  Config
	conf *pgx.ConnConfig
}

// Use says what a session is for. The zero value is a plain read-write session with pinned
// settings that our triggers treat like an application's.
type Use struct {
	Name        string        // what it does: "pass", "load 3"; part of application_name
	ReadOnly    bool          // default_transaction_read_only = on
	Replica     bool          // session_replication_role = replica
	Marked      bool          // our capture and gate triggers let it pass
	LockTimeout time.Duration // 0 means none; keep it below deadlock_timeout where application tables are touched
	AsyncCommit bool          // synchronous_commit = off; otherwise on
}

// New prepares a side; it does not connect.
func New(cfg Config) (*Server, error) {
	conf, err := parseConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, conf: conf}, nil
}

// Side gives "source" or "target".
func (s *Server) Side() string { return s.cfg.Side }

// Connect opens a session whose every setting that could change bytes, order or lifetime is
// pinned against what a DBA set for the role or the database.
func (s *Server) Connect(ctx context.Context, use Use) (*pgx.Conn, error) {
	conf := s.conf.Copy()
	if err := s.password(ctx, conf); err != nil {
		return nil, fmt.Errorf("getting the %s's password: %w", s.cfg.Side, err)
	}
	conf.RuntimeParams["application_name"] = s.applicationName(use)
	conn, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		return nil, fmt.Errorf("connecting to the %s at %s: %w", s.cfg.Side, s.Address(), redact(err))
	}
	if err := s.pin(ctx, conn, use); err != nil {
		_ = conn.Close(ctx)
		return nil, fmt.Errorf("preparing a session on the %s: %w", s.cfg.Side, err)
	}
	return conn, nil
}

// Address gives host:port/database, without user and password.
func (s *Server) Address() string {
	return fmt.Sprintf("%s:%d/%s", s.conf.Host, s.conf.Port, s.conf.Database)
}

// applicationName is "pgrunbook RUN NAME", cut by the server at 63 bytes.
func (s *Server) applicationName(use Use) string {
	name := "pgrunbook"
	if s.cfg.RunID != "" {
		name += " " + s.cfg.RunID
	}
	if use.Name != "" {
		name += " " + use.Name
	}
	return name
}

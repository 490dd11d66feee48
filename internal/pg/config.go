package pg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// parseConfig makes a connection config without the TLS, host and password values ever reaching
// an error text.
func parseConfig(cfg Config) (*pgx.ConnConfig, error) {
	dsn := cfg.URL
	if dsn == "" && cfg.Service != "" {
		dsn = "service=" + Literal(cfg.Service)
	}
	if dsn == "" && !cfg.InheritEnv {
		return nil, fmt.Errorf("the %s block names no server", cfg.Side)
	}
	conf, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("reading the %s's connection string: %w", cfg.Side, redact(err))
	}
	// Statements are sent without a server-side name, so that DDL in the middle of a run cannot
	// make a cached plan fail.
	conf.DefaultQueryExecMode = pgx.QueryExecModeExec
	if conf.ConnectTimeout == 0 {
		conf.ConnectTimeout = 10 * time.Second
	}
	return conf, nil
}

// password runs PasswordCommand, where there is one.
func (s *Server) password(ctx context.Context, conf *pgx.ConnConfig) error {
	if len(s.cfg.PasswordCommand) == 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, s.cfg.PasswordCommand[0], s.cfg.PasswordCommand[1:]...) //nolint:gosec // the command is the runbook's own
	cmd.Dir = s.cfg.Dir
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running %s: %w", s.cfg.PasswordCommand[0], err)
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return fmt.Errorf("%s printed no password", s.cfg.PasswordCommand[0])
	}
	conf.Password = line
	return nil
}

// redact keeps the SQLSTATE and the reason and drops what could hold the connection string.
func redact(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return errors.New("it cannot be parsed")
	}
	return err
}

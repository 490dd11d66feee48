package pg

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	resetRounds  = 6
	resetTimeout = 2 * time.Second // a pool may have no more sessions to give
)

// leftSQL gives what a session of ours, or of a probe, left of itself. A setting that was reset is empty.
const leftSQL = `SELECT pg_catalog.concat_ws(' and ',
  CASE WHEN pg_catalog.current_setting('pgrunbook.probe', true) OPERATOR(pg_catalog.<>) '' THEN 'a setting of a probe' END,
  CASE WHEN pg_catalog.current_setting('pgrunbook.mark', true) OPERATOR(pg_catalog.<>) '' THEN 'the mark of a run' END)`

// unused refuses a session that a pooler hands out as an earlier one of ours left it: what it handed to
// us, it hands to an application as well.
func (s *Server) unused(ctx context.Context, conn *pgx.Conn) error {
	var left string
	if err := conn.QueryRow(ctx, leftSQL, pgx.QueryExecModeExec).Scan(&left); err != nil {
		return fmt.Errorf("looking for what an earlier session left: %w", err)
	}
	if left == "" {
		return nil
	}
	return &PoolerError{Side: s.cfg.Side, Address: s.Address(), Leaks: true, Why: "a new session has " + left}
}

// probeReset leaves a harmless setting in a session and opens others until one has the same server
// process. Where none gets it, every later session is looked at by unused.
func (s *Server) probeReset(ctx context.Context, conn *pgx.Conn) error {
	if err := s.unused(ctx, conn); err != nil {
		return err
	}
	left, pid, err := s.another(ctx)
	if left == nil {
		return err
	}
	_, err = left.Exec(ctx, "SET pgrunbook.probe = 'left'")
	closeQuietly(ctx, left)
	if err != nil {
		return fmt.Errorf("looking whether the pooler resets sessions: %w", err)
	}
	for range resetRounds {
		next, other, err := s.another(ctx)
		if next == nil {
			return err
		}
		defer closeQuietly(ctx, next) // not before the last round: the next one would get the same session
		if err := s.unused(ctx, next); err != nil {
			_, resetErr := next.Exec(ctx, "RESET pgrunbook.probe")
			return errors.Join(err, resetErr)
		}
		if other == pid {
			return nil
		}
	}
	return nil
}

// another opens one more session, and gives the process that serves it. No session and no error: there is none to
// be had now.
func (s *Server) another(ctx context.Context) (*pgx.Conn, uint32, error) {
	bounded, cancel := context.WithTimeout(ctx, resetTimeout)
	defer cancel()
	conn, err := s.open(bounded, Use{Name: "look for a pooler"})
	var pid uint32
	if err == nil {
		if pid, err = backendPID(bounded, conn); err == nil {
			return conn, pid, nil
		}
		closeQuietly(ctx, conn)
	}
	if full(err) || errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, 0, nil
	}
	return nil, 0, err
}

// fullWords are how PgBouncer says, with the SQLSTATE of all its errors, that it or the server behind it has no room.
var fullWords = []string{"no more connections allowed", "client connections exceeded", "query_wait_timeout", "too many"}

// full reports whether there is no room for one more session.
func full(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	return pgErr.Code == "53300" || pgErr.Code == "08P01" && slices.ContainsFunc(fullWords, func(words string) bool { return strings.Contains(pgErr.Message, words) })
}

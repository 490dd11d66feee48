package pass

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// passing says whether an error goes away by itself: a lock that was not to be had, a
// serialization failure, a deadlock, a server that restarts, a lost connection
// (https://www.postgresql.org/docs/current/errcodes-appendix.html).
func passing(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	switch state := sqlState(err); {
	case state == "55P03", state == "40001", state == "40P01":
		return true
	case strings.HasPrefix(state, "08"), state == "57P01", state == "57P02", state == "57P03", state == "53300":
		return true
	case state != "":
		return false
	}
	var netErr net.Error
	var connectErr *pgconn.ConnectError
	return errors.As(err, &netErr) || errors.As(err, &connectErr) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || pgconn.SafeToRetry(err) ||
		strings.Contains(err.Error(), "conn closed")
}

// clashes says whether an upsert failed for a reason that deleting all keys first removes: values
// that moved between rows (unique, exclusion), an identity column that may not be updated, a
// deferrable key that cannot arbitrate, a row that would change its partition.
func clashes(err error) bool {
	switch sqlState(err) {
	case "23505", "23P01", "428C9", "55000", "0A000":
		return true
	}
	return false
}

// forGood says whether a clash will be there in every pass.
func forGood(err error) bool { return sqlState(err) == "428C9" || sqlState(err) == "55000" }

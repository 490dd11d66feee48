package pg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// SQLState gives the five characters of PostgreSQL's error code, or "" where the server said
// nothing (https://www.postgresql.org/docs/current/errcodes-appendix.html).
func SQLState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// passing are the states that go away by themselves.
var passing = []string{
	"40001", // serialization_failure
	"40P01", // deadlock_detected
	"55P03", // lock_not_available
	"57P01", // admin_shutdown
	"57P02", // crash_shutdown
	"57P03", // cannot_connect_now
	"53300", // too_many_connections
	"72000", // snapshot_too_old
}

// IsConnLost reports that the session is gone and the outcome of what ran in it unknown. A
// context that was cancelled is not a lost connection.
func IsConnLost(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code[:2] == "08" || slices.Contains([]string{"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}, pgErr.Code)
	}
	var netErr net.Error
	return errors.Is(err, ErrAlone) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.As(err, &netErr) || isErrno(err)
}

func isErrno(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ETIMEDOUT)
}

// Retryable reports that the same statement, sent again in a new transaction or on a new session,
// may succeed.
func Retryable(err error) bool {
	if state := SQLState(err); state != "" {
		return slices.Contains(passing, state) || state[:2] == "08"
	}
	return IsConnLost(err)
}

// Canceled reports that somebody ended the statement and left the session alone: an administrator, or a timeout,
// of which our sessions have none. What can be repeated is; whoever wants a run to stop stops its runner.
func Canceled(err error) bool { return SQLState(err) == "57014" }

// Vanished reports that a catalog function came upon something that was dropped while it looked. The
// catalogs are read in a snapshot, functions look at what is there now; they raise XX000 (internal_error)
// or, with a name, an undefined object.
func Vanished(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	return pgErr.Code == "XX000" && (strings.HasPrefix(pgErr.Message, "cache lookup failed") || strings.HasPrefix(pgErr.Message, "could not open relation") || strings.HasPrefix(pgErr.Message, "could not find tuple"))
}

// RetryEvent is one failed try that will be repeated.
type RetryEvent struct {
	What     string
	Try      int // the one that failed, from 1
	Wait     time.Duration
	SQLState string
	Err      error
}

// Retrier bounds and reports retries.
type Retrier struct {
	Tries   int           // Defaults to 8
	Elapsed time.Duration // longest time over all tries, what they take included. Defaults to 2 min; below 0: only Tries bound it
	Report  func(RetryEvent)
	Also    func(error) bool // errors that pass beside those that are Retryable; may be nil
}

const (
	retryTries   = 8
	retryElapsed = 2 * time.Minute
	retryFirst   = 100 * time.Millisecond
	retryLongest = 15 * time.Second
)

// Retry repeats fn after errors that pass by themselves, with the default bounds and no report.
func Retry(ctx context.Context, what string, fn func(context.Context) error) error {
	return Retrier{}.Do(ctx, what, fn)
}

// Do repeats fn after errors that are Retryable. fn must be safe to repeat: a COMMIT whose answer
// was lost is not, its outcome has to be looked up.
func (r Retrier) Do(ctx context.Context, what string, fn func(context.Context) error) error {
	if r.Tries <= 0 {
		r.Tries = retryTries
	}
	if r.Elapsed == 0 {
		r.Elapsed = retryElapsed
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = retryFirst, retryLongest
	try := 0
	op := func() (struct{}, error) {
		try++
		err := fn(ctx)
		if err != nil && !Retryable(err) && (r.Also == nil || !r.Also(err)) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}
	notify := func(err error, next time.Duration) {
		if r.Report != nil {
			r.Report(RetryEvent{What: what, Try: try, Wait: next, SQLState: SQLState(err), Err: err})
		}
	}
	_, err := backoff.Retry(ctx, op, backoff.WithBackOff(wait), backoff.WithMaxTries(uint(r.Tries)),
		backoff.WithMaxElapsedTime(max(r.Elapsed, 0)), backoff.WithNotify(notify))
	if err == nil {
		return nil
	}
	if try > 1 {
		return fmt.Errorf("%s (%d tries): %w", what, try, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

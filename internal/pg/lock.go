package pg

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Etiquette says how DDL on an application's tables waits: never long enough that the
// application queues behind us, or becomes the victim of a deadlock with us.
type Etiquette struct {
	Object      string   // for messages: "public.orders"
	Relations   []uint32 // whose locks can be in the way
	Mode        LockMode // the strongest that fn takes. Defaults to ShareRowExclusive
	LockTimeout time.Duration
	GiveUp      time.Duration // over all attempts. Defaults to 10 min
	Report      func(LockWait)
	// Look finds who is in the way, after an attempt. Defaults to whose locks on Relations conflict
	// with Mode.
	Look func(ctx context.Context, conn *pgx.Conn) ([]Blocker, error)
}

// LockWait is one attempt that did not get its lock.
type LockWait struct {
	Object   string
	Attempt  int
	Waited   time.Duration // since the first attempt
	Next     time.Duration // until the next one
	Blockers []Blocker
}

// LockError says that a lock was not to be had in the time given.
type LockError struct {
	Object   string
	Waited   time.Duration
	Blockers []Blocker
	Err      error // the last attempt's, with its SQLSTATE
}

// Error names who was in the way last.
func (e *LockError) Error() string {
	if len(e.Blockers) == 0 {
		return fmt.Sprintf("no lock on %s within %s: %v", e.Object, e.Waited.Round(time.Second), e.Err)
	}
	names := make([]string, 0, len(e.Blockers))
	for _, b := range e.Blockers {
		names = append(names, b.String())
	}
	return fmt.Sprintf("no lock on %s within %s, in the way: %s", e.Object, e.Waited.Round(time.Second), strings.Join(names, "; "))
}

// Unwrap gives the last attempt's error.
func (e *LockError) Unwrap() error { return e.Err }

const (
	lockTimeout   = 300 * time.Millisecond
	lockGiveUp    = 10 * time.Minute
	lockFirstWait = 200 * time.Millisecond
	lockLongWait  = 10 * time.Second
	// An autovacuum is cancelled when a waiter's deadlock_timeout fires; the rest is for its going.
	vacuumGrace = 300 * time.Millisecond
)

// WithLock runs fn in one transaction whose lock_timeout is short, and again with growing, random
// pauses while others are in the way. fn must be safe to repeat. What others hold is reported
// after each attempt; a *LockError carries it when the time is over.
func WithLock(ctx context.Context, conn *pgx.Conn, e Etiquette, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return e.patiently(ctx, conn, func(timeout time.Duration) error { return lockedOnce(ctx, conn, timeout, fn) })
}

// WithSessionLock is WithLock for statements that make their own transactions. The session's own
// lock_timeout is what it was afterwards.
func WithSessionLock(ctx context.Context, conn *pgx.Conn, e Etiquette, fn func(ctx context.Context) error) error {
	var own string
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.current_setting('lock_timeout')").Scan(&own); err != nil {
		return fmt.Errorf("reading lock_timeout: %w", err)
	}
	set := func(ctx context.Context, timeout string) error {
		if _, err := conn.Exec(ctx, "SET lock_timeout = "+Literal(timeout)); err != nil {
			return fmt.Errorf("setting lock_timeout: %w", err)
		}
		return nil
	}
	return e.patiently(ctx, conn, func(timeout time.Duration) error {
		if err := set(ctx, strconv.FormatInt(timeout.Milliseconds(), 10)); err != nil {
			return err
		}
		err := fn(ctx)
		if conn.IsClosed() {
			return err
		}
		return errors.Join(err, set(context.WithoutCancel(ctx), own))
	})
}

// patiently repeats attempts that did not get their lock.
func (e Etiquette) patiently(ctx context.Context, conn *pgx.Conn, once func(timeout time.Duration) error) error {
	e = e.withDefaults()
	deadlock, err := deadlockTimeout(ctx, conn)
	if err != nil {
		return err
	}
	patience := belowDeadlock(e.LockTimeout, deadlock)
	start, wait := time.Now(), lockFirstWait
	outwaited := map[int32]bool{} // autovacuum workers that had their one long attempt
	timeout := patience
	for attempt := 1; ; attempt++ {
		err := once(timeout)
		if state := SQLState(err); state != "55P03" && state != "40P01" {
			return err
		}
		blockers, lookErr := e.Look(ctx, conn)
		if lookErr != nil {
			return errors.Join(err, lookErr)
		}
		waited := time.Since(start)
		if waited >= e.GiveUp && (len(blockers) == 0 || slices.ContainsFunc(blockers, Blocker.Foreign)) { // a build of ours may take hours
			return &LockError{Object: e.Object, Waited: waited, Blockers: blockers, Err: err}
		}
		timeout = patience
		next := wait/2 + rand.N(wait/2+1)
		if cancellable(blockers, outwaited) {
			timeout, next = deadlock+vacuumGrace, 0
		}
		if e.Report != nil {
			e.Report(LockWait{Object: e.Object, Attempt: attempt, Waited: waited, Next: next, Blockers: blockers})
		}
		if err := sleep(ctx, next); err != nil {
			return err
		}
		wait = min(wait*2, lockLongWait)
	}
}

func (e Etiquette) withDefaults() Etiquette {
	if e.Mode == "" {
		e.Mode = ShareRowExclusive
	}
	if e.LockTimeout <= 0 {
		e.LockTimeout = lockTimeout
	}
	if e.GiveUp <= 0 {
		e.GiveUp = lockGiveUp
	}
	if e.Look == nil {
		mode, relations := e.Mode, e.Relations
		e.Look = func(ctx context.Context, conn *pgx.Conn) ([]Blocker, error) {
			return Blockers(ctx, conn, mode, relations...)
		}
	}
	return e
}

// lockedOnce is one attempt.
func lockedOnce(ctx context.Context, conn *pgx.Conn, timeout time.Duration, fn func(context.Context, pgx.Tx) error) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	defer func() {
		rollbackCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = tx.Rollback(rollbackCtx) // after a commit it does nothing
	}()
	if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = "+strconv.FormatInt(timeout.Milliseconds(), 10)); err != nil {
		return fmt.Errorf("setting lock_timeout: %w", err)
	}
	if err := fn(ctx, tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// cancellable reports that all who are in the way are autovacuum workers that yield to a waiter,
// and notes them: each gets one long attempt.
func cancellable(blockers []Blocker, outwaited map[int32]bool) bool {
	for _, b := range blockers {
		if !b.Autovacuum || b.Wraparound || outwaited[b.PID] {
			return false
		}
	}
	for _, b := range blockers {
		outwaited[b.PID] = true
	}
	return len(blockers) > 0
}

// Foreign reports that it is no session of ours.
func (b Blocker) Foreign() bool { return !strings.HasPrefix(b.Application, "pgrunbook ") }

// deadlockSQL reads one setting: the view of all of them costs a server a millisecond, for each object
// that is made.
const deadlockSQL = `
SELECT (pg_catalog.date_part('epoch', pg_catalog.current_setting('deadlock_timeout')::pg_catalog.interval)
       OPERATOR(pg_catalog.*) 1000::pg_catalog.float8)::pg_catalog.int8`

func deadlockTimeout(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	var ms int64
	err := conn.QueryRow(ctx, deadlockSQL).Scan(&ms)
	if err != nil {
		return 0, fmt.Errorf("reading deadlock_timeout: %w", err)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// belowDeadlock cuts a lock_timeout: whoever waits for less than deadlock_timeout gives way before the server looks
// for a victim. It is never 0, which would be for ever.
func belowDeadlock(timeout, deadlock time.Duration) time.Duration {
	return max(min(timeout, deadlock*3/5), time.Millisecond)
}

// LockTimeout sets a session's lock_timeout to at most that long, and below the server's deadlock_timeout: nobody
// else becomes the victim of a deadlock with the session.
func LockTimeout(ctx context.Context, conn *pgx.Conn, most time.Duration) error {
	deadlock, err := deadlockTimeout(ctx, conn)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "SET lock_timeout = "+strconv.FormatInt(belowDeadlock(most, deadlock).Milliseconds(), 10)); err != nil {
		return fmt.Errorf("setting lock_timeout: %w", err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

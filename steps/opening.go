package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const (
	// openTry is how long one try to open a side waits for a lock. Below deadlock_timeout, and short, since
	// the application's reads queue behind it.
	openTry = 250 * time.Millisecond
	// openPatience is how long tries are repeated before the error names who is in the way. It is below
	// settleTry: whoever must end the flip looks at both gates again, and goes on.
	openPatience = 3 * time.Second
)

// openingLocks is how a process that ends a flip asks for the locks that the statements at the opening need.
// Neither side takes writes meanwhile. So a session that is in the way for longer than one try is ended,
// as those with an old snapshot are before a flip; who must not or may not be ended is named.
func openingLocks(env *Env, emit interface{ Emit(engine.Event) }, side engine.Side, statements []string) pg.Etiquette {
	return pg.Etiquette{
		Object: "what gets its mode at the opening of the " + string(side), LockTimeout: openTry, GiveUp: openPatience,
		Report: waiting(emit, side, "open the "+string(side)),
		Look: func(ctx context.Context, conn *pgx.Conn) ([]pg.Blocker, error) {
			found, err := inTheWay(ctx, conn, env.Scope, statements)
			if err != nil {
				return nil, err
			}
			flag, err := flagInTheWay(ctx, conn)
			if err != nil {
				return nil, err
			}
			found = append(found, flag...)
			return slices.DeleteFunc(found, func(b pg.Blocker) bool { return endBlocker(ctx, conn, emit, side, b) }), nil
		},
	}
}

// flagInTheWay names who keeps ALTER SEQUENCE from the gate's flag: a transaction that read pg_sequences
// keeps a lock on each of them.
func flagInTheWay(ctx context.Context, conn *pgx.Conn) ([]pg.Blocker, error) {
	var oid uint32
	if err := conn.QueryRow(ctx, "SELECT 'pgrunbook.gate_flag'::regclass::oid").Scan(&oid); err != nil {
		return nil, fmt.Errorf("looking for the gate's flag: %w", err)
	}
	return pg.Blockers(ctx, conn, pg.ShareRowExclusive, oid)
}

// endBlocker ends who has kept a side closed, if it may, and says so.
func endBlocker(ctx context.Context, conn *pgx.Conn, emit interface{ Emit(engine.Event) }, side engine.Side, b pg.Blocker) bool {
	if !b.Granted || !b.Foreign() || b.PID == 0 || b.Autovacuum || b.Wraparound || b.XactAge < openTry {
		return false
	}
	var ended bool
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_terminate_backend($1)", b.PID).Scan(&ended); err != nil || !ended {
		return false // it is named then
	}
	emit.Emit(engine.Event{
		Kind: engine.EventWaiting, Level: "warn", Reason: "lock", Blockers: []string{b.String()},
		Message: fmt.Sprintf("ended on the %s, which could not be opened while neither side takes writes: %s", side, b),
	})
	return true
}

// unopened says what to type when somebody who cannot be ended keeps a side closed.
func unopened(side engine.Side, err error) error {
	var blocked *pg.LockError
	if !errors.As(err, &blocked) {
		return err
	}
	return &engine.Error{
		Op: "opening the", Object: string(side), Err: err,
		Hint: "Neither side takes writes until then: " + scope.WaitOrEnd(side, blocked.Blockers) + ". Then run the same command again.",
	}
}

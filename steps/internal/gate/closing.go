package gate

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/pooler"
)

// ClosedSQL goes with the COMMIT that closes a side; its parameter is a Note as JSON. OpenedSQL
// goes with the one that opens it.
const (
	ClosedSQL = `UPDATE pgrunbook.side SET closed = pg_catalog.clock_timestamp(), note = $1::jsonb, given_up = NULL`
	OpenedSQL = `UPDATE pgrunbook.side SET closed = NULL, note = NULL, given_up = NULL`
	givenUp   = `UPDATE pgrunbook.side SET given_up = pg_catalog.clock_timestamp()`
)

// CloseByHand and OpenByHand are for psql, in any session: one of a side that was left begins read-only. They wait for writers
// in flight.
const (
	CloseByHand = byHand + "1; COMMIT;"
	OpenByHand  = byHand + "0; COMMIT;"
	byHand      = "BEGIN READ WRITE; SELECT pg_advisory_xact_lock(gate_key) FROM pgrunbook.side; ALTER SEQUENCE pgrunbook.gate_flag RESTART "
)

// Note is what the flip that closed a side leaves there: the journal may be gone with the other one.
type Note struct {
	Epoch   int64           `json:"epoch"`
	To      string          `json:"to"`                // address of the side that took over, without a password
	Changes []pooler.Change `json:"changes,omitempty"` // of the poolers' files
}

// Closing is what a side knows of the flip that closed it. It is zero where a person closed it.
type Closing struct {
	Note
	At      time.Time // by the side's own clock
	GivenUp time.Time // when it was opened without the other side
	Carried time.Time // up to when, by the other side's clock, reverse passes have carried its commits back
	Pass    string
}

// closingSQL leaves out passes of an earlier way back: each runner has a higher epoch than the
// flip that it came after.
const closingSQL = `
SELECT s.closed, coalesce(s.note::text, '{}'), s.given_up, w.at, coalesce(w.pass::text, '')
  FROM pgrunbook.side s
  LEFT JOIN pgrunbook.watermark w ON w.from_side = $1 AND w.epoch > (s.note ->> 'epoch')::int8`

// ReadClosing reads it on a side; other is the side that took over.
func ReadClosing(ctx context.Context, conn *pgx.Conn, other string) (Closing, error) {
	var c Closing
	var closed, up, carried *time.Time
	var note string
	err := conn.QueryRow(ctx, closingSQL, other).Scan(&closed, &note, &up, &carried, &c.Pass)
	if err == nil {
		err = json.Unmarshal([]byte(note), &c.Note)
	}
	if err != nil {
		return c, fmt.Errorf("reading what the flip left: %w", err)
	}
	for _, t := range []struct {
		from *time.Time
		to   *time.Time
	}{{closed, &c.At}, {up, &c.GivenUp}, {carried, &c.Carried}} {
		if t.from != nil {
			*t.to = t.from.UTC()
		}
	}
	return c, nil
}

// OpenAlone opens a closed gate without the other side, and remembers that it was given up. more
// runs in the same transaction, with the key in hand.
func OpenAlone(ctx context.Context, conn *pgx.Conn, key int64, more func(ctx context.Context) error) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return fmt.Errorf("opening the gate: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	for _, sql := range []string{
		"SET LOCAL synchronous_commit = on",
		fmt.Sprintf("SET LOCAL lock_timeout = %d", setTries*setWait.Milliseconds()), // those who wait are refused anyway
		fmt.Sprintf("ALTER SEQUENCE pgrunbook.gate_flag RESTART %d", flagOpen),
		fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", key),
		givenUp,
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("opening the gate: %w", err)
		}
	}
	if err := more(ctx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("opening the gate: %w", err)
	}
	return nil
}

// IsOpen reads the gate in a transaction of the caller's, and keeps it so until that ends.
func IsOpen(ctx context.Context, tx pgx.Tx, key int64) (bool, error) {
	var flag int64
	_, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock_shared($1)", key)
	if err == nil {
		err = tx.QueryRow(ctx, "SELECT last_value FROM pgrunbook.gate_flag").Scan(&flag)
	}
	if err != nil {
		return false, fmt.Errorf("reading the gate: %w", err)
	}
	return flag == flagOpen, nil
}

// OpenIn opens a closed gate in a transaction of the caller's, which has taken its locks on tables: a
// client that waits for the key holds its table.
func OpenIn(ctx context.Context, tx pgx.Tx, key int64) error {
	for _, sql := range []string{
		OpenedSQL,
		fmt.Sprintf("ALTER SEQUENCE pgrunbook.gate_flag RESTART %d", flagOpen),
		fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", key),
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("opening the gate: %w", err)
		}
	}
	return nil
}

// KeepClosed takes a closed gate's key until release, so that nobody can open it meanwhile. It
// reports false where the gate is not closed.
func KeepClosed(ctx context.Context, conn *pgx.Conn, key int64) (release func(), closed bool, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, false, err
	}
	release = func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }
	var flag int64
	if _, err = tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", key); err == nil {
		err = tx.QueryRow(ctx, "SELECT last_value FROM pgrunbook.gate_flag").Scan(&flag)
	}
	if err != nil || flag == flagOpen {
		release()
		return nil, false, err
	}
	return release, true, nil
}

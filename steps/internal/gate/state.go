package gate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Position of a gate.
type Position string

// A held gate makes writers wait; a closed one refuses them. Absent means that no gate was made.
const (
	Open   Position = "open"
	Held   Position = "held"
	Closed Position = "closed"
	Absent Position = "absent"
)

// State reads where the gate stands. The flag counts only with the key in hand: a COMMIT that
// waits for a standby shows the old flag and keeps the key, so that is Held.
func State(ctx context.Context, conn *pgx.Conn, run scope.Run) (Position, error) {
	var there bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('pgrunbook.gate_flag') IS NOT NULL").Scan(&there); err != nil {
		return "", fmt.Errorf("looking for the gate: %w", err)
	}
	if !there {
		return Absent, nil
	}
	position := Held
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		var got bool
		if err := tx.QueryRow(ctx, "SELECT pg_try_advisory_xact_lock_shared($1)", run.GateKey).Scan(&got); err != nil || !got {
			return err
		}
		var flag int64
		if err := tx.QueryRow(ctx, "SELECT last_value FROM pgrunbook.gate_flag").Scan(&flag); err != nil {
			return err
		}
		position = Closed
		if flag == flagOpen {
			position = Open
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("reading the gate: %w", err)
	}
	return position, nil
}

// marksSQL gives a number for each of the gate's triggers, and for its function, that is another one once somebody
// has touched it: one that was off for a moment has another xmin.
const marksSQL = `
WITH m AS (
  SELECT tgrelid AS rel, oid::int8 + xmin::text::int8 + ascii(tgenabled::text) AS mark FROM pg_trigger WHERE tgname = '!pgrunbook_gate'
  UNION ALL
  SELECT 0::oid, xmin::text::int8 FROM pg_proc WHERE oid = to_regprocedure('pgrunbook.gate()'))`

// Marks tell the gate's triggers and its function as they were once.
type Marks struct {
	sum  int64
	each map[uint32]int64 // by table; the function's is 0
}

// ReadMarks reads them on every table at once.
func ReadMarks(ctx context.Context, conn *pgx.Conn) (Marks, error) {
	m := Marks{each: map[uint32]int64{}}
	rows, err := conn.Query(ctx, marksSQL+" SELECT rel, mark FROM m")
	if err != nil {
		return m, fmt.Errorf("looking at the gate's triggers: %w", err)
	}
	var rel uint32
	var mark int64
	_, err = pgx.ForEachRow(rows, []any{&rel, &mark}, func() error {
		m.each[rel] = mark
		m.sum += mark
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("looking at the gate's triggers: %w", err)
	}
	return m, nil
}

// Changed names the tables whose gate somebody has touched since, however briefly.
func (m Marks) Changed(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	var sum int64
	err := conn.QueryRow(ctx, marksSQL+" SELECT coalesce(sum(mark), 0)::int8 FROM m").Scan(&sum)
	if err != nil || sum == m.sum {
		return nil, err
	}
	now, err := ReadMarks(ctx, conn)
	if err != nil {
		return nil, err
	}
	var rels []uint32
	for rel, mark := range m.each {
		if now.each[rel] != mark {
			rels = append(rels, rel)
		}
	}
	for rel := range now.each {
		if _, known := m.each[rel]; !known {
			rels = append(rels, rel)
		}
	}
	rows, err := conn.Query(ctx, "SELECT CASE WHEN rel = 0 THEN 'function pgrunbook.gate()' ELSE rel::regclass::text END FROM unnest($1::oid[]) AS u (rel) ORDER BY 1", rels)
	if err != nil {
		return nil, fmt.Errorf("looking at the gate's triggers: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("looking at the gate's triggers: %w", err)
	}
	return names, nil
}

// CloseNow closes a gate outside a freeze, in a transaction of its own: for a target in the schema
// phase, which says that it is not open yet. It waits for writers in flight. conn is outside a
// transaction.
func CloseNow(ctx context.Context, conn *pgx.Conn, run scope.Run) error {
	return set(ctx, conn, run, notYet)
}

// OpenNow opens a gate outside a flip. The caller knows that the other side is closed, or that
// there is none.
func OpenNow(ctx context.Context, conn *pgx.Conn, run scope.Run) error {
	return set(ctx, conn, run, flagOpen)
}

const (
	setTries = 40
	setWait  = 250 * time.Millisecond // longest queueing for the key: later writers queue behind us
)

// set flips the flag by ALTER SEQUENCE, which is transactional and durable also under asynchronous
// commits (a dropped file forces the flush); setval is neither.
func set(ctx context.Context, conn *pgx.Conn, run scope.Run, flag int) error {
	for try := 1; ; try++ {
		err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
			for _, sql := range []string{
				fmt.Sprintf("SET LOCAL lock_timeout = %d", setWait.Milliseconds()),
				"SET LOCAL synchronous_commit = on",
				fmt.Sprintf("ALTER SEQUENCE pgrunbook.gate_flag RESTART %d", flag),
			} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", run.GateKey)
			failpoint.Hit("gate.setting")
			return err
		})
		var pgErr *pgconn.PgError
		if err == nil {
			failpoint.Hit("gate.set")
			return nil
		}
		if !errors.As(err, &pgErr) || pgErr.Code != "55P03" || try == setTries {
			return fmt.Errorf("setting the gate's flag to %d: %w", flag, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(setWait):
		}
	}
}

// Refused counts the writes that a closed gate refused on this side.
func Refused(ctx context.Context, conn *pgx.Conn) (int64, error) {
	var n int64
	err := conn.QueryRow(ctx, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM pgrunbook.refused").Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting refused writes: %w", err)
	}
	return n, nil
}

// Disarm frees the application at once, without a lock on any table: the function becomes a no-op.
// Remove, or Install again, is the next act.
func Disarm(ctx context.Context, conn *pgx.Conn) error {
	var there bool
	if err := conn.QueryRow(ctx, "SELECT to_regprocedure('pgrunbook.gate()') IS NOT NULL").Scan(&there); err != nil {
		return fmt.Errorf("looking for the gate: %w", err)
	}
	if !there {
		return nil
	}
	if _, err := conn.Exec(ctx, noopSQL); err != nil {
		return fmt.Errorf("disarming the gate: %w", err)
	}
	return nil
}

// NotOpen refuses, in a transaction that writes rows of the other side, a side whose gate is open: its
// own writes would be written over.
func NotOpen(ctx context.Context, tx pgx.Tx) error {
	var flag int64
	if err := tx.QueryRow(ctx, "SELECT last_value FROM pgrunbook.gate_flag").Scan(&flag); err != nil {
		return fmt.Errorf("looking at the gate: %w", err)
	}
	if flag == 0 {
		return engine.Errorf(engine.ClassAmbiguous, "Close one side at once (docs/what-if.md, two writable sides), then compare: pgrunbook verify", "the gate of the side that is written to is open: two sides may take writes")
	}
	return nil
}

// Remove disarms the gate, takes its trigger off one relation per transaction, and drops what is
// left of it, and the schema when it is then empty. It may be called again after any death.
func Remove(ctx context.Context, srv *pg.Server, run scope.Run, onWait capture.OnWait) error {
	conn, err := srv.Connect(ctx, pg.Use{Name: "gate"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	there, err := capture.Owned(ctx, conn, run)
	if err != nil || !there {
		return err
	}
	if err := capture.RemoveTriggers(ctx, conn, run, "^gate$", onWait); err != nil {
		return err
	}
	failpoint.Hit("gate.untriggered")
	for _, name := range []string{"gate_flag", "refused"} {
		if err := capture.DropOurs(ctx, conn, run, "SEQUENCE", name, onWait); err != nil {
			return err
		}
	}
	failpoint.Hit("gate.removed")
	return capture.DropSchema(ctx, conn, run)
}

// RemoveStatement is the one statement that takes off what finish leaves on the source: schema
// pgrunbook with the closed gate and all its triggers. It locks every table in scope at once.
func RemoveStatement() string { return "DROP SCHEMA pgrunbook CASCADE" }

package steps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
)

// standbyWait is how long a standby may take to get what its primary has just committed.
const (
	standbyWait = 2 * time.Second
	lagWait     = 250 * time.Millisecond // status has more to answer
)

// behindSQL lists the standbys that have not got a place in the log: those that are connected, and
// those whose slot waits for them. What a standby has written and not flushed a crash may take from it.
// Subscribers and backups are none; without pg_read_all_stats a role sees that somebody is there, and no more.
const behindSQL = `
SELECT CASE WHEN r.state IS NULL THEN 'pid ' || r.pid || ' (how far it is cannot be seen: GRANT pg_read_all_stats TO ' || quote_ident(current_user) || ')'
       ELSE coalesce(nullif(r.application_name, ''), 'pid ' || r.pid) || ' (' || r.state || coalesce(', ' || pg_size_pretty($1::pg_lsn - r.flush_lsn) || ' behind', '') || ')' END
  FROM pg_stat_replication r
 WHERE r.state IS DISTINCT FROM 'backup' AND (r.flush_lsn IS NULL OR r.flush_lsn < $1::pg_lsn)
   AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
UNION ALL
SELECT slot_name || ' (its slot waits for it)' FROM pg_replication_slots
 WHERE slot_type = 'physical' AND NOT active AND restart_lsn < $1::pg_lsn
 ORDER BY 1`

// behind names the standbys that do not get to a position within a moment. Without one it is what is
// committed by now.
func behind(ctx context.Context, conn *pgx.Conn, position string, wait time.Duration) (names []string, err error) {
	if position == "" {
		if position, err = logPosition(ctx, conn); err != nil {
			return nil, err
		}
	}
	for deadline := time.Now().Add(wait); ; {
		rows, err := conn.Query(ctx, behindSQL, position)
		if err != nil {
			return nil, err
		}
		if names, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(names) == 0 || time.Now().After(deadline) {
			return names, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// logPosition is where a side's log ends: what is committed has an earlier one.
func logPosition(ctx context.Context, conn *pgx.Conn) (position string, err error) {
	err = conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&position)
	return position, err
}

// standbys names those of the old side that could be promoted open: without the COMMIT that closes it.
// They stop nothing, since a standby may lag on purpose.
func (f *flipper) standbys(ctx context.Context, flipped bool) error {
	position, err := logPosition(ctx, f.looks.of(f.from))
	if err == nil && flipped { // for status, since the old side's log grows on
		err = f.env.Journal.SaveClosed(ctx, position)
	}
	if err != nil {
		return fmt.Errorf("looking for standbys of the %s: %w", f.from, err)
	}
	names, err := behind(ctx, f.looks.of(f.from), position, standbyWait)
	if err != nil {
		return fmt.Errorf("looking for standbys of the %s: %w", f.from, err)
	}
	if len(names) == 0 {
		return nil
	}
	text := fmt.Sprintf("standbys of the %s lag: %s. Promoted without the COMMIT that closes the %s, one would take writes", f.from, strings.Join(names, ", "), f.from)
	fix := "Let them catch up before the cutover, or see to it that none of them is promoted after it."
	if flipped {
		text = fmt.Sprintf("standbys of the %s do not have the COMMIT that closed it yet: %s. Promoted now, one would take writes", f.from, strings.Join(names, ", "))
		fix = "Promote none of them before it has caught up."
	}
	f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: text, Finding: &engine.Finding{
		Code: "CUT003", Severity: engine.SeverityWarning, Side: f.from, Text: text, Fix: fix,
	}})
	return nil
}

package pg

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// LockMode is a table-level lock mode
// (https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES).
type LockMode string

// The modes that we take.
const (
	AccessShare          LockMode = "AccessShareLock"
	RowExclusive         LockMode = "RowExclusiveLock"
	ShareUpdateExclusive LockMode = "ShareUpdateExclusiveLock"
	ShareRowExclusive    LockMode = "ShareRowExclusiveLock"
	AccessExclusive      LockMode = "AccessExclusiveLock"
)

// conflicts is the documentation's table "Conflicting Lock Modes" for our modes.
var conflicts = map[LockMode][]string{
	AccessShare:          {"AccessExclusiveLock"},
	RowExclusive:         {"ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"},
	ShareUpdateExclusive: {"ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"},
	ShareRowExclusive:    {"RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"},
	AccessExclusive: {
		"AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock",
		"ExclusiveLock", "AccessExclusiveLock",
	},
}

// Blocker is a session or prepared transaction whose lock is in the way.
type Blocker struct {
	PID         int32 // 0 for a prepared transaction
	User        string
	Application string
	Client      string
	State       string // active, idle in transaction, ... ; empty where the role may not see it
	Mode        string // the lock it holds
	Granted     bool   // false: it waits in front of us
	QueryAge    time.Duration
	XactAge     time.Duration
	Query       string // beginning, as far as the role may see it
	Prepared    string // gid of a prepared transaction
	Autovacuum  bool
	Wraparound  bool // an autovacuum that is never cancelled
}

// String is one line for a person.
func (b Blocker) String() string {
	age := b.XactAge.Round(time.Second)
	switch {
	case b.Prepared != "":
		return fmt.Sprintf("prepared transaction %q of %s, %s old", b.Prepared, b.User, age)
	case b.Wraparound:
		return fmt.Sprintf("pid %d: autovacuum to prevent wraparound, running for %s", b.PID, age)
	case b.Autovacuum:
		return fmt.Sprintf("pid %d: autovacuum, running for %s", b.PID, age)
	}
	var w strings.Builder
	fmt.Fprintf(&w, "pid %d", b.PID)
	if b.User != "" {
		fmt.Fprintf(&w, " (%s", b.User)
		if b.Application != "" {
			fmt.Fprintf(&w, ", %s", b.Application)
		}
		if b.Client != "" {
			fmt.Fprintf(&w, ", from %s", b.Client)
		}
		w.WriteByte(')')
	}
	if b.State != "" {
		fmt.Fprintf(&w, ": %s", b.State)
	}
	fmt.Fprintf(&w, ", transaction open for %s", age)
	if !b.Granted {
		fmt.Fprintf(&w, ", itself waiting for %s", b.Mode)
	}
	return w.String()
}

// blockersSQL finds who holds, or waits in front of us for, a lock that conflicts. Without the
// right to read other sessions an autovacuum is known by having no user.
const blockersSQL = `
SELECT DISTINCT ON (l.granted, l.pid, p.gid) coalesce(l.pid, 0), coalesce(a.usename::text, p.owner::text, ''), coalesce(a.application_name, ''),
       coalesce(host(a.client_addr), ''), coalesce(a.state, ''), l.mode, l.granted,
       coalesce(extract(epoch FROM clock_timestamp() - a.query_start), 0)::float8,
       coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)), 0)::float8,
       coalesce(left(a.query, 200), ''), coalesce(p.gid, ''),
       coalesce(a.backend_type = 'autovacuum worker', false)
         OR (l.pid IS NOT NULL AND a.usesysid IS NULL AND a.backend_type IS NULL AND l.mode = 'ShareUpdateExclusiveLock'),
       coalesce(a.query LIKE 'autovacuum:%(to prevent wraparound)', false)
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid' AND x.granted AND x.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
 WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.relation = ANY ($1::oid[]) AND l.mode = ANY ($2::text[]) AND l.pid IS DISTINCT FROM pg_backend_pid()
 ORDER BY l.granted DESC, l.pid, p.gid, l.mode`

// Blockers lists who is in the way of a lock on any of the relations. conn must have the pinned
// search_path and must not be the session that waits.
func Blockers(ctx context.Context, conn *pgx.Conn, mode LockMode, relations ...uint32) ([]Blocker, error) {
	rows, err := conn.Query(ctx, blockersSQL, relations, conflicts[mode])
	if err != nil {
		return nil, fmt.Errorf("looking for blocking sessions: %w", err)
	}
	blockers, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Blocker, error) {
		var b Blocker
		var queryAge, xactAge float64
		err := row.Scan(&b.PID, &b.User, &b.Application, &b.Client, &b.State, &b.Mode, &b.Granted, &queryAge, &xactAge,
			&b.Query, &b.Prepared, &b.Autovacuum, &b.Wraparound)
		b.QueryAge, b.XactAge = seconds(queryAge), seconds(xactAge)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("looking for blocking sessions: %w", err)
	}
	return blockers, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

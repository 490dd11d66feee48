package pg

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Session is one client's session.
type Session struct {
	PID         int32
	User        string
	Application string
	Since       string // when its transaction began, as the server writes it; empty where it has none or hides it
}

func (s Session) String() string {
	return fmt.Sprintf("pid %d, user %s, application %q", s.PID, s.User, s.Application)
}

// clientsSQL has the clients' sessions of this database that are not ours, and whether we may end them:
// a superuser's only superusers may, another's its role's members and those of pg_signal_backend
// (https://www.postgresql.org/docs/current/functions-admin.html). Of other roles' sessions a role
// without pg_read_all_stats sees user, application and snapshot: what may be a client's is taken for one.
const clientsSQL = `
WITH client AS (
  SELECT a.pid, a.usename::text AS usename, coalesce(a.application_name, '') AS application, a.xact_start, a.backend_xmin,
         me.rolsuper OR NOT r.rolsuper AND (pg_has_role(me.oid, r.oid, 'USAGE') OR pg_has_role(me.oid, 'pg_signal_backend', 'USAGE')) AS may
    FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid JOIN pg_roles me ON me.rolname = current_user
   WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND coalesce(a.application_name, '') NOT LIKE 'pgrunbook%'
     AND (a.backend_type = 'client backend' OR a.backend_type IS NULL AND a.pid NOT IN (SELECT pid FROM pg_stat_replication)))
SELECT pid, usename, application, coalesce(xact_start::text, ''), may, CASE WHEN may AND $1::bool THEN pg_terminate_backend(pid) END FROM client WHERE `

// Clients says which sessions of a database are meant.
type Clients string

// All of them, or those whose transaction has a snapshot that is older than this look.
const (
	AllClients   Clients = "true"
	OldSnapshots Clients = "backend_xmin IS NOT NULL AND coalesce(xact_start < now(), true)"
	NoClients    Clients = "false"
)

// WaitingAt are those of the processes that wait for the gate's key.
func WaitingAt(key int64, pids []int32) Clients {
	list := make([]string, len(pids))
	for i, pid := range pids {
		list[i] = strconv.Itoa(int(pid))
	}
	return Clients(fmt.Sprintf(`pid = ANY ('{%s}') AND pid IN (SELECT l.pid FROM pg_locks l
  WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND NOT l.granted AND ((l.classid::int8 << 32) | l.objid::int8) = %d
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))`, strings.Join(list, ","), key))
}

// EndClients ends the sessions of conn's database that are not ours. left are those that our role may
// not end: to try would be an error, and end none.
func EndClients(ctx context.Context, conn *pgx.Conn, which Clients) (ended, left []Session, err error) {
	return clients(ctx, conn, which, true)
}

// Endable lists the sessions that EndClients would end, and those that it would leave.
func Endable(ctx context.Context, conn *pgx.Conn, which Clients) (may, left []Session, err error) {
	return clients(ctx, conn, which, false)
}

// Unendable lists the sessions that EndClients would leave.
func Unendable(ctx context.Context, conn *pgx.Conn, which Clients) ([]Session, error) {
	_, left, err := Endable(ctx, conn, which)
	return left, err
}

func clients(ctx context.Context, conn *pgx.Conn, which Clients, end bool) (may, left []Session, err error) {
	rows, err := conn.Query(ctx, clientsSQL+string(which)+" ORDER BY pid", end)
	if err != nil {
		return nil, nil, fmt.Errorf("looking at the clients' sessions: %w", err)
	}
	var s Session
	var mine bool
	var done *bool
	_, err = pgx.ForEachRow(rows, []any{&s.PID, &s.User, &s.Application, &s.Since, &mine, &done}, func() error {
		switch {
		case !mine:
			left = append(left, s)
		case done == nil || *done: // else it has ended by itself
			may = append(may, s)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("ending the clients' sessions: %w", err)
	}
	return may, left, nil
}

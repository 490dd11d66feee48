package steps

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/load"
)

// The kinds of limit that code must tell apart.
const (
	limitRate  = "copy_rate"
	limitDelta = "delta_size"
)

// Unlimited is what may be set in place of a limit's max: there is none.
const Unlimited = "unlimited"

// inForce gives the runbook's limits with what somebody set in mid-run: that replaces all of its
// kind, and does what the first of them did.
func inForce(limits []runbook.Limit, settings map[string]string) []runbook.Limit {
	var out []runbook.Limit
	then := map[string]string{}
	for _, l := range limits {
		if then[l.Kind] == "" {
			then[l.Kind] = l.Then
		}
		if settings[l.Kind] == "" {
			out = append(out, l)
		}
	}
	for _, kind := range runbook.LimitKinds() {
		text := settings[kind]
		if text == "" || text == Unlimited {
			continue
		}
		value, err := runbook.ParseLimit(kind, text)
		if err != nil {
			continue // set checks it
		}
		do := then[kind]
		if do == "" {
			do = runbook.LimitThen(kind)
		}
		out = append(out, runbook.Limit{Kind: kind, Max: text, Value: value, Then: do})
	}
	return out
}

// measurer reads figures on one session of each side; the target's is opened when it is needed.
type measurer struct {
	conn   *pgx.Conn
	target *pgx.Conn
	to     *pg.Server
	rate   *load.Rate
	logs   [2]walLog // of the source and the target
	deltas deltaGauge
}

func (m *measurer) close() {
	for _, c := range []*pgx.Conn{m.conn, m.target} {
		if c != nil {
			_ = c.Close(context.Background())
		}
	}
}

// walLog has the places that some standby has not replayed, oldest first.
type walLog []walPlace

// walPlace is where a side's log was at a time.
type walPlace struct {
	at  time.Time
	lsn int64
}

// value gives a limit's figure in base units.
func (m *measurer) value(ctx context.Context, limit runbook.Limit) (value float64, err error) {
	switch limit.Kind {
	case limitRate:
		return m.rate.Average(limit.Value), nil
	case limitDelta:
		return m.deltas.value(ctx, m.conn, limit)
	case "replica_lag":
		value, err = m.replicaLag(ctx)
	case "sessions":
		err = m.conn.QueryRow(ctx, sessionsSQL).Scan(&value)
	}
	if err != nil {
		return 0, fmt.Errorf("measuring limit %s: %w", limit.Kind, err)
	}
	return value, nil
}

const sessionsSQL = `
SELECT count(*)::float8 FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
   AND coalesce(application_name, '') NOT LIKE 'pgrunbook %' AND state = 'active'`

// replicaSQL gives what the standby that is furthest behind has replayed, and the server's own word
// for its lag. That word stands still where replay does: it is made by positions that are reached.
const replicaSQL = `
SELECT (pg_current_wal_lsn() - '0/0')::int8, (min(replay_lsn) - '0/0')::int8,
       coalesce(extract(epoch FROM max(greatest(replay_lag, flush_lag))), 0)::float8
  FROM pg_stat_replication WHERE state IS NOT NULL AND replay_lsn IS NOT NULL`

// replicaLag is that of the standby which is farthest behind, of either side.
func (m *measurer) replicaLag(ctx context.Context) (worst float64, err error) {
	if m.target == nil || m.target.IsClosed() {
		if m.target, err = m.to.Connect(ctx, limitsSession); err != nil {
			m.target = nil
			return 0, err
		}
	}
	for i, conn := range []*pgx.Conn{m.conn, m.target} {
		lag, err := m.logs[i].lag(ctx, conn)
		if err != nil {
			return 0, err
		}
		worst = max(worst, lag)
	}
	return worst, nil
}

// lag is the age of the oldest place in the log that a standby has not replayed, as far as this
// process has seen it, or what the server says where that is more.
func (l *walLog) lag(ctx context.Context, conn *pgx.Conn) (float64, error) {
	var now int64
	var replayed *int64
	var said float64
	if err := conn.QueryRow(ctx, replicaSQL).Scan(&now, &replayed, &said); err != nil {
		return 0, err
	}
	if replayed == nil || *replayed >= now {
		*l = nil
		return 0, nil
	}
	for len(*l) > 0 && (*l)[0].lsn <= *replayed {
		*l = (*l)[1:]
	}
	at := time.Now()
	if n := len(*l); n == 0 || (*l)[n-1].lsn < now {
		*l = append(*l, walPlace{at, now})
	}
	return max(said, at.Sub((*l)[0].at).Seconds()), nil
}

// limitText writes a figure as people do.
func limitText(kind string, value float64) string {
	switch kind {
	case limitDelta:
		return runbook.FormatSize(value)
	case limitRate:
		return runbook.FormatSize(value) + "/s"
	case "replica_lag":
		return time.Duration(value * float64(time.Second)).Round(10 * time.Millisecond).String()
	default:
		return strconv.FormatFloat(value, 'f', 0, 64)
	}
}

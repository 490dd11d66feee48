package pass

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

const (
	defaultLockTimeout = 300 * time.Millisecond // cut where deadlock_timeout is short
	renewAfter         = time.Hour              // a temporary table's age holds back the frozen xid of its database
)

// fromSession reads and forgets. What it knows dies with the connection: after a crash of the
// server, transaction ids above the last flushed one are given out again.
type fromSession struct {
	conn    *pgx.Conn
	version int              // server_version_num
	low     map[int32]uint64 // per table: no delta row below this xid is left

	lockTimeout time.Duration // that was asked for: it is shorter where deadlock_timeout is
}

// toSession applies. Its temporary tables live as long as the connection.
type toSession struct {
	conn    *pgx.Conn
	version int
	since   time.Time
	stages  map[int32]*stage
	round   int64 // of making stages
}

// closing bounds what a session does for its end: a server that is silent drops its stages by itself.
const closing = 5 * time.Second

// close ends the session. The server would drop all its stages at once, and the sessions of a drain end
// together: those beyond a few are dropped before.
func (s *toSession) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closing)
	defer cancel()
	var err error
	if len(s.stages) > stageBatch {
		abandon(ctx, s.conn)
		err = s.shed(ctx, stageBatch)
	}
	return errors.Join(err, s.conn.Close(ctx))
}

func (p *Passer) connectFrom(ctx context.Context, lockTimeout time.Duration) (*fromSession, error) {
	if lockTimeout == 0 {
		lockTimeout = defaultLockTimeout
	}
	if p.from == nil || p.from.conn.IsClosed() {
		conn, version, err := open(ctx, p.cfg.From, pg.Use{Name: "pass read", Marked: true, LockTimeout: lockTimeout})
		if err != nil {
			return nil, err
		}
		p.from = &fromSession{conn: conn, version: version, low: map[int32]uint64{}}
	}
	if p.from.lockTimeout != lockTimeout {
		if err := pg.LockTimeout(ctx, p.from.conn, lockTimeout); err != nil {
			return nil, fmt.Errorf("preparing a pass on the %s: %w", p.cfg.From.Side(), err)
		}
		p.from.lockTimeout = lockTimeout
	}
	return p.from, nil
}

func (p *Passer) connectTo(ctx context.Context) (*toSession, error) {
	if s := p.to; s != nil && !s.conn.IsClosed() {
		if time.Since(s.since) < renewAfter {
			return s, nil
		}
		if err := s.close(ctx); err != nil {
			p.cfg.Log.Debug("closing a session", "side", p.cfg.To.Side(), "err", err)
		}
	}
	conn, version, err := open(ctx, p.cfg.To, pg.Use{Name: "pass write", Marked: true, Replica: true})
	if err != nil {
		return nil, err
	}
	p.to = &toSession{conn: conn, version: version, since: time.Now(), stages: map[int32]*stage{}}
	return p.to, nil
}

func (p *Passer) connectBeat(ctx context.Context) (*pgx.Conn, error) {
	if p.beat != nil && !p.beat.IsClosed() {
		return p.beat, nil
	}
	conn, err := p.cfg.From.Connect(ctx, pg.Use{Name: "pass heartbeat", Marked: true, LockTimeout: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	p.beat = conn
	return conn, nil
}

func open(ctx context.Context, server *pg.Server, use pg.Use) (*pgx.Conn, int, error) {
	conn, err := server.Connect(ctx, use)
	if err != nil {
		return nil, 0, err
	}
	var text string
	if err = run(ctx, conn, lookups); err == nil {
		err = conn.QueryRow(ctx, "SHOW server_version_num").Scan(&text)
	}
	if err != nil {
		_ = conn.Close(ctx)
		return nil, 0, fmt.Errorf("preparing a session on the %s: %w", server.Side(), err)
	}
	version, err := strconv.Atoi(text)
	if err != nil {
		_ = conn.Close(ctx)
		return nil, 0, fmt.Errorf("reading the %s's version: %w", server.Side(), err)
	}
	return conn, version, nil
}

// run executes statements without parameters in one round trip and without taking a snapshot of
// its own for utility statements.
func run(ctx context.Context, conn *pgx.Conn, sql string) error {
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// affected executes statements in one round trip and gives the rows that each touched.
func affected(ctx context.Context, conn *pgx.Conn, sql string) ([]int64, error) {
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	n := make([]int64, len(results))
	for i, r := range results {
		if r.Err != nil {
			return nil, r.Err
		}
		n[i] = r.CommandTag.RowsAffected()
	}
	return n, nil
}

// abandonWithin bounds a ROLLBACK: behind paused poolers clients wait for it when a side has fallen silent.
const abandonWithin = 500 * time.Millisecond

// abandon rolls back what a session has open; a session that cannot do that is closed.
func abandon(ctx context.Context, conn *pgx.Conn) {
	if conn == nil || conn.IsClosed() || conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonWithin)
	defer cancel()
	if run(ctx, conn, "ROLLBACK") != nil {
		_ = conn.Close(ctx)
	}
}

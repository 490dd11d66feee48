package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// The runner's locks are session-level advisory locks of two integers, per database: classKey
// ("pgrb" in ASCII), then which lock (PostgreSQL docs, 13.3.5). Two integers never meet the gate's
// 64-bit key or an application's.
const (
	classKey  int32 = 0x70677262
	itemClass int32 = 0x70677263 // second integer: a hash of step and table, see AddItems

	targetKey int32 = 1
	sourceKey int32 = 2
)

// How a lock is kept and how long it is asked for.
const (
	heartbeatEvery = 2 * time.Second
	heartbeatLimit = 6 * time.Second // without an answer for so long it counts as lost
	lockTries      = 8               // a runner that was killed a moment ago still has a backend
	lockTryEvery   = 150 * time.Millisecond
	guardianTries  = 200 // the guardian of a dead runner undoes that one's switch steps, and goes
)

// Holder is who holds a run.
type Holder struct {
	Host        string    `json:"host"`
	PID         int       `json:"pid"` // of the runner's process
	User        string    `json:"user"`
	Application string    `json:"application"`
	Since       time.Time `json:"since"`
	Released    time.Time `json:"released,omitzero"` // zero while it runs, or after a crash
	Backend     int       `json:"backend"`           // of the session that holds the lock
	Alive       bool      `json:"alive"`             // somebody holds the lock now
}

// lock is one advisory lock on a session of its own.
type lock struct {
	side string
	conn *pgx.Conn
	who  string // "host:pid", in application_name
	mu   sync.Mutex
	stop context.CancelFunc
	done chan struct{}
}

// keepaliveSQL makes the server notice within half a minute that this runner's machine is gone,
// so that the lock does not outlive it by hours (PostgreSQL docs, 20.3.2). Settings that it does not know are
// left out.
const keepaliveSQL = `
SELECT pg_catalog.set_config(w.name, w.value, false)
  FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS w (name, value)
 WHERE pg_catalog.current_setting(w.name, true) IS NOT NULL`

// Self names this process as its lock's session does: OpenOptions.StealFrom takes it.
func Self() string {
	me := self()
	return fmt.Sprintf("%.20s:%d", me.Host, me.PID)
}

// thief says whom a lock may be taken from: nobody, anybody, or one process, as Self names it, that took the run
// at an epoch. Containers of one name have one host and process 1 each: only the epoch tells them apart.
type thief struct {
	anybody bool
	from    string
	epoch   int64  // 0 is any, for the source, which has no journal
	run     string // whose lock on the target was taken before: its guardian had its time there
}

// takes reports whether the lock may be taken from its holder. A guardian that is at work gets its time before.
func (t thief) takes(ctx context.Context, q querier, backend int, application string, try int) (bool, error) {
	if t.anybody {
		waited := try >= guardianTries || t.run != "" && strings.Contains(application, " "+t.run+" lock ")
		return waited || !strings.Contains(application, guardianMark), nil
	}
	if t.from == "" || !strings.Contains(application+" ", " lock "+t.from+" ") {
		return false, nil
	}
	if t.epoch == 0 {
		return true, nil
	}
	var took bool
	err := q.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pgrunbook.holder WHERE backend = $1::int AND epoch = $2::bigint)", backend, t.epoch).Scan(&took)
	return took, err
}

// takeLock opens a session and locks. Another holder is an engine.Error of ClassHeld.
func takeLock(ctx context.Context, server *pg.Server, key int32, steal thief) (*lock, error) {
	conn, err := server.Connect(ctx, pg.Use{Name: "lock"})
	if err != nil {
		return nil, err
	}
	l := &lock{side: server.Side(), conn: conn, who: Self()}
	if steal.from != "" {
		l.who += guardianMark
	}
	if err := l.take(ctx, key, steal); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return l, nil
}

func (l *lock) take(ctx context.Context, key int32, steal thief) error {
	names := []string{"tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"}
	values := []string{"10", "5", "3", "25000"}
	if _, err := l.conn.Exec(ctx, keepaliveSQL, names, values); err != nil {
		return fmt.Errorf("setting keepalives on the %s: %w", l.side, err)
	}
	last := guardianTries
	if steal.anybody { // at the last of those it is ended
		last += lockTries
	}
	for try := 1; ; try++ {
		var got bool
		if err := l.conn.QueryRow(ctx, "SELECT pg_catalog.pg_try_advisory_lock($1::int, $2::int)", classKey, key).Scan(&got); err != nil {
			return fmt.Errorf("locking the run on the %s: %w", l.side, err)
		}
		if got {
			return nil
		}
		if try >= lockTries && (try >= last || !l.guarded(ctx, key)) {
			return l.held(ctx, key)
		}
		if err := l.endHolder(ctx, key, steal, try); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockTryEvery):
		}
	}
}

// guardianMark ends the name of a process that only ends what its dead runner has begun.
const guardianMark = " guardian"

// guarded reports whether such a process holds the lock.
func (l *lock) guarded(ctx context.Context, key int32) bool {
	_, application, _, err := lockHolder(ctx, l.conn, key)
	return err == nil && strings.Contains(application, guardianMark)
}

// lockHolderSQL finds the session that holds a lock; application_name is readable by all roles.
const lockHolderSQL = `
SELECT l.pid, COALESCE(a.application_name, ''), a.backend_start
  FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
   AND l.classid::bigint = $1::bigint AND l.objid::bigint = $2::bigint`

func lockHolder(ctx context.Context, q querier, key int32) (backend int, application string, since time.Time, err error) {
	var at *time.Time
	if err := q.QueryRow(ctx, lockHolderSQL, int64(classKey), int64(key)).Scan(&backend, &application, &at); err != nil {
		return 0, "", time.Time{}, err
	}
	if at != nil {
		since = *at
	}
	return backend, application, since, nil
}

// held makes the error that names who has the lock.
func (l *lock) held(ctx context.Context, key int32) error {
	backend, application, since, err := lockHolder(ctx, l.conn, key)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("looking who holds the run on the %s: %w", l.side, err)
	}
	e := &engine.Error{
		Class: engine.ClassHeld, Op: "locking the", Object: l.side,
		Hint: "Wait for it or stop it; if its machine is gone, add --steal-lock to this command.",
	}
	e.Err = fmt.Errorf("another runner holds it: %s (server process %d)%s", application, backend, sinceText(since))
	if errors.Is(err, pgx.ErrNoRows) {
		e.Err, e.Hint = errors.New("another runner held it until now"), "Run the same command again."
		return e
	}
	if key != targetKey {
		return e
	}
	if _, ours, _, err := look(ctx, l.conn); err != nil || !ours {
		return e // it is just making the journal
	}
	var run, host, user string
	var pid int
	err = l.conn.QueryRow(ctx, `SELECT h.run, h.host, h.pid, h.os_user, h.since FROM pgrunbook.holder h JOIN pgrunbook.run r ON r.id = h.run
		WHERE h.backend = $1::int AND h.released IS NULL`, backend).Scan(&run, &host, &pid, &user, &since)
	if err == nil {
		e.Err = fmt.Errorf("run %s is held by process %d of %s on host %s%s", run, pid, user, host, sinceText(since))
	}
	return e
}

func sinceText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + t.UTC().Format(time.RFC3339)
}

// endHolder ends the session that holds the lock, if the lock may be taken from it.
func (l *lock) endHolder(ctx context.Context, key int32, steal thief, try int) error {
	if !steal.anybody && steal.from == "" {
		return nil
	}
	backend, application, _, err := lockHolder(ctx, l.conn, key)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	takes := false
	if err == nil {
		takes, err = steal.takes(ctx, l.conn, backend, application, try)
	}
	if takes {
		_, err = l.conn.Exec(ctx, "SELECT pg_catalog.pg_terminate_backend($1::int)", backend)
	}
	if err != nil {
		return fmt.Errorf("ending the session that holds the run on the %s: %w", l.side, err)
	}
	return nil
}

// renameSQL keeps the token at the end by which a Server knows its own sessions.
const renameSQL = `
SELECT pg_catalog.set_config('application_name',
         $1::text OPERATOR(pg_catalog.||) COALESCE(pg_catalog.substring(pg_catalog.current_setting('application_name'), ' ~[^~]*$'), ''), false)`

// name puts the run and this process into application_name, where a second runner finds them.
func (l *lock) name(ctx context.Context, runID string) error {
	_, err := l.conn.Exec(ctx, renameSQL, "pgrunbook "+runID+" lock "+l.who)
	if err != nil {
		return fmt.Errorf("naming the run's session on the %s: %w", l.side, err)
	}
	return nil
}

// watch keeps the session alive and calls lost once when it is gone.
func (l *lock) watch(lost context.CancelCauseFunc) {
	ctx, stop := context.WithCancel(context.Background())
	l.stop, l.done = stop, make(chan struct{})
	go func() {
		defer close(l.done)
		tick := time.NewTicker(heartbeatEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := l.beat(ctx); err != nil && ctx.Err() == nil {
				lost(&engine.Error{
					Class: engine.ClassFailed, Op: "holding the run on the", Object: l.side,
					Hint: "Run the same command again: it continues.", Err: fmt.Errorf("the session that holds it is gone: %w", err),
				})
				return
			}
		}
	}()
}

func (l *lock) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, heartbeatLimit)
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn.Ping(ctx)
}

// close ends heartbeat and session; the server lets the lock go with it.
func (l *lock) close(ctx context.Context) {
	if l.stop != nil {
		l.stop()
		<-l.done
	}
	_ = l.conn.Close(ctx)
}

// LockSource takes this run's lock on the source database, so that runs of two targets cannot
// work on one source; it is kept and watched like the target's. Sessions that an earlier runner of
// this run left on the source are ended. Call it before opening other sessions there.
func (r *Run) LockSource(ctx context.Context, source *pg.Server, steal bool) error {
	l, err := takeLock(ctx, source, sourceKey, thief{anybody: steal, from: r.stealFrom, run: r.ID})
	if err != nil {
		return err
	}
	err = l.name(ctx, r.ID)
	if err == nil {
		_, err = source.ForRun(r.ID, r.Mark).TerminateLeftovers(ctx, l.conn)
	}
	if err != nil {
		l.close(context.WithoutCancel(ctx))
		return err
	}
	l.watch(r.lose)
	r.source = l
	return nil
}

// ReleaseSource lets the lock on the source go once nothing is left to be done there: from then on the run
// does not end with that server. Without the lock it does nothing.
func (r *Run) ReleaseSource(ctx context.Context) {
	if r.source != nil {
		r.source.close(context.WithoutCancel(ctx))
		r.source = nil
	}
}

// LockAlone takes a run's lock on the source for a command that has no journal, since the target
// is gone: a runner that still works somewhere is found by it. Sessions that a dead one left are
// ended. The lock lives until unlock, or as long as the session.
func LockAlone(ctx context.Context, source *pg.Server, runID, mark string, steal bool) (unlock func(), err error) {
	l, err := takeLock(ctx, source, sourceKey, thief{anybody: steal})
	if err != nil {
		return nil, err
	}
	unlock = func() { l.close(context.WithoutCancel(ctx)) }
	if err = l.name(ctx, runID); err == nil {
		_, err = source.ForRun(runID, mark).TerminateLeftovers(ctx, l.conn)
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

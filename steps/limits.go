package steps

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/load"
)

const limitsEvery = 2 * time.Second

// limits holds what people and the runbook's limit blocks allow a load at this moment. It measures
// on a session of its own.
type limits struct {
	env    *Env
	cp     engine.Checkpoint
	conn   *pgx.Conn
	target *pgx.Conn // nil until its replicas are asked for
	cancel context.CancelCauseFunc
	done   chan struct{}

	mu     sync.Mutex
	now    load.Control
	people bool // somebody said pause
	// said is what was reported last, so that a state is reported once.
	said string
}

// watchLimits begins to measure. The context that it returns ends with the cause when a limit says
// stop.
func watchLimits(ctx context.Context, env *Env, cp engine.Checkpoint) (context.Context, *limits, error) {
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "limits", Marked: true, ReadOnly: true})
	if err != nil {
		return ctx, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	l := &limits{env: env, cp: cp, conn: conn, cancel: cancel, done: make(chan struct{}), now: load.Control{Workers: env.Runbook.Copy.Workers}}
	if err := l.look(ctx); err != nil {
		cancel(err)
		_ = conn.Close(context.WithoutCancel(ctx))
		return ctx, nil, err
	}
	go l.watch(ctx)
	return ctx, l, nil
}

func (l *limits) close() {
	l.cancel(nil)
	<-l.done
	_ = l.conn.Close(context.Background())
	if l.target != nil {
		_ = l.target.Close(context.Background())
	}
}

func (l *limits) control() load.Control {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

func (l *limits) watch(ctx context.Context) {
	defer close(l.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(limitsEvery):
		}
		if l.conn.IsClosed() {
			if conn, err := l.env.Source.Connect(ctx, pg.Use{Name: "limits", Marked: true, ReadOnly: true}); err == nil {
				l.conn = conn
			}
		}
		// A look that fails leaves what was allowed: the load's own sessions find a lost server.
		if err := l.look(ctx); err != nil && ctx.Err() == nil {
			l.env.Log.Debug("looking at limits", "err", err)
		}
	}
}

// look asks people's switches and measures every limit.
func (l *limits) look(ctx context.Context) error {
	c, err := l.env.Journal.Control(ctx)
	if err != nil {
		return err
	}
	next := load.Control{Workers: l.env.Runbook.Copy.Workers, Paused: c.Paused}
	if c.Workers > 0 {
		next.Workers = c.Workers
	}
	said := ""
	if c.Paused {
		said = "paused by " + c.By
	}
	for _, limit := range l.env.Runbook.Limits {
		if limit.Kind == "copy_rate" {
			next.BytesPerSecond = int64(limit.Value)
			continue
		}
		value, err := l.measure(ctx, limit.Kind)
		if err != nil {
			return err
		}
		if value <= limit.Value {
			continue
		}
		if limit.Kind == "delta_size" && limit.Then != "stop" {
			// Only passes shrink the deltas: nothing may wait that they wait for.
			shrinks, err := l.shrinks(ctx)
			if err != nil {
				return err
			}
			if !shrinks {
				said = fmt.Sprintf("limit delta_size is over %s: only going on shrinks the deltas", limit.Max)
				continue
			}
		}
		said = fmt.Sprintf("limit %s is over %s: %s", limit.Kind, limit.Max, limit.Then)
		switch limit.Then {
		case "slow":
			next.Workers = max(next.Workers/2, 1)
		case "pause":
			next.Paused = true
		case "stop":
			l.cancel(overLimit(limit, value))
		}
	}
	l.set(next, said, c.Paused)
	return nil
}

// shrinks reports whether changes of loaded tables wait, which passes work off while a load pauses.
// What waits for a table that is still loading goes only when its load is over.
func (l *limits) shrinks(ctx context.Context) (bool, error) {
	tables, err := loaded(ctx, l.env)
	if err != nil || len(tables) == len(captured(l.env)) {
		return false, err // nothing loads any more
	}
	counts, err := capture.Pending(ctx, l.conn, 0)
	for _, t := range tables {
		if counts[t.ID].All() > 0 {
			return true, err
		}
	}
	return false, err
}

// pausedByPeople reports whether somebody said pause, which holds for passes too.
func (l *limits) pausedByPeople() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.people
}

func overLimit(limit runbook.Limit, value float64) error {
	return &engine.Error{
		Op: "holding limit", Object: limit.Kind, Err: fmt.Errorf("it is %.0f, over %s", value, limit.Max),
		Hint: "Wait until it has fallen, or raise the limit in the runbook; the same command goes on where this one stopped.",
	}
}

func (l *limits) set(next load.Control, said string, people bool) {
	l.mu.Lock()
	changed := said != l.said
	l.now, l.said, l.people = next, said, people
	l.mu.Unlock()
	if !changed {
		return
	}
	if said == "" {
		l.cp.Emit(engine.Event{Kind: engine.EventNote, Message: "the copy goes on at full speed"})
		return
	}
	l.cp.Emit(engine.Event{Kind: engine.EventWaiting, Reason: said, Message: said})
}

const replicaLagSQL = `SELECT coalesce(extract(epoch FROM max(greatest(replay_lag, flush_lag))), 0)::float8 FROM pg_stat_replication`

const sessionsSQL = `SELECT count(*)::float8 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
 AND application_name NOT LIKE 'pgrunbook %' AND state = 'active'`

// replicaLag is that of the replica which is farthest behind, of either side.
func (l *limits) replicaLag(ctx context.Context) (float64, error) {
	if l.target == nil || l.target.IsClosed() {
		conn, err := l.env.Target.Connect(ctx, pg.Use{Name: "limits", Marked: true, ReadOnly: true})
		if err != nil {
			return 0, err
		}
		l.target = conn
	}
	var worst float64
	for _, conn := range []*pgx.Conn{l.conn, l.target} {
		var lag float64
		if err := conn.QueryRow(ctx, replicaLagSQL).Scan(&lag); err != nil {
			return 0, err
		}
		worst = max(worst, lag)
	}
	return worst, nil
}

// measure gives a limit's value in base units.
func (l *limits) measure(ctx context.Context, kind string) (value float64, err error) {
	switch kind {
	case "delta_size":
		size, err := capture.Size(ctx, l.conn)
		return float64(size), err
	case "replica_lag":
		value, err = l.replicaLag(ctx)
	case "sessions":
		err = l.conn.QueryRow(ctx, sessionsSQL).Scan(&value)
	}
	if err != nil {
		return 0, fmt.Errorf("measuring limit %s: %w", kind, err)
	}
	return value, nil
}

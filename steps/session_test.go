package steps

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// ending locks a table and ends the first session that waits for it, then lets go.
func (r *rig) ending(url, table string) (ended <-chan error) {
	r.t.Helper()
	ctx := r.t.Context()
	holder, err := pgx.Connect(ctx, url)
	r.must(err)
	r.t.Cleanup(func() { _ = holder.Close(context.Background()) })
	_, err = holder.Exec(ctx, fmt.Sprintf("BEGIN; LOCK TABLE %s IN ACCESS EXCLUSIVE MODE", table))
	r.must(err)
	done := make(chan error, 1)
	go func() {
		for n := 0; ; time.Sleep(10 * time.Millisecond) {
			err := holder.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, table).Scan(&n)
			if err == nil && n == 0 {
				continue
			}
			if err == nil {
				_, err = holder.Exec(ctx, "ROLLBACK")
			}
			done <- err
			return
		}
	}()
	return done
}

// F10: a session that somebody ends while a run is looked for, opened or planned is opened anew.
func TestF10SessionsThatEndBeforeTheWalk(t *testing.T) {
	r := newRig(t, "")
	id := r.env.Run.ID
	ended := r.ending(r.target, "pgrunbook.run")
	found, err := LookForRun(t.Context(), r.env.Target)
	r.must(err)
	r.must(<-ended)
	if found == nil || found.ID != id {
		t.Errorf("found %+v, and not run %s", found, id)
	}

	tries := 0
	_, err = planStep(t.Context(), r.env, planner{plan: func(ctx context.Context) error {
		conn, err := r.env.Source.Connect(ctx, pg.Use{Name: "test"})
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }()
		if tries++; tries == 1 {
			_, err = conn.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
		}
		return err
	}})
	if err != nil || tries != 2 {
		t.Errorf("planned %d times: %v", tries, err)
	}

	r.env.Journal.Close(t.Context())
	next, err := NewEnv(r.env.Runbook, nil, engine.SinkFunc(r.emit))
	r.must(err)
	ended = r.ending(r.target, "pgrunbook.run")
	r.must(OpenRun(t.Context(), next, OpenOptions{ToolVersion: "test"}))
	defer next.Journal.Close(t.Context())
	r.must(<-ended)
	if next.Run.ID != id {
		t.Errorf("opened run %s, and not %s", next.Run.ID, id)
	}
}

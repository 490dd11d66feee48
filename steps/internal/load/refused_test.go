package load

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// conflicts makes a table's next write fail once, as one that does not fit its snapshot: an extension's or an
// application's own trigger may say so, a chunk's statements by themselves do not.
const conflicts = `CREATE SEQUENCE once;
	CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	  IF nextval('public.once') = %[2]d THEN RAISE 'the rows have changed' USING ERRCODE = 'serialization_failure'; END IF;
	  RETURN NEW; END $$;
	CREATE TRIGGER conflict BEFORE INSERT OR UPDATE ON %[1]s FOR EACH ROW EXECUTE FUNCTION conflict();
	ALTER TABLE %[1]s ENABLE ALWAYS TRIGGER conflict`

// untilWaited ends when a chunk waits for the table, for some seconds at most.
const untilWaited = `DO $$ BEGIN
	  FOR i IN 1..2000 LOOP
	    EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = '%s'::regclass);
	    PERFORM pg_sleep(0.002);
	  END LOOP; END $$`

// F19: whatever ends a chunk for a reason that passes, on either side, the chunk is read again and its
// rows are there once.
func TestF19ChunksThatFail(t *testing.T) {
	const keyed, keyless = oneTable, `CREATE TABLE k (a int, v text)`
	type failure struct {
		name, ddl, state string
		fails            func(p *pair, ctx context.Context, seen func() bool) error
	}
	for _, c := range testpg.Some(
		failure{"what would be a deadlock on the target", keyed, "", func(p *pair, ctx context.Context, seen func() bool) error {
			return p.deadlocks(ctx, p.target, "LOCK TABLE t", "t", "SELECT FROM pgrunbook.item WHERE state = 'pending' FOR UPDATE", seen)
		}},
		failure{"serialization failure on the target", keyed, "40001", func(p *pair, _ context.Context, _ func() bool) error {
			p.exec(p.target, fmt.Sprintf(conflicts, "t", 150))
			return nil
		}},
		failure{"serialization failure on the source", keyed, "40001", func(p *pair, _ context.Context, _ func() bool) error {
			p.exec(p.source, fmt.Sprintf(conflicts, "pgrunbook.heartbeat", 2))
			return nil
		}},
		failure{"what would be a deadlock on the source", keyless, "55P03", func(p *pair, ctx context.Context, seen func() bool) error {
			image := fmt.Sprintf("pgrunbook.image_%d", p.tables[0].ID)
			return p.deadlocks(ctx, p.source, "LOCK TABLE "+image, image, "LOCK TABLE k", seen)
		}},
		failure{"canceled on the target", keyed, "57014", func(p *pair, ctx context.Context, seen func() bool) error {
			return p.cancels(ctx, p.target, "SELECT 1", "COPY%FROM STDIN%", seen)
		}},
		failure{"canceled on the source", keyed, "57014", func(p *pair, ctx context.Context, seen func() bool) error {
			return p.cancels(ctx, p.source, "LOCK TABLE t", "COPY%TO STDOUT%", seen)
		}},
	) {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, c.ddl, chunks(16<<10))
			rows := "t SELECT g, repeat('v', 100), g"
			if c.ddl == keyless {
				rows = "k SELECT g % 50, repeat('v', 100)"
			}
			// A chunk waits for less than that.
			const looks = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET deadlock_timeout = %%L', current_database(), '%s'); END $$"
			p.exec(p.source, fmt.Sprintf(looks, "200ms"))
			p.exec(p.target, fmt.Sprintf(looks, "2s"))
			p.beforeCapture("INSERT INTO " + rows + " FROM generate_series(1, 1000) g")
			l := New(p.cfg)
			if err := l.Prepare(p.ctx); err != nil {
				t.Fatal(err)
			}
			seen := func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				return slices.ContainsFunc(p.events, func(e engine.Event) bool {
					return e.Kind == engine.EventRetry && e.SQLState == c.state || c.state == "" && e.Kind == engine.EventWaiting
				})
			}
			p.slowly(50_000)
			rate := p.cfg.Rate
			g, ctx := errgroup.WithContext(p.ctx)
			l = New(p.cfg)
			over, end := context.WithCancel(ctx)
			g.Go(func() error {
				defer end()
				return l.Run(ctx)
			})
			g.Go(func() error {
				defer rate.Set(0)
				if err := c.fails(p, over, seen); err != nil && over.Err() == nil {
					return err
				}
				return nil
			})
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			if !seen() {
				t.Fatalf("no chunk failed with %s: %s", c.state, p.messages())
			}
			p.equal()
			p.synced()
		})
	}
}

// deadlocks takes a lock that chunks wait for, and then one that a waiting chunk has, until a chunk gave way: nobody is the
// victim of a deadlock with it.
func (p *pair) deadlocks(ctx context.Context, url, first, waited, second string, seen func() bool) error {
	app, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = app.Close(context.Background()) }()
	if _, err := app.Exec(ctx, "SET deadlock_timeout = '10s'"); err != nil {
		return err
	}
	for !seen() && ctx.Err() == nil {
		for _, sql := range []string{"BEGIN", first, fmt.Sprintf(untilWaited, waited), second, "ROLLBACK"} {
			if _, err := app.Exec(ctx, sql); err != nil {
				return err
			}
		}
	}
	return nil
}

// cancels ends statements of chunks as an administrator does, until a chunk has noticed. What is held makes those last
// that would be over too soon.
func (p *pair) cancels(ctx context.Context, url, held, like string, seen func() bool) error {
	var sessions [2]*pgx.Conn
	for i := range sessions {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.Background()) }()
		sessions[i] = conn
	}
	if _, err := sessions[0].Exec(ctx, "BEGIN; "+held); err != nil {
		return err
	}
	for !seen() && ctx.Err() == nil {
		if _, err := sessions[1].Exec(ctx, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
			AND application_name ~ '^pgrunbook .* load [0-9]' AND query LIKE $1`, like); err != nil {
			return err
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

package freeze

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// conns are opened before a freeze starts: during a hold the application's pools may grow to
// max_connections and shut us out. Nor do clients of paused poolers wait for them.
type conns struct {
	from, to, look, watch *pgx.Conn
	spare                 *pgx.Conn // keeps a place for the witness, which must be new
	oids                  []uint32
	trip                  time.Duration // a round trip to the side farther away
	far                   *pg.Server    // that side
}

// connectWithin bounds Connect: nobody waits for it yet.
const connectWithin = 10 * time.Second

// longestTrip is the longest round trip over which a hold is kept: its next sign of life is sent when the last one was answered, and
// must be there within its timeout on a busy machine, too.
const longestTrip = idleTimeout / 3

// Connect opens what the next attempt needs, before anybody is made to wait. Attempt does it where this was not
// called; Disconnect closes it again where no attempt follows.
func (f *Freeze) Connect(ctx context.Context) error {
	early, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	c, err := f.open(early)
	if err != nil {
		return f.early(ctx, err)
	}
	if c.trip > longestTrip { // nobody is made to wait for what cannot succeed
		c.close(ctx)
		return fmt.Errorf("%w: a round trip to the %s takes %s, and no hold can be kept over more than %s: run pgrunbook nearer to the servers",
			ErrNotNow, c.far.Side(), c.trip.Round(time.Millisecond), longestTrip)
	}
	f.Disconnect(ctx)
	f.opened = c
	return nil
}

// Disconnect may be called at any time.
func (f *Freeze) Disconnect(ctx context.Context) {
	if f.opened != nil {
		f.opened.close(ctx)
		f.opened = nil
	}
}

func (f *Freeze) open(ctx context.Context) (*conns, error) {
	c := &conns{}
	all, connecting := errgroup.WithContext(ctx)
	for _, o := range []struct {
		conn **pgx.Conn
		srv  *pg.Server
		use  pg.Use
	}{
		{&c.from, f.From, pg.Use{Name: holdName, Marked: true, Hold: true}},
		{&c.to, f.To, pg.Use{Name: holdName, Marked: true, Hold: true}},
		{&c.look, f.From, pg.Use{Name: "freeze look", LockTimeout: drainTimeout, Hold: true}},
		{&c.spare, f.From, pg.Use{Name: "freeze spare", Hold: true}},
		{&c.watch, f.To, pg.Use{Name: "freeze look", LockTimeout: drainTimeout, Hold: true}},
	} {
		all.Go(func() (err error) {
			*o.conn, err = o.srv.Connect(connecting, o.use)
			return err
		})
	}
	err := all.Wait()
	if err == nil {
		c.oids, err = relations(ctx, c.look, f.Tables)
	}
	if err != nil {
		c.close(ctx)
		return nil, err
	}
	for _, way := range []struct {
		conn *pgx.Conn
		to   *pg.Server
	}{{c.look, f.From}, {c.watch, f.To}} {
		trip, err := pg.Trip(ctx, way.conn)
		if err != nil {
			c.close(ctx)
			return nil, err
		}
		if trip > c.trip {
			c.trip, c.far = trip, way.to
		}
	}
	return c, nil
}

// Trip is a round trip to the side farther away, as the sessions for the attempt at hand have found it; 0: there are none.
func (f *Freeze) Trip() time.Duration {
	if f.opened == nil {
		return 0
	}
	return f.opened.trip
}

func (c *conns) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for _, conn := range []*pgx.Conn{c.from, c.to, c.look, c.watch, c.spare} {
		if conn != nil {
			_ = conn.Close(ctx)
		}
	}
}

// relations gives the oids, on this side, of every table in scope with its partitions.
func relations(ctx context.Context, conn *pgx.Conn, tables []scope.Table) ([]uint32, error) {
	var schemas, names []string
	for _, t := range tables {
		schemas, names = append(schemas, t.Schema), append(names, t.Name.Name)
		for _, m := range t.Members {
			schemas, names = append(schemas, m.Schema), append(names, m.Name.Name)
		}
	}
	rows, err := conn.Query(ctx, `
SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN unnest($1::text[], $2::text[]) AS w (s, t) ON n.nspname = w.s AND c.relname = w.t`, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("reading the tables' oids: %w", err)
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("reading the tables' oids: %w", err)
	}
	return oids, nil
}

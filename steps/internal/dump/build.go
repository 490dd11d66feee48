package dump

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Builder makes the objects of PostData on the target. Every call first looks what is there and
// valid, so it may be repeated after a death. Safe for concurrent use on different tables.
type Builder struct {
	Target   *pg.Server
	Objects  []Object
	Parallel int               // sessions of one call. Defaults to 4
	Memory   string            // maintenance_work_mem of our sessions where the server's is lower. Defaults to "512MB"
	Done     func(Object)      // called after each object that was made; may be nil
	Waiting  func(pg.LockWait) // hears of every lock that was not to be had at once; may be nil
	// Hold is asked before each object of EnsureAll and BuildKey and before each validation, also by several
	// sessions at once, and may wait; may be nil.
	Hold func(ctx context.Context) error
}

func (b *Builder) hold(ctx context.Context) error {
	if b.Hold == nil {
		return ctx.Err()
	}
	return b.Hold(ctx)
}

// Connect opens a session for building: marked, as replica, with the memory that index builds want.
func (b *Builder) Connect(ctx context.Context, name string) (*pgx.Conn, error) {
	conn, err := b.Target.Connect(ctx, pg.Use{Name: name, Marked: true, Replica: true})
	if err != nil {
		return nil, err
	}
	if err := b.Raise(ctx, conn); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return conn, nil
}

// Raise sets maintenance_work_mem for a session, never lower than it is.
func (b *Builder) Raise(ctx context.Context, conn *pgx.Conn) error {
	memory := b.Memory
	if memory == "" {
		memory = "512MB"
	}
	_, err := conn.Exec(ctx, `SELECT set_config('maintenance_work_mem', $1, false)
		WHERE pg_size_bytes(current_setting('maintenance_work_mem')) < pg_size_bytes($1)`, memory)
	if err != nil {
		return fmt.Errorf("raising maintenance_work_mem: %w", err)
	}
	return nil
}

// BuildKey makes the index behind t's key, with its constraint, on every member of a partition
// tree, over a session of the caller's. A table without a key has nothing to build, nor one whose primary key
// stands under another name, which the source gave up since: passes find rows by that as well.
func (b *Builder) BuildKey(ctx context.Context, conn *pgx.Conn, t scope.Table) error {
	if apart, err := KeyApart(ctx, conn, []scope.Table{t}); err != nil || len(apart) > 0 {
		return err
	}
	for _, o := range b.of(t, func(o Object) bool { return o.Key }) {
		if err := b.hold(ctx); err != nil {
			return err
		}
		if err := b.Ensure(ctx, conn, o, false); err != nil {
			return err
		}
	}
	return nil
}

// BuildIndexes makes the plain indexes of t and its partitions, several at once, and then what
// hangs on them. Unique ones are not among them: rows that were read at different times can break
// them until the first exact pass.
func (b *Builder) BuildIndexes(ctx context.Context, t scope.Table) error {
	return b.EnsureAll(ctx, b.of(t, func(o Object) bool { return o.Kind == Index && !o.Key }), false)
}

// Analyze collects a table's statistics. It waits for autovacuum, which gives way to it, partition by
// partition; who waits for such a lock holds up no reader and no writer.
func (b *Builder) Analyze(ctx context.Context, conn *pgx.Conn, t scope.Table) error {
	if _, err := conn.Exec(ctx, "ANALYZE "+pg.Name(t.Schema, t.Name.Name)); err != nil {
		return fmt.Errorf("analyzing %s: %w", t.Display(), err)
	}
	return nil
}

// Relations gives the names of a table and of every member of its partition tree.
func Relations(t scope.Table) map[scope.Name]bool {
	names := map[scope.Name]bool{t.Name: true}
	for _, m := range t.Members {
		names[m.Name] = true
	}
	return names
}

// of picks objects of a table by want; what hangs on a picked index (attach, settings) follows it.
func (b *Builder) of(t scope.Table, want func(Object) bool) []Object {
	names := Relations(t)
	return Pick(b.Objects, func(o Object) bool { return names[o.Table] && want(o) })
}

// Pick selects objects, and with an index what hangs on it: attachments and settings, in an order
// in which they can be made.
func Pick(objects []Object, want func(Object) bool) []Object {
	type indexName struct{ schema, name string }
	picked := map[indexName]bool{}
	var out []Object
	for _, o := range objects {
		if o.Kind != Attach && o.Kind != IndexSetting && o.NotCarried == "" && want(o) {
			out = append(out, o)
			if o.isIndex() {
				picked[indexName{o.Table.Schema, o.Name}] = true
			}
		}
	}
	for _, kind := range []Kind{Attach, IndexSetting} {
		for _, o := range objects {
			if o.Kind == kind && picked[indexName{o.Table.Schema, o.Name}] {
				out = append(out, o)
			}
		}
	}
	return out
}

func (o Object) isIndex() bool { return o.Kind == Index || o.Kind == Unique || o.Kind == Exclusion }

// EnsureAll makes objects: indexes over several sessions, and after them, in order, the rest.
// concurrently builds unique indexes of tables that are written meanwhile without stopping the writers.
func (b *Builder) EnsureAll(ctx context.Context, objects []Object, concurrently bool) error {
	split := slices.IndexFunc(objects, func(o Object) bool { return !o.isIndex() })
	if split < 0 {
		split = len(objects)
	}
	// A concurrent build waits for every session with an older snapshot, also one that waits for its
	// table: two on one table would wait for each other.
	if err := b.parallel(ctx, batches(objects[:split], concurrently), func(ctx context.Context, conn *pgx.Conn, o Object) error {
		return b.Ensure(ctx, conn, o, concurrently)
	}); err != nil {
		return err
	}
	if split == len(objects) {
		return nil
	}
	conn, err := b.Connect(ctx, "build")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, o := range objects[split:] {
		if err := b.hold(ctx); err != nil {
			return err
		}
		if err := b.Ensure(ctx, conn, o, concurrently); err != nil {
			return err
		}
	}
	return nil
}

// batches cuts objects into pieces that one session makes one after the other: one object each, or
// all of one table.
func batches(objects []Object, byTable bool) [][]Object {
	var out [][]Object
	at := map[scope.Name]int{}
	for _, o := range objects {
		i, ok := at[o.Table]
		if !ok || !byTable {
			i = len(out)
			at[o.Table], out = i, append(out, nil)
		}
		out[i] = append(out[i], o)
	}
	return out
}

// parallel runs do for every object over a few sessions, batch by batch.
func (b *Builder) parallel(ctx context.Context, todo [][]Object, do func(context.Context, *pgx.Conn, Object) error) error {
	workers := b.Parallel
	if workers <= 0 {
		workers = 4
	}
	work := make(chan []Object, len(todo))
	for _, batch := range todo {
		work <- batch
	}
	close(work)
	g, ctx := errgroup.WithContext(ctx)
	for i := range min(workers, len(todo)) {
		g.Go(func() error {
			conn, err := b.Connect(ctx, fmt.Sprintf("build %d", i+1))
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			for batch := range work {
				for _, o := range batch {
					if err := b.hold(ctx); err != nil {
						return err
					}
					if err := do(ctx, conn, o); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

package steps

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
)

// sideConns is one plain session a side, for looks and short statements.
type sideConns struct{ source, target *pgx.Conn }

// trip is a round trip to a side; 0 where that cannot be asked.
func (s *sideConns) trip(ctx context.Context, side engine.Side) time.Duration {
	took, err := pg.Trip(ctx, s.of(side))
	if err != nil {
		return 0
	}
	return took
}

func openSides(ctx context.Context, env *Env, name string) (*sideConns, error) {
	return openSidesFor(ctx, env, pg.Use{Name: name, Marked: true, LockTimeout: lockPatience})
}

// openSidesToDefine is openSides for a target that gets definitions: in the replica role, so that no
// trigger and no foreign key of the application acts on rows that are thrown away. What was seen on the source
// before is durable there.
func openSidesToDefine(ctx context.Context, env *Env, name string) (*sideConns, error) {
	sides, err := openSidesFor(ctx, env, pg.Use{Name: name, Marked: true, Replica: true, LockTimeout: lockPatience})
	if err != nil {
		return nil, err
	}
	if err := sides.durable(ctx); err != nil {
		sides.close(context.WithoutCancel(ctx))
		return nil, err
	}
	return sides, nil
}

// durable makes one small durable commit on the source: under asynchronous commits a crash of it could take back DDL that is
// about to be carried to the target for good.
func (s *sideConns) durable(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, s.source, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '10s'"); err != nil { // passes and loads write that row too, and nobody waits for us
			return err
		}
		return capture.Heartbeat(ctx, tx)
	})
	if err == nil {
		err = pg.Durable(ctx, s.source)
	}
	if err != nil {
		return sided(engine.Source, err)
	}
	return nil
}

// openSidesFor opens the target as asked, and the source never in the replica role.
func openSidesFor(ctx context.Context, env *Env, use pg.Use) (*sideConns, error) {
	asked := use
	asked.Replica = false
	source, err := env.Source.Connect(ctx, asked)
	if err != nil {
		return nil, err
	}
	target, err := env.Target.Connect(ctx, use)
	if err != nil {
		_ = source.Close(ctx)
		return nil, err
	}
	return &sideConns{source: source, target: target}, nil
}

// again replaces sessions that a cancelled statement has closed.
func (s *sideConns) again(ctx context.Context, env *Env, name string) error {
	if !s.source.IsClosed() && !s.target.IsClosed() {
		return nil
	}
	fresh, err := openSides(ctx, env, name)
	if err != nil {
		return err
	}
	s.close(ctx)
	*s = *fresh
	return nil
}

func (s *sideConns) close(ctx context.Context) {
	if s == nil {
		return
	}
	for _, conn := range []*pgx.Conn{s.source, s.target} {
		if conn != nil {
			_ = conn.Close(ctx)
		}
	}
}

// of gives one side's session.
func (s *sideConns) of(side engine.Side) *pgx.Conn {
	if side == engine.Source {
		return s.source
	}
	return s.target
}

// Server gives one side.
func (e *Env) Server(side engine.Side) *pg.Server {
	if side == engine.Source {
		return e.Source
	}
	return e.Target
}

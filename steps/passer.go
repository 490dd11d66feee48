package steps

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// lockPatience is the lock_timeout of our sessions that touch the application's tables: below
// deadlock_timeout, so that we are the victim and never the application.
const lockPatience = 300 * time.Millisecond

// newPasser makes passes from one side to the other.
func newPasser(env *Env, from, to *pg.Server, cp engine.Checkpoint) *pass.Passer {
	return pass.New(pass.Config{
		From: from, To: to, Run: env.Run, Tables: env.Scope.Tables, Log: env.Log, Emit: cp.Emit,
		Fence: env.fence(to),
		Check: func(ctx context.Context, conn *pgx.Conn) error {
			return checkCatalog(ctx, env, conn, engine.Side(from.Side()))
		},
	})
}

// fence gives what every transaction of ours that writes rows calls first. On the target the epoch
// is locked in that transaction; on the source, where there is no journal, the journal is asked
// before, and its closed gate, which is looked at as well, is what keeps two runners from harm. Neither lets
// rows go to the side that takes writes.
func (e *Env) fence(to *pg.Server) func(ctx context.Context, tx pgx.Tx) error {
	if to == e.Target {
		return func(ctx context.Context, tx pgx.Tx) error {
			return journal.FenceRows(ctx, tx, e.Run.ID, e.Run.Epoch, engine.Target)
		}
	}
	return func(ctx context.Context, tx pgx.Tx) error {
		if err := e.Journal.FencedRows(ctx, engine.Source); err != nil {
			return err
		}
		return gate.NotOpen(ctx, tx)
	}
}

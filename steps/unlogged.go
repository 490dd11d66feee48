package steps

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// emptied names the UNLOGGED tables that a crash of their server emptied: no trigger fires for
// that, and the time at which the postmaster started tells nothing when one backend was killed. A
// row in an UNLOGGED table of ours goes with them.
func emptied(ctx context.Context, env *Env, conn *pgx.Conn) ([]capture.Change, error) {
	tables := captured(env)
	if !slices.ContainsFunc(tables, func(t scope.Table) bool { return t.Unlogged }) {
		return nil, nil
	}
	gone, err := capture.SentinelGone(ctx, conn)
	if err != nil || !gone {
		return nil, err
	}
	var changes []capture.Change
	for _, t := range tables {
		if t.Unlogged {
			changes = append(changes, capture.Change{
				ID: t.ID, Table: t.Name, What: capture.Rewritten, Rule: capture.Recopy,
				Text: pg.Name(t.Schema, t.Name.Name) + ": the server crashed and emptied this UNLOGGED table",
			})
		}
	}
	return changes, nil
}

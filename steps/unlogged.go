package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// emptied names the UNLOGGED tables that a crash of their server emptied: no trigger fires for
// that, and the time at which the postmaster started tells nothing when one backend was killed. A
// row in an UNLOGGED table of ours goes with them.
func emptied(ctx context.Context, env *Env, conn *pgx.Conn, side engine.Side) ([]capture.Change, error) {
	tables := unlogged(env)
	if len(tables) == 0 {
		return nil, nil
	}
	gone, err := capture.SentinelGone(ctx, conn)
	if err != nil || !gone {
		return nil, err
	}
	changes := make([]capture.Change, len(tables))
	for i, t := range tables {
		changes[i] = capture.Change{
			ID: t.ID, Table: t.Name, What: capture.Rewritten, Rule: capture.Recopy,
			Text: pg.Name(t.Schema, t.Name.Name) + ": the " + string(side) + " crashed and emptied this UNLOGGED table",
		}
	}
	return changes, nil
}

// emptiedTarget is emptied for the side that passes write to: they carry changed rows only, and would
// never bring back what a crash there has taken.
func emptiedTarget(ctx context.Context, env *Env) (changes []capture.Change, err error) {
	if len(unlogged(env)) == 0 {
		return nil, nil
	}
	err = env.Journal.Read(ctx, func(conn *pgx.Conn) (err error) {
		changes, err = emptied(ctx, env, conn, engine.Target)
		return err
	})
	return changes, err
}

// errEmptied is for rows that a crash of the source has taken while the target takes writes.
var errEmptied = errors.New("its rows are on the target alone")

// emptiedSource refuses to go back to a source that has lost rows in a crash: reverse passes carry changed
// rows only.
func emptiedSource(ctx context.Context, env *Env, source *pgx.Conn) error {
	lost, err := emptied(ctx, env, source, engine.Source)
	if err != nil || len(lost) == 0 {
		return err
	}
	return &engine.Error{Op: "going back", Err: fmt.Errorf("%s: %w", lost[0].Text, errEmptied), Hint: "Stay on the target: pgrunbook finish"}
}

func unlogged(env *Env) []scope.Table {
	return slices.DeleteFunc(captured(env), func(t scope.Table) bool { return !t.Unlogged })
}

// refilled sets the sentinels again where every table that a crash empties is loaded again: a crash may
// have come since the last look, and is else not seen any more.
func refilled(ctx context.Context, env *Env, sides *sideConns, again []scope.Table) error {
	for _, t := range unlogged(env) {
		if !slices.ContainsFunc(again, func(a scope.Table) bool { return a.ID == t.ID }) {
			return nil
		}
	}
	for _, conn := range []*pgx.Conn{sides.source, sides.target} {
		if err := capture.ResetSentinel(ctx, conn); err != nil {
			return err
		}
	}
	return nil
}

// whole asks on a way back whether the source has lost rows in a crash. On the way there every pass asks it of
// both sides.
func (f *flipper) whole(ctx context.Context) error {
	if f.to != engine.Source {
		return nil
	}
	return emptiedSource(ctx, f.env, f.looks.source)
}

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
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// carriedBack tells what the run carries to the target from what somebody did there at the same time, where the way back is
// ready: the former is accepted as it is carried, the latter stays for the freeze, which has the rows compared.
type carriedBack struct {
	ready   bool
	carried map[int32][]capture.Change
	touched map[int32]bool // tables that somebody had touched before
}

// lookBack looks at the target's tables before anything is carried to them. What is there already of what is carried, a
// process has made that died before it could record it.
func lookBack(ctx context.Context, env *Env, target *pgx.Conn, carried []capture.Change) (*carriedBack, error) {
	b := &carriedBack{carried: byTable(carried), touched: map[int32]bool{}}
	var err error
	if b.ready, err = wayBack(ctx, env, target); err != nil || !b.ready {
		return b, err
	}
	tables := slices.DeleteFunc(captured(env), func(t scope.Table) bool { return len(b.carried[t.ID]) == 0 })
	found, err := capture.Check(ctx, target, env.Run, tables)
	if err != nil {
		return b, err
	}
	for _, c := range found {
		ours := !unseenRows(c) || b.names(c) && c.What != capture.Inheritance // which does not tell from what
		if ours && c.What == capture.PartitionAdded {
			if ours, err = emptyOn(ctx, target, c.Member); err != nil { // no pass has written to it
				return b, err
			}
		}
		b.touched[c.ID] = b.touched[c.ID] || !ours
	}
	return b, nil
}

// names reports whether what happened on the target is what is carried.
func (b *carriedBack) names(c capture.Change) bool {
	shape := []capture.What{capture.ColumnDropped, capture.PartitionAdded, capture.Inheritance}
	return slices.Contains(shape, c.What) && slices.ContainsFunc(b.carried[c.ID], func(o capture.Change) bool {
		return o.What == c.What && o.Column == c.Column && o.Member == c.Member
	})
}

// accept records that the target's table was changed by what was carried, and captures new partitions there. Of a table that
// somebody touched nothing is recorded, nor of one that is not captured: a later step does that, or somebody undid it.
func (b *carriedBack) accept(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table) error {
	if !b.ready || !isCaptured(t) {
		return nil
	}
	shapes, err := capture.Shapes(ctx, sides.target, []scope.Table{t})
	if err != nil || len(shapes) == 0 {
		return err
	}
	changes, err := capture.Check(ctx, sides.target, env.Run, []scope.Table{t})
	if err != nil {
		return err
	}
	err = capture.InstallClosed(ctx, sides.target, env.Run, t, waiting(cp, engine.Target, "install capture on the target"))
	if errors.Is(err, capture.ErrStatement) { // somebody gave it a parent there, which the freeze names
		return nil
	}
	if err != nil {
		return err
	}
	rewrites := slices.ContainsFunc(b.carried[t.ID], func(c capture.Change) bool { return c.Column != "" })
	rewritten := func(c capture.Change) bool { return c.What == capture.Rewritten && rewrites }
	theirs := func(c capture.Change) bool {
		return unseenRows(c) && !b.names(c) && !rewritten(c)
	}
	if len(changes) == 0 || b.touched[t.ID] || slices.ContainsFunc(changes, theirs) || len(forPerson(env, changes)) > 0 {
		return nil
	}
	if slices.ContainsFunc(changes, rewritten) { // by what was carried, or by somebody meanwhile: nothing tells
		why := pg.Name(t.Schema, t.Name.Name) + " was rewritten on the target while a change was carried there"
		if err := mayDiffer(ctx, env, why); err != nil {
			return err
		}
		if err := env.Journal.Reopen(ctx, verifyID, false, why); err != nil {
			return err
		}
	}
	return capture.Accept(ctx, sides.target, t, changes...)
}

// gateMade gates the partitions that were made on the target. A gate that somebody took away from another is the freeze's to
// find: rows may have been written past it.
func gateMade(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, changes []capture.Change) error {
	var made []scope.Table
	for _, c := range changes {
		for _, p := range c.Places {
			_, there, err := placeOn(ctx, sides.target, p.Member)
			if err != nil {
				return err
			}
			if there { // else somebody dropped it: the tree is found to lack it
				made = append(made, scope.Table{Name: p.Member})
			}
		}
	}
	if len(made) == 0 {
		return nil
	}
	return gate.Arm(ctx, sides.target, env.runAt(engine.Target), made, waiting(cp, engine.Target, "gate a table of the target"))
}

// emptyOn reports whether a table of the target has no rows.
func emptyOn(ctx context.Context, target *pgx.Conn, table scope.Name) (empty bool, err error) {
	name := pg.Name(table.Schema, table.Name)
	if err := target.QueryRow(ctx, "SELECT NOT EXISTS (SELECT FROM "+name+")").Scan(&empty); err != nil {
		return false, fmt.Errorf("looking for rows of %s on the target: %w", name, err)
	}
	return empty, nil
}

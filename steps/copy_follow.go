package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Shorter in tests.
var (
	followEvery    = 2 * time.Second
	followPatience = time.Minute // for locks, and for a server that is away
	pieceRows      int64         // captured changes that one pass carries at most; 0 is what package pass says
)

// loaded are the tables whose load is over: passes may touch them.
func loaded(ctx context.Context, env *Env) ([]scope.Table, error) {
	states, err := env.Journal.TableStates(ctx, nil)
	if err != nil {
		return nil, err
	}
	var list []scope.Table
	for _, t := range captured(env) {
		if states[t.ID].State == journal.Following {
			list = append(list, t)
		}
	}
	return list, nil
}

// followLoaded makes passes over the tables that are loaded while others still load or indexes are
// built, so that days of that do not leave days of changes in the deltas. What a pass cannot do here
// is left to later passes, which repeat it and name it: a pass that fails is tried again and again, as
// the load itself is none the worse for it. A large backlog goes in pieces where nobody minds that the target is between two
// snapshots of the source meanwhile. The function that it returns ends it and waits.
func followLoaded(ctx context.Context, env *Env, limits *limits, cp engine.Checkpoint, pieces bool) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	said := map[string]bool{} // what lasts for days is said once
	say := func(object, text string) {
		if !said[text] {
			said[text] = true
			cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: object, Message: text})
		}
	}
	go func() {
		defer close(done)
		defer limits.nobodyFollows()
		for {
			err := follow(ctx, env, limits, cp, pieces, say)
			if err == nil || ctx.Err() != nil {
				return
			}
			limits.passFailed(err)
			say("", fmt.Sprintf("a pass over the loaded tables ended, and is tried again: %v", err))
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * followEvery):
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// changed are tables that no pass can follow as they are now.
type changed struct{ why map[int32]string }

func (c *changed) Error() string {
	return strings.Join(slices.Sorted(maps.Values(c.why)), "; ")
}

func follow(ctx context.Context, env *Env, limits *limits, cp engine.Checkpoint, pieces bool, say func(object, text string)) error {
	var tables []scope.Table
	unfit := map[int32]bool{} // no later pass can apply what was captured of them
	passer := pass.New(pass.Config{
		From: env.Source, To: env.Target, Run: env.Run, Log: env.Log, Fence: env.fence(env.Target),
		Emit: func(e engine.Event) {
			if e.Kind != engine.EventProgress { // that of the load is shown
				cp.Emit(e)
			}
		},
		Check: func(ctx context.Context, conn *pgx.Conn) error {
			changes, err := capture.Check(ctx, conn, env.Run, tables)
			if err != nil || len(changes) == 0 {
				return err
			}
			c := &changed{map[int32]string{}}
			for _, one := range changes {
				c.why[one.ID] = one.Text
			}
			return c
		},
	})
	defer func() { _ = passer.Close(context.WithoutCancel(ctx)) }()
	how := pass.FollowOptions{Options: pass.Options{Patience: followPatience}}
	if pieces {
		how.Pieces = &pass.DrainOptions{
			PieceRows: pieceRows, Patience: followPatience, Spent: limits.rate.Spent,
			Control: func() pass.Control {
				c := limits.passes()
				c.Workers = 1 // beside all of the load's
				return c
			},
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
		var err error
		if tables, err = loaded(ctx, env); err != nil {
			return err
		}
		all := slices.Clone(tables)
		tables = slices.DeleteFunc(tables, func(t scope.Table) bool { return unfit[t.ID] })
		limits.passBegins(all, len(all) < len(captured(env)))
		for again := true; again && len(tables) > 0 && !limits.passes().Paused; {
			passer.SetTables(tables)
			res, err := passer.Follow(ctx, how)
			var images *pass.UnfitError
			if errors.As(err, &images) {
				unfit[images.Table.ID] = true
				err = &changed{map[int32]string{images.Table.ID: images.Error()}}
			}
			if tables, again = followable(tables, err, say); again {
				limits.passLeaves(all, tables)
				continue
			}
			if err != nil {
				return err
			}
			limits.passTook(all, tables)
			if err := limits.rate.Spent(ctx, res.Bytes); err != nil {
				return err
			}
		}
	}
}

// followable leaves out the tables for which a pass could not go on: theirs wait, and those of all others do not. It is
// false where err is about none of them.
func followable(tables []scope.Table, err error, say func(object, text string)) ([]scope.Table, bool) {
	var c *changed
	if !errors.As(err, &c) {
		return tables, false
	}
	return slices.DeleteFunc(tables, func(t scope.Table) bool {
		why, waits := c.why[t.ID]
		if waits {
			name := pg.Name(t.Schema, t.Name.Name)
			say(name, fmt.Sprintf("passes leave %s out until what loads now is loaded: %s", name, why))
		}
		return waits
	}), true
}

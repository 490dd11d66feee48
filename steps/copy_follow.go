package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Shorter in tests.
var (
	followEvery    = 2 * time.Second
	followPatience = time.Minute // for locks, and for a server that is away
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
// the load itself is none the worse for it. The function that it returns ends it and waits.
func followLoaded(ctx context.Context, env *Env, limits *limits, cp engine.Checkpoint) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for said := ""; ; {
			err := follow(ctx, env, limits, cp)
			if err == nil || ctx.Err() != nil {
				return
			}
			if text := err.Error(); text != said { // what lasts for days is said once
				said = text
				cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: fmt.Sprintf("a pass over the loaded tables ended, and is tried again: %v", err)})
			}
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

func follow(ctx context.Context, env *Env, limits *limits, cp engine.Checkpoint) error {
	var tables []scope.Table
	passer := pass.New(pass.Config{
		From: env.Source, To: env.Target, Run: env.Run, Log: env.Log, Emit: cp.Emit, Fence: env.fence(env.Target),
		Check: func(ctx context.Context, conn *pgx.Conn) error {
			changes, err := capture.Check(ctx, conn, env.Run, tables)
			if err == nil && len(changes) > 0 {
				err = errors.New(changes[0].Text)
			}
			return err
		},
	})
	defer func() { _ = passer.Close(context.WithoutCancel(ctx)) }()
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
		if len(tables) == 0 || limits.passes().Paused {
			continue
		}
		passer.SetTables(tables)
		res, err := passer.Exact(ctx, pass.Options{Patience: followPatience})
		if err != nil {
			return err
		}
		if err := limits.rate.Spent(ctx, res.Bytes); err != nil {
			return err
		}
	}
}

package steps

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// stayWithoutSource says what to type when a flip is open and the source, which alone knows whether its
// COMMIT happened, never comes back.
const stayWithoutSource = "If the source is gone for good, open the target and stay there: pgrunbook finish --without-source"

// settleWithoutSource ends a flip that was open when the source went away for good: only the source
// could tell whether its COMMIT happened, and whatever it took since is gone with it. The target has
// everything up to the hold, so it takes writes from now on.
func settleWithoutSource(ctx context.Context, env *Env) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Side != journal.Unclear || owner.Flip == nil {
		return err
	}
	if err := sourceGone(ctx, env); err != nil {
		return err
	}
	back, id := owner.Flip.To == engine.Source, engine.StepID("freeze")
	if back {
		id = "rollback"
	}
	record := env.Journal.Checkpoint(id, env.Sink)
	var cursor freezeCursor
	if _, err := record.Load(ctx, &cursor); err != nil {
		return err
	}
	if err := openTargetAlone(ctx, env, back, cursor.AtOpen); err != nil {
		return sided(engine.Target, err)
	}
	if err := env.Journal.SetOwner(ctx, nil, engine.Target); err != nil {
		return err
	}
	abortSink{env}.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: "the target takes writes; the source must never do so again: if it comes back, keep the application away from it"})
	p, err := newPoolers(ctx, env, record, back, &cursor)
	if err != nil {
		return err
	}
	defer p.close()
	return p.settle(ctx, !back)
}

// sourceGone makes sure that nothing answers at the source's address: one that does is asked.
func sourceGone(ctx context.Context, env *Env) error {
	bounded, cancel := context.WithTimeout(ctx, targetLook)
	defer cancel()
	conn, err := env.Source.Connect(bounded, pg.Use{Name: "finish"})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		_ = conn.Close(ctx)
		err = errors.New("it answers, and it alone knows how the flip went")
	} else if unreachable(err) {
		return nil
	}
	return &engine.Error{Op: "giving up the", Object: "source", Err: err, Hint: "Let it say how the flip went, with the same command as before it: pgrunbook apply. For two writable sides there is no way back."}
}

// openTargetAlone opens the target's gate with what belongs to its opening; one that is open stays so.
func openTargetAlone(ctx context.Context, env *Env, back bool, atOpen []string) error {
	conn, err := env.Target.Connect(ctx, pg.Use{Name: "finish", Marked: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if at, err := gate.State(ctx, conn, env.Run); err != nil || at == gate.Open {
		return err
	}
	if back { // what was kept is for the opening of the source
		atOpen = nil
		writable, err := resetReadOnly(ctx, conn, "")
		if err != nil {
			return err
		}
		if writable != "" {
			atOpen = append(atOpen, writable)
		}
	}
	return gate.OpenAlone(ctx, conn, env.Run.GateKey, func(ctx context.Context) error { return runAll(ctx, conn, append(atOpen, gate.OpenedSQL)) })
}

func runAll(ctx context.Context, conn *pgx.Conn, statements []string) error {
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("running %s: %w", sql, err)
		}
	}
	return nil
}

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
// everything up to the hold, so it takes writes from now on. It may be called again after any death.
func settleWithoutSource(ctx context.Context, env *Env) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Flip == nil || owner.Side == engine.Source {
		return err
	}
	if owner.Side == journal.Unclear {
		err := openTargetAlone(ctx, env, owner.Flip)
		if errors.Is(err, journal.ErrSettled) {
			return settleWithoutSource(ctx, env)
		}
		if err != nil {
			return err
		}
		abortSink{env}.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Message: "the target takes writes; the source must never do so again: if it comes back, keep the application away from it"})
	}
	return clientsToTarget(ctx, env, owner.Flip)
}

// clientsToTarget sends the clients after a flip that was open when the source went away: one that was on
// its way back is undone by tidy. A pooler that is gone, or that somebody has changed, is named and
// keeps nobody from staying.
func clientsToTarget(ctx context.Context, env *Env, flip *journal.Flip) error {
	step, err := freezeFrom(env, engine.Source)
	if err != nil || step == nil || flip.To != engine.Target {
		return err
	}
	record := env.Journal.Checkpoint(step.id, env.Sink)
	cursor := &freezeCursor{}
	if _, err := record.Load(ctx, cursor); err != nil || !cursor.Paused && cursor.Begun == 0 {
		return err
	}
	for _, s := range step.repoint[:min(cursor.Begun, len(step.repoint))] {
		bounded, cancel := context.WithTimeout(ctx, s.Timeout)
		if err := s.Do(bounded); err != nil {
			byHand(env, engine.Target, fmt.Errorf("switch step %s: %w", s.Name, err))
		}
		cancel()
	}
	p, err := newPoolers(ctx, env, record, false, cursor)
	if err != nil {
		return err
	}
	defer p.close()
	byHand(env, engine.Target, errors.Join(p.lead(ctx, true), p.group.Resume(ctx)))
	return record.Save(ctx, nil, freezeCursor{Changes: cursor.Changes, AtOpen: cursor.AtOpen})
}

// Why a source that answers is not given up while a flip is open.
const (
	sourceKnows  = "it answers, and it alone knows how the flip went"
	letSourceSay = "Let it say how the flip went, with the same command as before it: pgrunbook apply. For two writable sides there is no way back."
)

// sourceGone makes sure that nothing answers at the source's address; why and hint are for one that does.
func sourceGone(ctx context.Context, env *Env, why, hint string) error {
	bounded, cancel := context.WithTimeout(ctx, targetLook)
	defer cancel()
	conn, err := env.Source.Connect(bounded, pg.Use{Name: "finish"})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		_ = conn.Close(ctx)
		err = errors.New(why)
	} else if unreachable(err) {
		return nil
	}
	return &engine.Error{Op: "giving up the", Object: "source", Err: err, Hint: hint}
}

// openTargetAlone opens the target's gate with what belongs to its opening, and settles the flip in the
// same transaction. Its session is there before the source is asked: a later runner, which may find the
// source and let it take writes, ends it first.
func openTargetAlone(ctx context.Context, env *Env, flip *journal.Flip) error {
	conn, err := env.Target.Connect(ctx, pg.Use{Name: "finish", Marked: true, LockTimeout: openTry})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := sourceGone(ctx, env, sourceKnows, letSourceSay); err != nil {
		return err
	}
	statements, err := openingAlone(ctx, env, conn, flip)
	if err != nil {
		return sided(engine.Target, err)
	}
	err = pg.WithLock(ctx, conn, openingLocks(env, abortSink{env}, engine.Target, statements), func(ctx context.Context, tx pgx.Tx) error {
		if err := env.Journal.EndFlip(ctx, tx, flip, engine.Target); err != nil {
			return err
		}
		if open, err := gate.IsOpen(ctx, tx, env.Run.GateKey); err != nil || open { // then nobody is made to wait
			return err
		}
		for _, sql := range statements {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("running %s: %w", sql, err)
			}
		}
		if err := gate.OpenIn(ctx, tx, env.Run.GateKey); err != nil {
			return err
		}
		return sourceGone(ctx, env, sourceKnows, letSourceSay) // still: from here on nobody else can open it
	})
	if err != nil {
		return sided(engine.Target, unopened(engine.Target, err))
	}
	return nil
}

// openingAlone gives what belongs to the opening of the target: what the freeze has left for whoever ends
// it, or, on a way back, only what closed the target.
func openingAlone(ctx context.Context, env *Env, conn *pgx.Conn, flip *journal.Flip) ([]string, error) {
	if flip.To == engine.Target {
		var cursor freezeCursor
		_, err := env.Journal.Checkpoint("freeze", env.Sink).Load(ctx, &cursor)
		return cursor.AtOpen, err
	}
	writable, err := resetReadOnly(ctx, conn, "")
	if err != nil || writable == "" {
		return nil, err
	}
	return []string{writable}, nil
}

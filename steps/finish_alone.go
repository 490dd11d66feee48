package steps

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
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
	begun, err := cursor.begun(step.repoint)
	byHand(env, engine.Target, err)
	for _, s := range begun {
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

// answer is what was found at an address of the source.
type answer struct {
	address string
	who     string // that answers there; empty where no session came about
	ours    bool   // it has something of this run
	err     error
}

// askSource looks at the source's address, and at the one that the run was begun with where that is another:
// nothing need answer at a mistyped one.
func askSource(ctx context.Context, env *Env) ([]answer, error) {
	servers := []*pg.Server{env.Source}
	if was := env.Journal.SourceIdentity.Address; was != "" && was != env.Source.Address() {
		server, err := env.Source.At(was)
		if err != nil {
			return nil, fmt.Errorf("asking the source where the run was begun: %w", err)
		}
		servers = append(servers, server)
	}
	list := make([]answer, len(servers))
	var all sync.WaitGroup
	for i, server := range servers {
		all.Add(1)
		go func() {
			defer all.Done()
			list[i] = answerOf(ctx, env, server)
		}()
	}
	all.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return list, nil
}

func answerOf(ctx context.Context, env *Env, server *pg.Server) answer {
	a := answer{address: server.Address()}
	ctx, cancel := context.WithTimeout(ctx, targetLook)
	defer cancel()
	var conn *pgx.Conn
	if conn, a.err = server.Connect(ctx, pg.Use{Name: "finish"}); a.err != nil {
		return a
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	a.who = "a server"
	id, err := server.Identity(ctx, conn)
	if err != nil {
		a.err = err
		return a
	}
	was := env.Journal.SourceIdentity.SystemIdentifier
	a.who = fmt.Sprintf("database %s of cluster %s", id.Database, id.SystemIdentifier)
	if was != "" && id.SystemIdentifier != "" && id.SystemIdentifier != was {
		return a
	}
	run, err := capture.RunOf(ctx, conn)
	if err == nil && run.ID == "" { // a removal that died leaves the gate last
		var at gate.Position
		at, err = gate.State(ctx, conn, env.Run)
		a.ours = at != gate.Absent
	}
	a.ours, a.err = a.ours || run.ID == env.Run.ID, err
	return a
}

// silent reports whether nobody is there.
func (a answer) silent() bool { return a.who == "" && unreachable(a.err) }

func (a answer) refused(err error, hint string) error {
	return &engine.Error{Op: "giving up the", Object: "source at " + a.address, Err: err, Hint: hint}
}

// sourceGone makes sure that nothing answers for the source while a flip is open.
func sourceGone(ctx context.Context, env *Env) error {
	list, err := askSource(ctx, env)
	if err != nil {
		return err
	}
	for _, a := range list {
		switch {
		case a.silent():
		case a.who != "":
			return a.refused(errors.New(sourceKnows), letSourceSay)
		default:
			return a.refused(a.err, letSourceSay)
		}
	}
	return nil
}

// givenUp makes sure, where no flip is open, that nothing of this run answers for the source, and says what was
// found instead of it: a server that was built anew, or another one.
func givenUp(ctx context.Context, env *Env, both string) (found []string, err error) {
	list, err := askSource(ctx, env)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		switch {
		case a.silent():
			found = append(found, "nothing answers at "+a.address)
		case a.err != nil:
			return nil, a.refused(fmt.Errorf("something answers there, and nobody can tell whether it is the source: %w", a.err),
				"Mend what it says, and let finish clean both sides: "+both+". Where it never lets this role in again, take everything of ours off the target by hand: docs/what-if.md, remove.")
		case a.ours:
			return nil, a.refused(errors.New("it answers, with its capture and its gate"),
				"Let finish clean both sides: "+both+". What is not this run's source must not answer at its address.")
		default:
			found = append(found, a.who+" answers at "+a.address+", and has nothing of this run")
		}
	}
	return found, nil
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
	if err := sourceGone(ctx, env); err != nil {
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
		return sourceGone(ctx, env) // still: from here on nobody else can open it
	})
	if err != nil {
		return sided(engine.Target, unopened(engine.Target, err))
	}
	failpoint.Hit("finish.opened")
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

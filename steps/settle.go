package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// A verdict is what both gates and the journal say together.
type verdict int

const (
	fromWrites    verdict = iota // and no flip is open
	neverFlipped                 // a flip is decided and did not happen: from takes writes
	halfFlipped                  // from is closed by a decided flip: to is opened, if it is not open yet
	journalBehind                // the journal says that to takes writes, the gates say from
	contradiction                // no flip that is recorded explains the gates
)

// judge is the rule by which every process finds out who may write. The gates decide; the journal
// only says whether a closed from is a flip's doing.
func judge(state freeze.State, owner journal.Ownership, to engine.Side) verdict {
	unsettled := owner.Flip != nil && owner.Flip.Settled.IsZero() && owner.Flip.To == to
	switch {
	case !state.FromClosed && state.ToClosed && owner.Side == to:
		return journalBehind
	case !state.FromClosed && state.ToClosed && unsettled:
		return neverFlipped
	case !state.FromClosed && state.ToClosed:
		return fromWrites
	case state.FromClosed && (unsettled || owner.Side == to):
		return halfFlipped
	default:
		return contradiction
	}
}

// settle ends what an earlier process may have left between the two COMMITs and reports whether
// the other side takes writes already.
func (f *flipper) settle(ctx context.Context) (opened bool, err error) {
	state, err := f.Look(ctx)
	if err != nil {
		return false, err
	}
	owner, err := f.env.Journal.Owner(ctx)
	if err != nil {
		return false, err
	}
	switch judge(state, owner, f.to) {
	case fromWrites:
		return false, nil
	case neverFlipped:
		return false, f.env.Journal.SetOwner(ctx, nil, f.from)
	case halfFlipped:
		if opened, err = f.Resolve(ctx); err != nil || !opened {
			return false, err
		}
		return true, f.env.Journal.SetOwner(ctx, nil, f.to)
	case journalBehind:
		return false, ambiguous(fmt.Sprintf("the journal says that the %s takes writes, but its gate is closed and the %s's is open", f.to, f.from))
	default:
		return false, ambiguous(fmt.Sprintf("%s closed: %v, %s closed: %v, and the journal records no flip that explains it", f.from, state.FromClosed, f.to, state.ToClosed))
	}
}

// ambiguous is for a person: no look tells who may write.
func ambiguous(text string) error {
	return &engine.Error{
		Class: engine.ClassAmbiguous, Op: "finding who may write", Err: errors.New(text),
		Hint: "Look at both sides: SELECT last_value FROM pgrunbook.gate_flag (0 is open). Close one by hand before anything else: ALTER SEQUENCE pgrunbook.gate_flag RESTART 1.",
	}
}

// noCutover is the end of a freeze that changed nothing.
func noCutover(from engine.Side, cause error, when string) error {
	return &engine.Error{
		Class: engine.ClassNoCutover, Op: "cutting over", Err: cause,
		Hint: fmt.Sprintf("Writes go on at the %s. Run the same command again%s.", from, when),
	}
}

// errUnsettled is the end of a runner that could not find out how its flip went.
var errUnsettled = errors.New("the flip is not settled")

func unsettled(cause error) error {
	return &engine.Error{
		Class: engine.ClassFailed, Op: "finding who may write", Err: fmt.Errorf("%w: %w", errUnsettled, cause),
		Hint: "Run the same command again at once: it looks at both gates and ends the flip.",
	}
}

// unknown looks until the outcome of the flip is known: neither side may be taken for granted.
func (f *flipper) unknown(ctx context.Context, cause error) error {
	f.cp.Emit(engine.Event{Kind: engine.EventWaiting, Level: "warn", Message: "looking at both gates: " + cause.Error()})
	var opened bool
	err := untilSettled(ctx, f.env, func(ctx context.Context) (err error) {
		opened, err = f.settle(ctx)
		return err
	})
	if err != nil {
		return unsettled(errors.Join(cause, err))
	}
	if !opened {
		return noCutover(f.from, cause, "")
	}
	return nil
}

// While neither side may take writes, looking goes on through whatever the network does.
const (
	settleWithin = 2 * time.Minute
	settleTry    = 5 * time.Second        // one look, which also bounds a network that falls silent in it
	settleProbe  = time.Second            // longest wait for a new connection after a look that failed
	settleEvery  = 200 * time.Millisecond // between looks
	afterSignal  = 4 * time.Second        // what is left to it once the walk is being stopped
)

// untilSettled repeats a look until it gives an answer. A look that failed is repeated only when
// both sides take connections again, so that the next one begins as soon as the network is back.
func untilSettled(ctx context.Context, env *Env, look func(context.Context) error) error {
	walk := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(walk), settleWithin)
	defer cancel()
	defer context.AfterFunc(walk, func() {
		select {
		case <-time.After(afterSignal):
			cancel()
		case <-ctx.Done():
		}
	})()
	for {
		tryCtx, end := context.WithTimeout(ctx, settleTry)
		err := look(tryCtx)
		end()
		if err == nil || engine.ClassOf(err) == engine.ClassAmbiguous || engine.ClassOf(err) == engine.ClassHeld || forGood(err) || errors.Is(err, journal.ErrNoRun) {
			return err
		}
		for again := true; again; {
			select {
			case <-ctx.Done():
				return err
			case <-time.After(settleEvery):
			}
			again = !reachable(ctx, env.Source) || !reachable(ctx, env.Target)
		}
	}
}

// reachable says whether a side takes a new connection now.
func reachable(ctx context.Context, side *pg.Server) bool {
	ctx, cancel := context.WithTimeout(ctx, settleProbe)
	defer cancel()
	conn, err := side.Connect(ctx, pg.Use{Name: "probe", Hold: true})
	if err != nil {
		return false
	}
	_ = conn.Close(ctx)
	return true
}

// settleFlip ends a flip that a dead runner left decided: both gates say which way it went. Every
// command that depends on who may write begins with it, so that nobody is asked to look where a
// look decides. Without an open flip it does nothing.
func settleFlip(ctx context.Context, env *Env) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Side != journal.Unclear || owner.Flip == nil {
		return err
	}
	step := &freezeStep{env: env, id: "freeze", phase: engine.PhaseCutover, from: owner.Flip.From}
	f, err := step.build(ctx, journal.NewMemory().Checkpoint(step.id, abortSink{env}))
	if err != nil {
		return err
	}
	defer f.close(ctx)
	opened, err := f.settle(ctx)
	if err != nil {
		return err
	}
	return f.poolers.settle(ctx, opened)
}

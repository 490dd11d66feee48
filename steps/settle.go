package steps

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// A verdict is what both gates and the journal say together.
type verdict int

const (
	fromWrites    verdict = iota // and no flip is open
	neverFlipped                 // a flip is decided and did not happen: from takes writes
	halfFlipped                  // from is closed by a decided flip: to is opened, if it is not open yet
	shutByHand                   // both are closed, and to had been open: no flip explains that
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
	case state.FromClosed && state.ToClosed && owner.Side == to:
		return shutByHand
	case state.FromClosed && (unsettled || owner.Side == to):
		return halfFlipped
	default:
		return contradiction
	}
}

// settle ends what an earlier process may have left between the two COMMITs and reports whether
// the other side takes writes already.
func (f *flipper) settle(ctx context.Context) (opened bool, err error) {
	if f.Gates == nil {
		if err := f.openGates(ctx); err != nil {
			return false, err
		}
		defer f.closeGates(ctx)
	}
	state, owner, v, err := f.verdict(ctx)
	if err == nil && (v == journalBehind || v == shutByHand || v == contradiction) {
		state, owner, v, err = f.verdict(ctx) // unless a runner that woke up flipped between two looks
	}
	if err != nil {
		return false, err
	}
	switch v {
	case fromWrites:
		return false, nil
	case neverFlipped:
		return false, f.WhileFromWrites(ctx, func(ctx context.Context, still func(context.Context) error) error {
			return f.env.Journal.SetOwnerWhile(ctx, owner.Flip, f.from, still)
		})
	case halfFlipped:
		if opened, err = f.Resolve(ctx); err != nil || !opened {
			return false, unopened(f.to, err)
		}
		return true, f.env.Journal.SetOwner(ctx, nil, f.to)
	case shutByHand:
		return false, closedByHand(f.to)
	case journalBehind:
		e := ambiguous(fmt.Sprintf("the journal says that the %s takes writes, but its gate is closed and the %s's is open", f.to, f.from))
		e.Hint = fmt.Sprintf("Writes go to the %s: find out who opened it, and never open the %s beside it. pgrunbook status says what to type.", f.from, f.to)
		return false, e
	default:
		if f.from == engine.Source && state.FromClosed && state.ToClosed {
			if err := closedByLostFlip(ctx, f.env, owner); err != nil {
				return false, err
			}
		}
		return false, ambiguous(fmt.Sprintf("%s closed: %v, %s closed: %v, and the journal records no flip that explains it", f.from, state.FromClosed, f.to, state.ToClosed))
	}
}

// verdict looks at both gates, then at the journal: a flip is decided there before a gate closes.
func (f *flipper) verdict(ctx context.Context) (freeze.State, journal.Ownership, verdict, error) {
	state, err := f.Look(ctx)
	if err != nil {
		return state, journal.Ownership{}, contradiction, err
	}
	owner, err := f.env.Journal.Owner(ctx)
	if err != nil {
		return state, owner, contradiction, err
	}
	return state, owner, judge(state, owner, f.to), nil
}

// openGates opens the sessions, and lets the journal find out at the same time that it has lost its own.
func (f *flipper) openGates(ctx context.Context) (err error) {
	found := make(chan struct{})
	go func() {
		defer close(found)
		_, _ = f.env.Journal.Owner(ctx) // a session that was lost is opened by the next question
	}()
	f.Gates, err = freeze.OpenGates(ctx, f.From, f.To)
	<-found
	return err
}

func (f *flipper) closeGates(ctx context.Context) {
	if f.Freeze != nil {
		f.Gates.Close(ctx)
		f.Gates = nil
	}
}

// ambiguous is for a person: no look tells who may write.
func ambiguous(text string) *engine.Error {
	return &engine.Error{
		Class: engine.ClassAmbiguous, Op: "finding who may write", Err: errors.New(text),
		Hint: "Look at both sides: SELECT last_value FROM pgrunbook.gate_flag (0 is open). Close one by hand before anything else: " + gate.CloseByHand,
	}
}

// closedByHand is the end where a side that a flip had opened is closed: who did that knows why.
func closedByHand(side engine.Side) error {
	e := ambiguous(fmt.Sprintf("both sides are closed; by the journal the %s takes writes, and no flip is open: somebody closed it by hand", side))
	e.Hint = fmt.Sprintf("Find out who closed it, then open the %s and no other: psql, %s Then run the same command again.", side, gate.OpenByHand)
	return e
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
	silent := errors.Is(cause, context.DeadlineExceeded) // else the connection is gone, and a new one shows whether the side is
	err := untilSettled(ctx, f.env, !silent, func(ctx context.Context) (err error) {
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

// undecided records that a flip which was decided did not come about: this attempt has not sent the
// COMMIT, or was told that it failed. As long as the flip stands open, nobody who has not asked both sides
// can say who takes writes. What it cannot record within its time is tried again after the attempt, and by the
// next command.
func (f *flipper) undecided(ctx context.Context, within time.Duration) {
	if !f.decided {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	err := f.env.Journal.Unflip(ctx)
	if pg.Retryable(err) { // on a new session
		err = f.env.Journal.Unflip(ctx)
	}
	if f.decided = err != nil && !errors.Is(err, journal.ErrSettled); f.decided {
		f.env.Log.Debug("recording that the flip did not happen", "err", err)
	}
}

// While neither side may take writes, looking goes on through whatever the network does.
const (
	settleWithin = 2 * time.Minute
	settleTry    = 5 * time.Second // one look, which also bounds a network that falls silent in it; twice as long after each that took longer
	afterSignal  = 4 * time.Second // what is left to it once the walk is being stopped

	probeTry   = time.Second            // of a new connection: one into a silent network may never answer
	probeLong  = 5 * time.Second        // of every fifth, for a machine that needs so long
	probeEvery = 250 * time.Millisecond // another one, beside those
	probeAgain = 80 * time.Millisecond  // after one that was refused
)

// untilSettled repeats a look until it gives an answer. Unless what it needs is known to be there
// (ready), and after a look that failed, it begins when both sides take connections: so it does
// as soon as the network is back.
func untilSettled(ctx context.Context, env *Env, ready bool, look func(context.Context) error) error {
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
	var last error
	for within := settleTry; ; {
		if !ready {
			if err := answering(ctx, env.Source, env.Target); err != nil {
				return errors.Join(last, err)
			}
		}
		tryCtx, end := context.WithTimeout(ctx, within)
		err := look(tryCtx)
		if tryCtx.Err() != nil { // the way may be long
			within *= 2
		}
		end()
		if err == nil || conclusive(err) {
			return err
		}
		last, ready = err, false
		select {
		case <-ctx.Done():
			return err
		case <-time.After(probeAgain):
		}
	}
}

// conclusive tells errors that another look meets again.
func conclusive(err error) bool {
	class := engine.ClassOf(err)
	return class == engine.ClassAmbiguous || class == engine.ClassHeld || forGood(err) || errors.Is(err, journal.ErrNoRun)
}

// answering waits until each side takes new connections.
func answering(ctx context.Context, sides ...*pg.Server) error {
	errs := make([]error, len(sides))
	var all sync.WaitGroup
	for i, side := range sides {
		all.Go(func() { errs[i] = answers(ctx, side) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// answers tries again and again, and begins another try before the last one has ended: into a
// silent network it may not end before TCP gives up, long after the network is back.
func answers(ctx context.Context, side *pg.Server) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error)
	var last error
	for n := 1; ; n++ {
		try := probeTry
		if n%5 == 0 {
			try = probeLong
		}
		go func() {
			err := probe(ctx, side, try)
			select {
			case ended <- err:
			case <-ctx.Done():
			}
		}()
		wait := time.After(probeEvery)
		for waiting := true; waiting; {
			select {
			case err := <-ended:
				if err == nil || conclusive(err) {
					return err
				}
				if last = err; !errors.Is(err, context.DeadlineExceeded) {
					wait = time.After(probeAgain)
				}
			case <-wait:
				waiting = false
			case <-ctx.Done():
				return errors.Join(last, context.Cause(ctx))
			}
		}
	}
}

// probe opens a session and ends it.
func probe(ctx context.Context, side *pg.Server, try time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, try)
	defer cancel()
	conn, err := side.Connect(ctx, pg.Use{Name: "probe", Hold: true})
	if err != nil {
		return err
	}
	_ = conn.Close(ctx)
	return nil
}

// settleFlip ends a flip that a dead runner left decided: both gates say which way it went. Every
// command that depends on who may write begins with it, so that nobody is asked to look where a
// look decides. Without an open flip it does nothing.
func settleFlip(ctx context.Context, env *Env) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Side != journal.Unclear || owner.Flip == nil {
		return err
	}
	step := &freezeStep{env: env, id: "freeze", from: owner.Flip.From}
	if step.from == engine.Target {
		step.id = "rollback"
	}
	cp := env.Journal.Checkpoint(step.id, abortSink{env})
	var cursor freezeCursor
	if _, err := cp.Load(ctx, &cursor); err != nil {
		return err
	}
	if len(cursor.AtOpen) > 0 {
		step.inherits = &inherited{AtOpen: cursor.AtOpen}
	}
	f, err := step.build(ctx, cp)
	if err != nil {
		return err
	}
	defer f.close(ctx)
	opened, err := f.settle(ctx)
	if err != nil || !opened { // what led away from the side that takes writes, tidy takes back
		return err
	}
	return f.cleared(ctx, true, func(ctx context.Context) error { return f.poolers.settle(ctx, true) })
}

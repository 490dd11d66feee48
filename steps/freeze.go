package steps

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// freezeStep changes the write owner: passes until little is left, then attempts at the freeze
// within the budget, then what follows a flip.
type freezeStep struct {
	env      *Env
	id       engine.StepID
	phase    engine.Phase
	from     engine.Side
	repoint  []freeze.SwitchStep
	inherits *inherited       // nil: the whole freeze
	now      func() time.Time // what the window is held to; nil: time.Now
}

// inherited is a freeze that only ends what another process began: it opens no session that it does
// not need for that, and reads no catalog, since nobody may write meanwhile.
type inherited struct {
	AtOpen []string // what that process would have run in to's hold
}

func newFreeze(env *Env, switchSteps []freeze.SwitchStep) engine.Step {
	return &freezeStep{env: env, id: "freeze", phase: engine.PhaseCutover, from: engine.Source, repoint: switchSteps}
}

func (s *freezeStep) ID() engine.StepID   { return s.id }
func (s *freezeStep) Phase() engine.Phase { return s.phase }

// Fingerprint covers what must not change once the freeze has begun: nothing of the budget, which
// may be tuned between attempts.
func (s *freezeStep) Fingerprint() string { return "freeze/1" }

// Apply may be called again after any death: it looks at both gates first.
func (s *freezeStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) (err error) {
	f, err := s.build(ctx, cp)
	if err != nil {
		return err
	}
	defer f.close(ctx)
	opened, err := f.settle(ctx)
	if err != nil {
		return err
	}
	settle := func(ctx context.Context) error { return f.poolers.settle(ctx, opened) }
	if err := f.cleared(ctx, opened, settle); err != nil {
		return err
	}
	if !opened {
		f.cursor.AtOpen = f.atOpen
		if err := f.cp.Save(ctx, nil, *f.cursor); err != nil {
			return err
		}
		if f.guard, err = f.startGuardian(s.id); err != nil {
			return err
		}
		err := f.attempts(ctx)
		f.guard.dismiss(!errors.Is(err, errUnsettled))
		if err != nil {
			return err
		}
	}
	return f.after(ctx)
}

// flipper is one run of the step.
type flipper struct {
	*freeze.Freeze
	env     *Env
	cp      engine.Checkpoint
	cursor  *freezeCursor
	from    engine.Side
	to      engine.Side
	repoint []freeze.SwitchStep // people's
	passer  *pass.Passer
	looks   *sideConns
	reload  *reloader
	marks   *gate.Marks // of from's gate, from before the attempt held anything
	poolers *poolers
	guard   *guardian
	atOpen  []string // statements in the hold that opens to
	cert    *freeze.Certificate
	final   pass.Result      // of the last exact pass inside a freeze
	decided bool             // a flip, by the present attempt
	stuck   *stuckStep       // of the present attempt
	shown   measured         // before the present attempt
	seen    []engine.Event   // marks of this process's attempts
	trip    time.Duration    // a round trip to the side farther away
	low     map[int32]uint64 // as capture.Pending takes it, from before the final pass
	now     func() time.Time
}

func (s *freezeStep) build(ctx context.Context, cp engine.Checkpoint) (_ *flipper, err error) {
	env, from, to := s.env, s.env.Server(s.from), s.env.Server(s.from.Other())
	f := &flipper{env: env, cp: cp, from: s.from, to: s.from.Other(), repoint: s.repoint, passer: newPasser(env, from, to, cp), now: s.now}
	if f.now == nil {
		f.now = time.Now
	}
	defer func() {
		if err != nil {
			f.close(ctx)
		}
	}()
	if s.inherits == nil {
		if f.looks, err = openSides(ctx, env, "freeze"); err != nil {
			return nil, err
		}
		if f.reload, err = newReloader(ctx, env, from, to); err != nil {
			return nil, err
		}
	}
	if err = f.readCursor(ctx); err != nil {
		return nil, err
	}
	if s.inherits != nil {
		f.atOpen = s.inherits.AtOpen
	} else if f.atOpen, err = f.statementsAtOpen(ctx); err != nil {
		return nil, err
	}
	f.Freeze = &freeze.Freeze{
		From: from, To: to, Run: env.Run, Budget: writeBlock(env.Runbook, s.from),
		Tables: env.Scope.Tables, Switch: f.undone(f.switches()),
		Prepare:   f.prepare,
		Sequences: f.sequences,
		Pending:   f.pending,
		Check:     f.check,
		Decide: func(ctx context.Context, cert *freeze.Certificate) error {
			f.decided = true
			if !f.poolers.began.IsZero() {
				cert.Paused = cert.Began.Sub(f.poolers.began)
			}
			return env.Journal.DecideFlip(ctx, env.Run.Epoch, f.from, f.to, cert)
		},
		AtOpen:  f.runAtOpen,
		Opening: openingLocks(env, cp, f.to, f.atOpen),
		AtClose: f.atClose,
		Compare: func(context.Context) (string, error) {
			return f.compared(), nil
		},
		LetGo:  f.poolers.free,
		Undone: func(ctx context.Context) { f.undecided(ctx, fenceWait+2*fenceTrips*f.trip) },
		Paused: len(f.poolers.group) > 0,
		Mark: func(name, message string, took time.Duration) {
			f.marked(engine.Event{Mark: name, Message: message, Elapsed: took})
		},
	}
	return f, nil
}

func (f *flipper) close(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	f.closeGates(ctx)
	_ = f.passer.Close(ctx)
	f.looks.close(ctx)
	f.reload.close(ctx)
	f.poolers.close()
}

// attempts tries until the flip is done, the attempts are used up, or something is wrong that
// another attempt will not mend. Passes go on in between.
func (f *flipper) attempts(ctx context.Context) error {
	c := f.env.Runbook.Cutover
	if err := f.loaded(ctx); err != nil {
		return err
	}
	if err := f.standbys(ctx, false); err != nil {
		return err
	}
	if f.to == engine.Target {
		if err := f.alike(ctx); err != nil {
			return err
		}
		if err := refreshMaterialized(ctx, f.looks, f.cp); err != nil {
			return err
		}
	}
	var last error
	for n := 1; n <= c.Attempts; n++ {
		if err := f.turn(ctx); err != nil {
			return err
		}
		if err := f.alike(ctx); err != nil { // views may have been refreshed for long, and a window waited for
			return err
		}
		predicted, err := f.drain(ctx)
		if err != nil {
			return err
		}
		if predicted.Over() {
			last = overPredicted(predicted)
		} else {
			f.note("freeze attempt %d of %d, %s", n, c.Attempts, predicted)
			if err = f.attempt(ctx, n); err == nil {
				return nil
			}
			if !errors.Is(err, freeze.ErrNotNow) || ctx.Err() != nil || forGood(err) {
				return err
			}
			if errors.Is(err, errNotYet) {
				f.note("attempt %d is put off: %v", n, err)
				n--
				continue
			}
			last = err
		}
		f.cp.Emit(engine.Event{Kind: engine.EventRetry, Level: "warn", Message: fmt.Sprintf("attempt %d: %v; writes go on at the %s", n, last, f.from), Reason: last.Error(), Blockers: blockerNames(last)})
		if n < c.Attempts {
			if err := f.passUntil(ctx, time.Now().Add(c.RetryEvery/2+rand.N(c.RetryEvery/2+1))); err != nil {
				return err
			}
		}
	}
	return noCutover(f.from, last, " when what is named above is gone, or raise max_write_block")
}

// loaded refuses while a table is half loaded, whatever the journal says of the steps before.
func (f *flipper) loaded(ctx context.Context) error {
	left, err := stillLoading(ctx, f.env)
	if err != nil || len(left) == 0 {
		return err
	}
	return &engine.Error{
		Op: "freezing", Object: joinSome(left), Err: errors.New("it is not loaded to its end"),
		Hint: "Run the same command again: catch_up loads it.",
	}
}

// attempt is one freeze, with the poolers paused around it.
func (f *flipper) attempt(ctx context.Context, n int) (err error) {
	if err := f.clearWay(ctx); err != nil {
		return err
	}
	if err := f.mayHold(ctx); err != nil {
		return err
	}
	// Asked again by the freeze itself; here before any pooler keeps clients waiting.
	if err := freeze.Subscribed(ctx, f.looks.of(f.from), f.Tables); err != nil {
		return fmt.Errorf("%w: %w", freeze.ErrNotNow, err)
	}
	if err := f.readyTo(ctx); err != nil {
		return err
	}
	if err := f.sequencesThere(ctx); err != nil {
		return err
	}
	f.guard.prepare(n)
	if err := f.stage(ctx); err != nil { // few: the drain began with it, and its passes drop some of very many
		return fmt.Errorf("%w: %w", freeze.ErrNotNow, err)
	}
	if err := f.Connect(ctx); err != nil {
		return err
	}
	defer f.Disconnect(ctx)
	f.trip = f.Trip()
	if !f.guard.ready(ctx) {
		f.note("the guardian has no sessions yet: if this process died in the midst of the flip, ending it would take longer")
	}
	f.decided, f.stuck = false, nil
	if err := f.poolers.pause(ctx); errors.Is(err, freeze.ErrNotNow) && f.cursor.Paused {
		return f.strayed(ctx, err)
	} else if err != nil {
		return err
	}
	if f.cert, err = f.Attempt(ctx, n); errors.Is(err, freeze.ErrUnknown) {
		if err = f.unknown(ctx, err); err != nil {
			return f.notFlipped(ctx, err)
		}
		f.cert.Flip(time.Now())
	}
	opened := err == nil
	if opened {
		err = f.flipped(ctx)
	} else {
		f.undecided(ctx, settleTry)
	}
	err = errors.Join(err, f.poolers.resume(ctx))
	if f.stuck == nil {
		err = errors.Join(err, f.switched(ctx))
	}
	if f.poolers.astray || f.cursor.Paused && !opened {
		err = f.strayed(ctx, err)
	}
	if f.stuck != nil {
		return &engine.Error{
			Op: "undoing the switch step", Object: f.stuck.name, Err: fmt.Errorf("%w; the attempt had ended with: %v", f.stuck.err, err), //nolint:errorlint // not to be tried again
			Hint: f.pointBack(),
		}
	}
	return err
}

// forGood tells errors that another attempt meets again: a missing right, table or function, a
// comparison that has to come first, rows that are changed on their way, or what is for a person.
func forGood(err error) bool {
	var moved *pg.MovedError // the next attempt asks who answers at the address by then
	if class := engine.ClassOf(err); class == engine.ClassDifferences || class == engine.ClassAmbiguous && !errors.As(err, &moved) {
		return true
	}
	return strings.HasPrefix(pg.SQLState(err), "42") || errors.Is(err, errMended) || errors.Is(err, errOneWay) || errors.Is(err, errEmptied) || errors.Is(err, errLargeObjects) || errors.Is(err, errRefusedReload)
}

func blockerNames(err error) []string {
	var blocked *freeze.BlockedError
	if !errors.As(err, &blocked) {
		return nil
	}
	names := make([]string, len(blocked.Blockers))
	for i, b := range blocked.Blockers {
		names[i] = b.String()
	}
	return names
}

// flipped records a flip that this process saw.
func (f *flipper) flipped(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := f.env.Journal.SetOwner(ctx, nil, f.to); err != nil {
		return err
	}
	failpoint.Hit("freeze.owned")
	return f.env.Journal.SaveCertificate(ctx, f.cert)
}

// marked tells a mark of the freeze, and remembers it for the next prediction.
func (f *flipper) marked(e engine.Event) {
	if e.Kind = engine.EventFreeze; f.Rehearsal {
		e.Step = rehearseID
	}
	f.seen = append(f.seen, e)
	f.cp.Emit(e)
}

func (f *flipper) note(format string, args ...any) {
	f.cp.Emit(engine.Event{Kind: engine.EventNote, Message: fmt.Sprintf(format, args...)})
}

func (f *flipper) pending(ctx context.Context) (int64, error) {
	return pendingRows(ctx, f.looks.of(f.from), f.low)
}

// pendingRows counts what waits for a pass on a captured side; low as capture.Pending takes it.
func pendingRows(ctx context.Context, conn *pgx.Conn, low map[int32]uint64) (int64, error) {
	counts, err := capture.Pending(ctx, conn, low)
	var n int64
	for _, c := range counts {
		n += c.All()
	}
	return n, err
}

func (f *flipper) check(ctx context.Context) error {
	if err := f.stillGated(ctx); err != nil {
		return err
	}
	if err := f.whole(ctx); err != nil {
		return err
	}
	return checkCatalog(ctx, f.env, f.looks.of(f.from), f.from)
}

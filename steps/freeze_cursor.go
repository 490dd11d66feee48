package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/pooler"
)

// freezeCursor is what another process must know to end what a dead one began outside the two
// databases. Everything in it is written before the act.
type freezeCursor struct {
	Changes []pooler.Change `json:"changes,omitempty"` // of the poolers' files
	Paused  bool            `json:"paused,omitempty"`  // the poolers, perhaps
	Begun   int             `json:"begun,omitempty"`   // switch steps, the last perhaps
	Steps   []engine.StepID `json:"steps,omitempty"`   // which ones: by the next command the runbook may be another
	Epoch   int64           `json:"epoch,omitempty"`   // in which the first of them began
	AtOpen  []string        `json:"at_open,omitempty"` // what opens the other side, for whoever ends a flip that is left open
}

// readCursor reads it anew, and makes the poolers that it speaks of.
func (f *flipper) readCursor(ctx context.Context) (err error) {
	f.cursor = &freezeCursor{}
	if _, err = f.cp.Load(ctx, f.cursor); err != nil {
		return err
	}
	f.poolers.close()
	f.poolers, err = newPoolers(ctx, f.env, f.cp, f.to == engine.Source, f.cursor)
	return err
}

// recorded makes switch steps say in the journal that they begin.
func (f *flipper) recorded() []freeze.SwitchStep {
	out := make([]freeze.SwitchStep, len(f.repoint))
	for i, s := range f.repoint {
		out[i] = s
		out[i].Begin = func(ctx context.Context) error {
			if f.cursor.Begun == 0 {
				f.cursor.Epoch = f.env.Run.Epoch
			}
			f.cursor.Begun, f.cursor.Steps = i+1, stepIDs(f.repoint[:i+1])
			if err := f.cp.Save(ctx, nil, *f.cursor); err != nil {
				return err
			}
			// One that stood still since may have been replaced, and its step undone.
			return f.replaced(ctx)
		}
		out[i].Do = func(ctx context.Context) error { return s.Do(withGroups(ctx, f.command(ctx))) }
		out[i].Undo = func(ctx context.Context) error {
			err := s.Undo(withGroups(ctx, f.command(ctx)))
			if err != nil {
				f.stuck = &stuckStep{s.Name, err}
			}
			return err
		}
	}
	return out
}

// command tells the guardian of a command that runs, and ends it where another process has taken this one's place
// by the time it began.
func (f *flipper) command(ctx context.Context) func(group int) {
	return func(group int) {
		f.guard.command(group)
		if group > 0 && f.replaced(ctx) != nil {
			_ = syscall.Kill(-group, syscall.SIGKILL)
		}
	}
}

// stuckStep is a switch step whose undo failed in a live attempt. It stays on record as begun: clients that
// it sent away are at a side whose gate must not go, and the next command undoes it first.
type stuckStep struct {
	name string
	err  error
}

// pointBack says what to do about a step that cannot be undone.
func (f *flipper) pointBack() string {
	return fmt.Sprintf("The %s takes writes: see to it that this step points there, then run the same command again.", f.from)
}

// fenceWait bounds the question whether another runner took over: writers wait meanwhile.
const (
	fenceWait  = 300 * time.Millisecond
	fenceTrips = 5 // round trips that it makes, and some
)

// undone keeps a runner that stood still and was replaced from undoing switch steps: its successor
// has undone them, and may have sent the clients over since. One that cannot ask undoes.
func (f *flipper) undone(steps []freeze.SwitchStep) []freeze.SwitchStep {
	out := slices.Clone(steps)
	for i, s := range steps {
		out[i].Undo = func(ctx context.Context) error {
			if err := f.replaced(ctx); err != nil {
				return err
			}
			return s.Undo(ctx)
		}
	}
	return out
}

// replaced is the error of a runner that another one has replaced. Its first question fails where that one
// has ended its session: then a new session is asked.
func (f *flipper) replaced(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*fenceWait+fenceTrips*f.trip)
	defer cancel()
	err := f.env.Journal.Fenced(ctx)
	if pg.Retryable(err) {
		err = f.env.Journal.Fenced(ctx)
	}
	if engine.ClassOf(err) == engine.ClassHeld {
		return err
	}
	return nil
}

func stepIDs(steps []freeze.SwitchStep) []engine.StepID {
	ids := make([]engine.StepID, 0, len(steps))
	for _, s := range steps {
		ids = append(ids, s.ID)
	}
	return ids
}

// begun finds the switch steps that had begun, in their order, in the runbook as it is now. Where some are not there, which
// the error names, nobody knows how to take them back, and another's undo would take back what nobody did.
func (c *freezeCursor) begun(steps []freeze.SwitchStep) (out []freeze.SwitchStep, err error) {
	if len(c.Steps) == 0 { // recorded without names
		return steps[:min(c.Begun, len(steps))], nil
	}
	var missing []string
	for _, id := range c.Steps {
		i := slices.IndexFunc(steps, func(s freeze.SwitchStep) bool { return s.ID == id })
		if i < 0 {
			missing = append(missing, string(id))
			continue
		}
		out = append(out, steps[i])
	}
	if len(missing) > 0 {
		err = &engine.Error{
			Op: "looking for the switch step that had begun before the flip:", Object: strings.Join(missing, ", "), Err: errors.New("the runbook does not have it any more, so nothing takes it back"),
			Hint: "Put that step back into the runbook, with the undo that it had, or one that does nothing where you have undone it by hand; then run the same command again: the undo runs first.",
		}
	}
	return out, err
}

// undoSwitch takes back the switch steps that a dead process had begun before its flip: they point
// to a side that does not take writes.
func (f *flipper) undoSwitch(ctx context.Context) error {
	if f.cursor.Begun == 0 {
		return nil
	}
	// On this machine no command of a process that was replaced, a guardian that stands still among them, comes
	// after what undoes it. What the switch of a cutover that is over has left running stays.
	killMarked(f.env.Run.ID, f.cursor.Epoch, f.env.Run.Epoch-1)
	steps, err := f.cursor.begun(f.undone(f.repoint))
	if err != nil {
		return err
	}
	for _, s := range slices.Backward(steps) {
		undoCtx, cancel := context.WithTimeout(ctx, s.Timeout)
		err := s.Undo(withGroups(undoCtx, f.command(undoCtx)))
		cancel()
		if err != nil {
			return &engine.Error{
				Op: "undoing the switch step that had begun before the flip:", Object: s.Name, Err: err,
				Hint: f.pointBack(),
			}
		}
		f.note("undid %s: it had begun, and the flip did not happen", s.Name)
	}
	return f.switched(ctx)
}

// notFlipped ends an attempt whose outcome was unknown. Where a look has shown that its flip did not
// happen, the clients are sent back now: nobody did that while it was not known. Where it still is not
// known nothing is forgotten: the poolers stay paused, and who settles the flip sends the clients to the
// side that it finds.
func (f *flipper) notFlipped(ctx context.Context, err error) error {
	if errors.Is(err, errUnsettled) {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if replaced := f.replaced(ctx); replaced != nil {
		return errors.Join(err, replaced) // its successor sends the clients where they belong
	}
	settle := func(ctx context.Context, _ func(context.Context) error) error { return f.poolers.settle(ctx, false) }
	return errors.Join(err, f.takeBack(ctx, func(ctx context.Context) error {
		back := f.WhileFromWrites(ctx, settle)
		if back == nil || errors.Is(back, freeze.ErrClosedSince) || f.replaced(ctx) != nil {
			return back
		}
		return errors.Join(back, settle(ctx, nil)) // a side is gone again: the clients need it all the same
	}))
}

// switches gives what repoints the clients, in its order. A rollback's is the cutover's backwards.
func (f *flipper) switches() []freeze.SwitchStep {
	if f.poolers.back {
		return slices.Concat(f.recorded(), f.poolers.steps())
	}
	return slices.Concat(f.poolers.steps(), f.recorded())
}

// cleared ends what dead processes have left outside the two databases, for the side that takes writes.
// settle is for the poolers.
func (f *flipper) cleared(ctx context.Context, opened bool, settle func(context.Context) error) error {
	if !opened {
		return f.takeBack(ctx, settle)
	}
	if err := settle(ctx); err != nil {
		return err
	}
	return f.switched(ctx)
}

// takeBack undoes what a switch had begun before a flip that did not happen, in reverse order. The poolers
// let their clients go on, by settle, when all else is back: what a step had repointed may lie behind them.
func (f *flipper) takeBack(ctx context.Context, settle func(context.Context) error) error {
	if f.poolers.back && f.cursor.Paused && f.cursor.Begun > 0 {
		_ = f.poolers.undo(ctx) // what is wrong with them is met again by settle
	}
	err := f.undoSwitch(ctx)
	if engine.ClassOf(err) == engine.ClassHeld {
		return err
	}
	return errors.Join(err, settle(ctx))
}

// strayed points poolers back once more, and lets their clients go on, after an attempt that could not. No other attempt is made while
// clients are shut out.
func (f *flipper) strayed(ctx context.Context, err error) error {
	if f.replaced(ctx) != nil {
		return err // its successor sends them where they belong
	}
	left := f.poolers.settle(context.WithoutCancel(ctx), false)
	if left == nil {
		return err
	}
	return &engine.Error{
		Op: "pointing the poolers back to the", Object: string(f.from), Err: fmt.Errorf("%w; the attempt had ended with: %v", left, err), //nolint:errorlint // not to be tried again
		Hint: fmt.Sprintf("The %s takes writes, and clients of these poolers do not get there. %s Then run the same command again.", f.from, engine.HintOf(left)),
	}
}

// switched records that no switch step is half done any more.
func (f *flipper) switched(ctx context.Context) error {
	if f.cursor.Begun == 0 {
		return nil
	}
	f.cursor.Begun, f.cursor.Steps, f.cursor.Epoch = 0, nil, 0
	return f.cp.Save(context.WithoutCancel(ctx), nil, *f.cursor)
}

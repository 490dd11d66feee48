package freeze

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Pass is the final exact pass. It is prepared before the hold: its transaction has begun and its
// table locks are taken, but not its snapshot, so that a TRUNCATE that queues at the gate with
// ACCESS EXCLUSIVE in hand cannot stop it.
type Pass interface {
	// Run takes the snapshot, carries everything over and forgets it.
	Run(ctx context.Context) (PassResult, error)
	// Close ends the pass's transactions, whatever happened.
	Close(ctx context.Context)
}

// SwitchStep repoints something while writes are held on both sides.
type SwitchStep struct {
	ID      engine.StepID // in the runbook
	Name    string
	Timeout time.Duration                   // of Do, and of Undo
	Begin   func(ctx context.Context) error // the record that Do begins, which is not Do's time; nil is none
	Do      func(ctx context.Context) error
	Undo    func(ctx context.Context) error
}

func (s SwitchStep) begin(ctx context.Context) error {
	if s.Begin == nil {
		return nil
	}
	return s.Begin(ctx)
}

// Freeze is one cutover or rollback. All hooks are called with the hold in hand unless said
// otherwise; none may run anything long on the hold's connection.
type Freeze struct {
	From, To *pg.Server
	Run      scope.Run
	Budget   time.Duration // longest write block
	Tables   []scope.Table // every gated table
	Switch   []SwitchStep
	Gates    *Gates // kept for looks and for Resolve; nil: each opens its own
	// Rehearsal ends an attempt before the switch steps: everything up to there is done for real
	// and measured, then comes the last look, then the hold is let go.
	Rehearsal bool
	Paused    bool // clients wait at poolers from before an attempt on

	Prepare   func(ctx context.Context) (Pass, error)         // before the hold
	Sequences func(ctx context.Context) (int, error)          // sets to's sequences from from's; returns how many
	Pending   func(ctx context.Context) (int64, error)        // rows left in from's deltas; must be 0
	Check     func(ctx context.Context) error                 // fingerprints of from's catalog, its gate among it
	Decide    func(ctx context.Context, c *Certificate) error // durable: "flip of epoch e decided", with what is known by then
	AtOpen    func(ctx context.Context, exec ExecFunc) error  // statements in to's hold, committed with its opening
	AtClose   func(ctx context.Context, exec ExecFunc) error  // statements in from's hold, committed with its closing; nil is none
	Opening   pg.Etiquette                                    // how a process that ends a flip asks for AtOpen's locks
	Mark      func(name, message string, took time.Duration)  // progress; took is since writers began to wait, 0 where none does any more
	LetGo     func(ctx context.Context)                       // a side takes writes again, or the other one does
	Undone    func(ctx context.Context)                       // from takes writes again and no flip is on its way, before switch steps are undone; not where a side is out of reach
	Compare   func(ctx context.Context) (string, error)       // what changed since the live verification

	opened *conns // by Connect, for the attempt that comes
	spent  spent  // of the attempt at hand
}

// ExecFunc runs one short statement.
type ExecFunc func(ctx context.Context, sql string, args ...any) error

// ErrNotNow wraps every reason for which an attempt was given up with from writable and nothing
// changed for good; another attempt may just work.
var ErrNotNow = errors.New("no cutover this time")

// Attempt tries once. On success the certificate is complete and to takes writes. An error that
// is ErrNotNow leaves from writable; ErrUnknown means that Resolve has to look; any other error
// before the flip leaves from writable too.
func (f *Freeze) Attempt(ctx context.Context, n int) (_ *Certificate, err error) {
	c := f.opened
	if f.opened = nil; c == nil {
		if err := f.Connect(ctx); err != nil {
			return nil, err
		}
		c, f.opened = f.opened, nil
	}
	defer c.close(ctx)
	var pass Pass
	defer func() {
		if pass != nil {
			pass.Close(context.WithoutCancel(ctx))
		}
	}()
	defer func() { // after both holds have ended, before anything that may wait for a network
		if f.LetGo != nil && !errors.Is(err, ErrUnknown) {
			f.LetGo(ctx)
		}
	}()
	early, cancel := f.beforeHold(ctx, c)
	defer cancel()
	cert := &Certificate{From: f.From.Side(), To: f.To.Side(), Epoch: f.Run.Epoch, Attempt: n, Budget: f.Budget, Tables: len(f.Tables)}
	left, err := look(early, c.look, f.Run, c.oids)
	if err == nil && len(left) == 0 { // better now than between the switch and the flip
		left, err = unendable(early, c.watch, f.To.Side())
	}
	if err != nil {
		return nil, f.early(ctx, withCause(early, err))
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrNotNow, &BlockedError{Blockers: left})
	}
	if pass, err = f.Prepare(early); err != nil {
		return nil, fmt.Errorf("%w: preparing the final pass: %w", ErrNotNow, withCause(early, err))
	}
	if failpoint.Mutant("freeze.sequences_first") {
		if _, err := f.Sequences(ctx); err != nil {
			return nil, err
		}
		f.Sequences = func(context.Context) (int, error) { return 0, nil }
	}
	failpoint.Hit("freeze.prepared")

	// to is held as well, with the flag that will open it: clients that are repointed wait there
	// instead of failing.
	to, err := f.hold(ctx, c.to, c.watch, f.To, flagOpen)
	if err != nil {
		return nil, err
	}
	defer to.Release(ctx)
	asked := time.Now()
	from, err := f.hold(ctx, c.from, c.look, f.From, flagClosed)
	if errors.Is(err, ErrBusy) {
		f.Mark(MarkBusy, fmt.Sprintf("writers on the %s did not make room", f.From.Side()), time.Since(asked))
	}
	if err != nil {
		return nil, err
	}
	defer from.Release(ctx)
	cert.Began, cert.Drain, cert.Drained = from.Since, from.Took, from.Drained
	failpoint.Hit("freeze.held")
	return cert, f.held(ctx, c, from, to, pass, cert)
}

// What an attempt may take from its begin until writes are held, beside the round trips that it needs for
// that: the longest wait of clients whose poolers are paused, when a network falls silent. Without them nobody waits.
const (
	whilePaused = 1500 * time.Millisecond
	whileFree   = 10 * time.Second
	trips       = 40
)

func (f *Freeze) beforeHold(ctx context.Context, c *conns) (context.Context, context.CancelFunc) {
	limit := whileFree
	if f.Paused {
		limit = whilePaused
	}
	limit += trips * c.trip
	cause := fmt.Errorf("%w: the looks before the hold took longer than %s", context.DeadlineExceeded, limit.Round(time.Millisecond))
	return context.WithTimeoutCause(ctx, limit, cause)
}

// withCause puts why a context ended before what its end made fail.
func withCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// early says why an attempt ended before it held anything: what took too long is no reason to give
// up for good.
func (f *Freeze) early(ctx context.Context, err error) error {
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrNotNow, err)
	}
	return err
}

// held does everything that writers wait for, within the budget and only while the hold is there.
func (f *Freeze) held(ctx context.Context, c *conns, hold, toHold *Hold, pass Pass, cert *Certificate) error {
	ctx, cancel := f.bounded(ctx, hold, toHold)
	defer cancel(nil)
	mark := func(name, message string) {
		after := time.Since(hold.Since)
		cert.Marks = append(cert.Marks, Mark{Name: name, After: after})
		f.Mark(name, message, after)
	}
	cert.Marks = append(cert.Marks, Mark{Name: MarkHold, After: time.Since(hold.Since)})
	f.spent = spent{}
	f.spent.begin("drain", hold.Since)
	f.Mark(MarkHold, fmt.Sprintf("writes are held on the %s, drained in %s", f.From.Side(), hold.Took.Round(100*time.Microsecond)), hold.Took)
	if err := f.carry(ctx, c, pass, cert, mark); err != nil {
		return f.giveUp(ctx, hold, err)
	}
	if f.Rehearsal {
		f.spent.begin("last look", time.Now())
		err := f.lastLook(ctx, c)
		if err != nil {
			err = f.why(ctx, err)
		}
		hold.Release(ctx)
		cert.Blocked = hold.Held()
		mark(MarkUndo, fmt.Sprintf("let go: the %s takes writes again after %s", f.From.Side(), cert.Blocked.Round(time.Millisecond)))
		return err
	}
	// Before any client is sent there: one that waits at the gate holds a lock on its table.
	f.spent.begin("opening of the "+f.To.Side(), time.Now())
	if err := f.AtOpen(ctx, toHold.Exec); err != nil {
		return f.giveUp(ctx, hold, fmt.Errorf("preparing the opening of the %s: %w", f.To.Side(), err))
	}
	begun := 0
	undo := func() { f.sendBack(ctx, hold, toHold, begun) }
	err := f.repoint(ctx, mark, &begun)
	if err == nil {
		f.spent.begin("decision and last look", time.Now())
		err = f.ready(ctx, c, hold, cert)
	}
	if err != nil {
		err = f.why(ctx, err) // what ends during the undo is not why
		undo()
		return err
	}
	return f.flip(ctx, c, hold, toHold, cert, mark, undo)
}

// bounded gives a context that dies with the budget or with either hold. From's writers are let go there and
// then: what is at work may not hear of it for a while, or never. That is what a hold that was lost
// unnoticed looks like: whatever is done after it has no COMMIT to lead to.
func (f *Freeze) bounded(ctx context.Context, hold, toHold *Hold) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(f.Budget-time.Since(hold.Since), func() { cancel(&overBudgetError{f.Budget}) })
	go func() {
		defer timer.Stop()
		select {
		case <-hold.Lost():
			cancel(hold.Cause())
		case <-toHold.Lost():
			cancel(toHold.Cause())
		case <-ctx.Done():
		}
		if !failpoint.Mutant("freeze.budget_asked") {
			hold.Release(ctx)
		}
	}()
	return ctx, cancel
}

// carry proves that no older writer is left and brings to up to from's last commit.
func (f *Freeze) carry(ctx context.Context, c *conns, pass Pass, cert *Certificate, mark func(string, string)) error {
	f.spent.begin("proof", time.Now())
	tries, err := f.prove(ctx, c.look, c.oids, false)
	if err != nil {
		return err
	}
	cert.Proof = Proof{Looks: tries, Text: "pg_locks shows no transaction that wrote to a table in scope without having passed the gate"}
	mark("proof", fmt.Sprintf("no older writer is left (look %d)", tries))
	failpoint.Hit("freeze.proved")
	f.spent.begin("final pass", time.Now())
	cert.Pass, err = pass.Run(ctx)
	if err != nil {
		return fmt.Errorf("final pass: %w", err)
	}
	mark("pass", fmt.Sprintf("final pass carried %d rows", cert.Pass.Rows))
	failpoint.Hit("freeze.passed")
	f.spent.begin("looks after it", time.Now())
	if cert.Pending, err = f.Pending(ctx); err != nil {
		return err
	}
	if cert.Pending != 0 && !failpoint.Mutant("freeze.no_count") {
		return fmt.Errorf("%d changes are left after the final pass", cert.Pending)
	}
	if err := f.Check(ctx); err != nil {
		return err
	}
	f.spent.begin("sequences", time.Now())
	if cert.Sequences, err = f.Sequences(ctx); err != nil {
		return fmt.Errorf("setting the sequences: %w", err)
	}
	mark(MarkCarried, engine.Plural(cert.Sequences, "sequence")+" set")
	failpoint.Hit("freeze.sequences")
	f.spent.begin("comparison", time.Now())
	cert.Compared, err = f.Compare(ctx)
	return err
}

// repoint runs the switch steps and counts those that were begun.
func (f *Freeze) repoint(ctx context.Context, mark func(string, string), begun *int) error {
	for i, s := range f.Switch {
		if ctx.Err() != nil { // the hold is gone or the budget is used up: no step may start
			return context.Cause(ctx)
		}
		*begun = i + 1
		f.spent.begin("switch step "+s.Name, time.Now())
		err := s.begin(ctx)
		if err == nil {
			stepCtx, cancel := context.WithTimeout(ctx, s.Timeout)
			err = s.Do(stepCtx)
			cancel()
		}
		if err != nil {
			return fmt.Errorf("switch step %s: %w", s.Name, err)
		}
		mark("switch", "did "+s.Name)
		failpoint.Hit("freeze.switched")
	}
	return nil
}

// sendBack takes back, in reverse order, every switch step that was begun: one that ran into its timeout
// may have acted all the same. No budget bounds that, so from is let go first and its writers wait for
// none of it. to stays held, closed: clients that were sent there wait until they are sent back. They do not
// wait for a record that a side out of reach cannot take: whoever called Attempt makes it afterwards.
func (f *Freeze) sendBack(ctx context.Context, hold, toHold *Hold, begun int) {
	if !failpoint.Mutant("freeze.undo_under_hold") {
		hold.Release(ctx)
	}
	if f.Undone != nil && hold.Cause() == nil && toHold.Cause() == nil {
		f.Undone(ctx)
	}
	f.letGo(hold)
	failpoint.Hit("freeze.letgo")
	for i := begun - 1; i >= 0; i-- {
		s := f.Switch[i]
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Timeout)
		if err := s.Undo(undoCtx); err != nil {
			f.Mark(MarkUndo, fmt.Sprintf("undoing %s failed: %v: check by hand where it points", s.Name, err), 0)
		} else {
			f.Mark(MarkUndo, "undid "+s.Name, 0)
		}
		cancel()
	}
}

// giveUp ends an attempt that has repointed nothing yet.
func (f *Freeze) giveUp(ctx context.Context, hold *Hold, err error) error {
	err = f.why(ctx, err)
	hold.Release(ctx)
	f.letGo(hold)
	return err
}

// letGo tells how long writers waited in vain.
func (f *Freeze) letGo(hold *Hold) {
	waited := hold.Held()
	f.Mark(MarkUndo, fmt.Sprintf("let go: the %s takes writes again after %s", f.From.Side(), waited.Round(time.Millisecond)), waited)
}

// why says why an attempt ended, with the budget or the lost hold as the reason where it was one. A hold
// that ended with a statement of its own (25P02) is lost for what that statement says.
func (f *Freeze) why(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	named := cause != nil && pg.SQLState(cause) != "25P02"
	if over := (*overBudgetError)(nil); errors.As(cause, &over) {
		cause = fmt.Errorf("%w: %s", cause, &f.spent)
		if named = true; errors.Is(err, over) { // noticed between two parts
			return fmt.Errorf("%w: %w", ErrNotNow, cause)
		}
	}
	if named && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w (%w)", ErrNotNow, cause, err)
	}
	return fmt.Errorf("%w: %w", ErrNotNow, err)
}

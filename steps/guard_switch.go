package steps

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// switchBrief is what the guardian must know of a step in switch to undo it: it has no runbook, which may
// be another one by then.
type switchBrief struct {
	Kind, Name string
	Place      Place
	Timeout    time.Duration

	// Of exec.
	Dir        string
	Argv, Undo []string
	Vars       map[string]string // some are secrets, as is the brief
	Pinned     []string

	// Of sql.
	On                 engine.Side
	Statement, Reverse string
	Transaction        bool

	// Of http.
	Request, Back requestBrief
	Retries       int64
	Interval      time.Duration
}

// requestBrief is a request of http with its secrets, and which they are.
type requestBrief struct {
	URL, Body secretBrief
	Method    string
	Headers   map[string]secretBrief
	Status    int
}

type secretBrief struct {
	Text   string
	Hidden bool
}

func (r httpRequest) brief() requestBrief {
	b := requestBrief{URL: briefSecret(r.url), Body: briefSecret(r.body), Method: r.method, Status: r.status, Headers: map[string]secretBrief{}}
	for name, v := range r.headers {
		b.Headers[name] = briefSecret(v)
	}
	return b
}

func (b requestBrief) request() httpRequest {
	r := httpRequest{url: b.URL.secret(), body: b.Body.secret(), method: b.Method, status: b.Status, headers: map[string]runbook.Secret{}}
	for name, v := range b.Headers {
		r.headers[name] = v.secret()
	}
	return r
}

func briefSecret(s runbook.Secret) secretBrief { return secretBrief{s.Reveal(), s.Sensitive()} }
func (b secretBrief) secret() runbook.Secret   { return runbook.NewSecret(b.Text, b.Hidden) }

// briefed gives the run's switch steps for the guardian.
func briefed(env *Env) (out []switchBrief) {
	own, _ := people(env, Place{engine.PhaseCutover, Switch}, env.Runbook.Cutover.Switch) // what is wrong with one was said when the plan was made
	for _, step := range own {
		switch s := step.(type) {
		case *execStep:
			b := s.brief(s.timeout)
			b.Dir, b.Argv, b.Undo, b.Pinned, b.Vars = s.dir, s.argv, s.undo, s.pinned, map[string]string{}
			for name, v := range s.vars {
				b.Vars[name] = v.Reveal()
			}
			out = append(out, b)
		case *httpStep:
			b := s.brief(s.timeout)
			b.Request, b.Back, b.Retries, b.Interval = s.request.brief(), s.undo.brief(), s.retries, s.interval // in switch there is an undo
			out = append(out, b)
		case *sqlStep:
			b := s.brief(s.timeout)
			b.On, b.Statement, b.Reverse, b.Transaction = s.on, s.statement, s.undo, s.transaction
			out = append(out, b)
		}
	}
	return out
}

// filesOfPlan are the digests of the files that the accepted plan names.
func (e *Env) filesOfPlan() map[string]string {
	if e.Plan == nil {
		return nil
	}
	return e.Plan.Runbook.Files
}

// switches makes the steps as the freeze has them.
func (g *guard) switches() []freeze.SwitchStep {
	var own []engine.Step
	for _, b := range g.Switch {
		own = append(own, b.step(g.env, g.redact))
	}
	if g.From == engine.Target {
		return backSteps(switchSteps(g.env, own))
	}
	return switchSteps(g.env, own)
}

func (p person) brief(timeout time.Duration) switchBrief {
	return switchBrief{Kind: p.kind, Name: p.name, Place: p.place, Timeout: timeout}
}

// step makes the step again. Its output is said with the runbook's secrets masked.
func (b switchBrief) step(env *Env, redact *Redactor) engine.Step {
	p := person{env: env, place: b.Place, kind: b.Kind, name: b.Name, redact: redact}
	switch b.Kind {
	case "sql":
		return &sqlStep{person: p, on: b.On, statement: b.Statement, undo: b.Reverse, transaction: b.Transaction, timeout: b.Timeout}
	case "http":
		back := b.Back.request()
		return &httpStep{person: p, request: b.Request.request(), undo: &back, retries: b.Retries, interval: b.Interval, timeout: b.Timeout}
	}
	s := &execStep{person: p, dir: b.Dir, argv: b.Argv, undo: b.Undo, pinned: b.Pinned, timeout: b.Timeout, vars: map[string]runbook.Secret{}}
	for name, text := range b.Vars {
		s.vars[name] = runbook.NewSecret(text, true)
	}
	return s
}

// sendBack undoes what the runner's switch had begun before a flip that did not happen: clients that it sent
// away stand at a closed side. It does that as the next command would, as the one process that holds the
// run's locks, taken from the runner that died or fell silent and from nobody else: whoever holds them by then
// undoes the same first of all. What that runner had at work, a command or sessions, is ended before. A runner
// that wakes up finds itself replaced, and keeps off.
func (g *guard) sendBack(ctx context.Context) error {
	g.endCommand()
	f := g.sessions()
	if f == nil || f.cursor.Begun == 0 {
		return nil
	}
	g.warnings.Warn("guardian: what the switch had begun is undone")
	g.drop(ctx)
	g.epoch = g.brief.Run.Epoch
	var s *succession
	err := untilSettled(ctx, g.env, true, func(ctx context.Context) (err error) {
		s, err = g.succeed(ctx)
		return err
	})
	if engine.ClassOf(err) == engine.ClassHeld {
		return errTakenOver
	}
	if err != nil {
		return errors.Join(err, g.poolersAlone(ctx))
	}
	defer s.close(ctx)
	ctx, stop := s.run.Context(ctx) // who takes the run over by force sends the clients where they belong
	defer stop()
	err = s.cleared(ctx, s.opened, func(ctx context.Context) error { return s.poolers.settle(ctx, s.opened) })
	if err != nil && s.replaced(context.WithoutCancel(ctx)) != nil {
		return errTakenOver
	}
	return err
}

// errTakenOver is the guardian's end where another runner has its place: that one knows who takes writes by then.
var errTakenOver = errors.New("another runner has taken over, and undoes it")

// endCommand ends the command of a switch step that the runner had at work: what it would do comes too late.
func (g *guard) endCommand() {
	if g.group > 0 {
		_ = syscall.Kill(-g.group, syscall.SIGKILL)
		g.group = 0
	}
	killMarked(g.brief.Run.ID, g.brief.Run.Epoch, g.brief.Run.Epoch) // also one that the runner had no time to tell of
}

// succession is the guardian in its runner's place.
type succession struct {
	*flipper
	run    *journal.Run
	opened bool
}

func (s *succession) close(ctx context.Context) {
	if s.flipper != nil {
		s.flipper.close(ctx)
	}
	s.run.Close(ctx)
}

// succeed takes the runner's place.
func (g *guard) succeed(ctx context.Context) (_ *succession, err error) {
	run, err := journal.Open(ctx, g.env.Target, journal.OpenOptions{StealFrom: g.Runner, StealEpoch: g.brief.Run.Epoch, Redact: g.redact.String})
	if err != nil {
		return nil, g.notYet(ctx, err)
	}
	g.epoch = run.Epoch
	s := &succession{run: run}
	defer func() {
		if err != nil {
			s.close(ctx)
		}
	}()
	if err := run.LockSource(ctx, g.env.Source, false); err != nil {
		return nil, errors.New(err.Error()) // whoever holds that one is not in the runner's place
	}
	g.env.Journal, g.env.Run.Epoch = run, run.Epoch
	step := &freezeStep{env: g.env, id: g.Step, from: g.From, inherits: &g.Inherited, repoint: g.switches()}
	if s.flipper, err = step.build(ctx, run.Checkpoint(g.Step, g.env.Sink)); err != nil {
		return nil, err
	}
	s.opened, err = s.settle(ctx)
	return s, err
}

// notYet is why the runner's place could not be taken. It is for good where the epoch has moved: somebody else
// has taken it. A session that does not end at once, or a runner that is just about to take over, is asked again.
func (g *guard) notYet(ctx context.Context, cause error) error {
	if engine.ClassOf(cause) != engine.ClassHeld {
		return cause
	}
	now, err := journal.OpenReadOnly(ctx, g.env.Target)
	if err != nil {
		return errors.Join(errors.New(cause.Error()), err)
	}
	defer now.Close(ctx)
	if now.Epoch != g.epoch {
		return cause
	}
	return errors.New(cause.Error())
}

// poolersAlone lets the poolers' clients go on although nothing else could be undone.
func (g *guard) poolersAlone(ctx context.Context) error {
	f, err := g.open(ctx)
	if err != nil {
		return err
	}
	defer g.shut(ctx, f)
	return g.letGo(ctx, f)
}

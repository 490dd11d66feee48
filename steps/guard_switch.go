package steps

import (
	"context"
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
}

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
	if b.Kind == "sql" {
		return &sqlStep{person: p, on: b.On, statement: b.Statement, undo: b.Reverse, transaction: b.Transaction, timeout: b.Timeout}
	}
	s := &execStep{person: p, dir: b.Dir, argv: b.Argv, undo: b.Undo, pinned: b.Pinned, timeout: b.Timeout, vars: map[string]runbook.Secret{}}
	for name, text := range b.Vars {
		s.vars[name] = runbook.NewSecret(text, true)
	}
	return s
}

// sendBack undoes what the runner's switch had begun before a flip that did not happen: clients that it sent
// away stand at a closed side. It does that as the next command would, as the one process that holds the
// run's lock, taken from the runner that died or fell silent and from nobody else: whoever holds it by then
// undoes the same first of all. A runner that wakes up finds itself replaced, and keeps off.
func (g *guard) sendBack(ctx context.Context) error {
	f := g.sessions()
	if f == nil || f.cursor.Begun == 0 {
		return nil
	}
	g.warnings.Warn("guardian: what the switch had begun is undone")
	g.drop(ctx)
	run, err := journal.Open(ctx, g.env.Target, journal.OpenOptions{StealFrom: g.Runner, Redact: g.redact.String})
	if engine.ClassOf(err) == engine.ClassHeld {
		g.warnings.Warn("guardian: another runner has taken over, and undoes it")
		return nil
	}
	if err != nil {
		return err
	}
	defer run.Close(ctx)
	g.env.Journal, g.env.Run.Epoch = run, run.Epoch
	defer func() { g.env.Journal = nil }()
	step := &freezeStep{env: g.env, id: g.Step, from: g.From, inherits: &g.Inherited, repoint: g.switches()}
	back, err := step.build(ctx, run.Checkpoint(g.Step, g.env.Sink))
	if err != nil {
		return err
	}
	defer back.close(ctx)
	opened, err := back.settle(ctx)
	if err != nil {
		return err
	}
	return back.cleared(ctx, opened, func(ctx context.Context) error { return back.poolers.settle(ctx, opened) })
}

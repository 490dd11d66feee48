package steps

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// switchable is a step that may stand in switch.
type switchable interface {
	engine.Step
	engine.Undoer
	command() string // as shown to people, on one line
	limit() time.Duration
}

// switchSteps makes the freeze's form of the steps in switch.
func switchSteps(env *Env, own []engine.Step) []freeze.SwitchStep {
	out := make([]freeze.SwitchStep, 0, len(own))
	for _, s := range own {
		sw, ok := s.(switchable)
		if !ok {
			continue // checkSwitch refused it
		}
		cp := switchCheckpoint{env: env, id: s.ID()}
		out = append(out, freeze.SwitchStep{
			ID:      s.ID(),
			Name:    sw.command(),
			Timeout: sw.limit(),
			Do:      func(ctx context.Context) error { return sw.Apply(ctx, engine.StepPlan{}, cp) },
			Undo:    func(ctx context.Context) error { return sw.Undo(ctx, cp) },
		})
	}
	return out
}

// backSteps are the switch of the way back: each step's undo, in reverse order.
func backSteps(forward []freeze.SwitchStep) []freeze.SwitchStep {
	out := make([]freeze.SwitchStep, 0, len(forward))
	for i := len(forward) - 1; i >= 0; i-- {
		f := forward[i]
		out = append(out, freeze.SwitchStep{ID: f.ID, Name: "undo " + f.Name, Timeout: f.Timeout, Do: f.Undo, Undo: f.Do})
	}
	return out
}

// switchCheckpoint keeps nothing: a freeze that dies begins anew, and its switch with it.
type switchCheckpoint struct {
	env *Env
	id  engine.StepID
}

func (c switchCheckpoint) Load(context.Context, any) (bool, error) { return false, nil }
func (c switchCheckpoint) Save(context.Context, pgx.Tx, any) error { return nil }
func (c switchCheckpoint) Emit(e engine.Event) {
	if c.env.Sink == nil {
		return
	}
	e.Step, e.Phase, e.At = c.id, engine.PhaseCutover, time.Now()
	c.env.Sink.Emit(e)
}

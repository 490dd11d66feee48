package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/preflight"
)

// closedSides is why a side, or both, cannot be used: one look names both.
type closedSides struct{ source, target error }

func (c *closedSides) Error() string {
	var texts []string
	for _, err := range c.Unwrap() {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (c *closedSides) Unwrap() []error {
	var out []error
	for _, err := range []error{c.source, c.target} {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}

// err is nil where both sides are open. Its class is what does not go away by itself, its hint what to
// type for each side.
func (c *closedSides) err() error {
	all := c.Unwrap()
	if len(all) == 0 {
		return nil
	}
	e := &engine.Error{Err: c}
	for _, err := range all {
		if e.Class == engine.ClassFailed {
			e.Class = engine.ClassOf(err)
		}
		e.Hint = strings.TrimSpace(e.Hint + " " + engine.HintOf(err))
	}
	return e
}

// open opens one read-only session a side, at the same time. sides has those that could be opened.
func (c *closedSides) open(ctx context.Context, env *Env) *sideConns {
	use := pg.Use{Name: "plan", ReadOnly: true}
	sides, both := &sideConns{}, sync.WaitGroup{}
	both.Go(func() {
		var err error
		sides.source, err = env.Source.Connect(ctx, use)
		c.source = notReached(engine.Source, err)
	})
	both.Go(func() {
		var err error
		sides.target, err = env.Target.Connect(ctx, use)
		c.target = notReached(engine.Target, err)
	})
	both.Wait()
	return sides
}

// openForPlan opens one read-only session a side.
func openForPlan(ctx context.Context, env *Env) (*sideConns, error) {
	var c closedSides
	sides := c.open(ctx, env)
	if err := c.err(); err != nil {
		sides.close(context.WithoutCancel(ctx))
		return nil, err
	}
	return sides, nil
}

// notReached says what to do about a side that cannot be used.
func notReached(side engine.Side, err error) error {
	hint := fmt.Sprintf("Mend the runbook's %s block, the network or the server until psql reaches it from here, then run the same command again.", side)
	if side == engine.Target {
		hint += " " + withoutTarget
	}
	return goneHint("", err, hint)
}

// poolersOf gives the findings of an error that says nothing but that poolers stand before the sides.
func poolersOf(err error) []engine.Finding {
	var c *closedSides
	if !errors.As(err, &c) {
		return nil
	}
	var out []engine.Finding
	for _, err := range c.Unwrap() {
		f, ok := preflight.Pooler(err)
		if !ok {
			return nil
		}
		out = append(out, f)
	}
	return out
}

// PlanRefused is the plan where no run could be looked for on the target, which is why: with the
// findings of what stands before both sides, or as an error that names what is wrong with either.
func PlanRefused(ctx context.Context, env *Env, toolVersion string, why error) (*engine.Plan, error) {
	err := Refused(ctx, env, why)
	p := newPlan(env, toolVersion)
	if p.Findings = poolersOf(err); p.Findings != nil {
		return p, nil
	}
	return nil, err
}

// Refused adds to why no run could be looked for on the target what is wrong with the source, if
// anything is.
func Refused(ctx context.Context, env *Env, why error) error {
	if ctx.Err() != nil {
		return why
	}
	var c closedSides
	c.open(ctx, env).close(context.WithoutCancel(ctx))
	if c.target == nil {
		c.target = why
	}
	return c.err()
}

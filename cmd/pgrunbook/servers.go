package main

import (
	"context"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps"
)

// openServer gives the target alone: of --target, of a runbook or of a saved plan.
func (a *app) openServer(ctx context.Context, args []string) (*steps.Server, error) {
	target, _, err := a.openServers(ctx, args)
	return target, err
}

// openServers gives the target, and the source where it is known; neither is connected to. With
// --target the source comes from PGRUNBOOK_SOURCE_URL, and may be nil.
func (a *app) openServers(ctx context.Context, args []string) (target, source *steps.Server, err error) {
	if !a.useTarget(args) {
		return a.openNamed(ctx, args)
	}
	url, err := a.targetURL()
	if err != nil {
		return nil, nil, err
	}
	if target, err = steps.NewServer(engine.Target, url, ""); err != nil {
		return nil, nil, err
	}
	if from := a.env("PGRUNBOOK_SOURCE_URL"); from != "" {
		a.hide(steps.Passwords(from)...)
		source, err = steps.NewServer(engine.Source, from, "")
	}
	a.show()
	return target, source, err
}

// openNamed gives the servers of a runbook or a saved plan. Who looks from another shell may have
// the target's address alone: what only the source needs may be missing.
func (a *app) openNamed(ctx context.Context, args []string) (target, source *steps.Server, err error) {
	rb, diags, err := a.peek(args)
	if err == nil && !diags.HasErrors() {
		a.hide(rb.Secrets()...)
		if target, source, err = steps.Servers(rb); err == nil && target != nil {
			a.show()
			return target, source, nil
		}
	}
	s, err := a.open(ctx, args) // it says what is wrong, or missing
	if err != nil {
		return nil, nil, err
	}
	return s.env.Target, s.env.Source, nil
}

// peek reads a runbook, of a file or of a saved plan, with the values that are at hand.
func (a *app) peek(args []string) (*runbook.Runbook, hcl.Diagnostics, error) {
	path, err := findRunbook(args)
	if err != nil {
		return nil, nil, err
	}
	p, err := readPlan(path)
	if err != nil {
		return nil, nil, err
	}
	o, err := a.options(true)
	if err != nil {
		return nil, nil, err
	}
	if p == nil {
		rb, diags := runbook.Load(path, o)
		return rb, diags, nil
	}
	if len(a.vars)+len(a.varFiles) > 0 {
		return nil, nil, errVarsOfPlan()
	}
	rb, diags := steps.ParsePlan(p, o)
	return rb, diags, nil
}

package steps

import (
	"fmt"
	"slices"

	"github.com/hashicorp/hcl/v2"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// Check decodes every step that people wrote, without any server, and holds them to the rules
// that need no server.
func Check(rb *runbook.Runbook) hcl.Diagnostics {
	env := &Env{Runbook: rb}
	diags := checkURLs(rb)
	seen := names{}
	for _, phase := range append(engine.Forward(), engine.PhaseRollback, engine.PhaseFinish) {
		hooks := rb.Hooks[string(phase)]
		if !enabled(rb, phase) {
			diags = append(diags, unusedHooks(phase, slices.Concat(hooks.Before, hooks.After))...)
		}
		slots := []struct {
			slot   Slot
			blocks []runbook.StepBlock
		}{{Before, hooks.Before}, {After, hooks.After}}
		if phase == engine.PhaseCutover {
			slots = append(slots, struct {
				slot   Slot
				blocks []runbook.StepBlock
			}{Switch, rb.Cutover.Switch})
		}
		for _, s := range slots {
			_, more := people(env, Place{phase, s.slot}, s.blocks)
			diags = append(diags, more...)
			diags = append(diags, seen.check(s.blocks, phase)...)
		}
	}
	return diags
}

// checkURLs refuses connection strings with keywords that the driver would send to the server as settings.
func checkURLs(rb *runbook.Runbook) hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, side := range []struct {
		name engine.Side
		runbook.Server
	}{{engine.Source, rb.Source}, {engine.Target, rb.Target}} {
		if !side.URLKnown || side.URL == "" {
			continue
		}
		if err := pg.CheckURL(side.URL); err != nil {
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError, Summary: "Bad connection string", Subject: &side.URLRange,
				Detail: fmt.Sprintf("The url of %s cannot be used: %s.", side.name, err),
			})
		}
	}
	return diags
}

// people decodes step blocks in their order. Blocks with errors are left out.
func people(env *Env, place Place, blocks []runbook.StepBlock) ([]engine.Step, hcl.Diagnostics) {
	var steps []engine.Step
	var diags hcl.Diagnostics
	for _, b := range blocks {
		s, more := decodeStep(env, place, b)
		diags = append(diags, more...)
		if s != nil {
			steps = append(steps, s)
		}
	}
	return steps, diags
}

// names finds two approvals that a person could not tell apart. Two steps of one phase are found when the
// runbook is read.
type names map[string]asked

type asked struct {
	phase engine.Phase
	runbook.StepBlock
}

func (n names) check(blocks []runbook.StepBlock, phase engine.Phase) hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, b := range blocks {
		if b.Kind != "approve" {
			continue
		}
		first, ok := n[b.Name]
		if !ok {
			n[b.Name] = asked{phase, b}
			continue
		}
		if first.phase == phase {
			continue
		}
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  fmt.Sprintf("Two steps %q %q", b.Kind, b.Name),
			Detail:   fmt.Sprintf("The first one stands at %s. Names are unique in the runbook: pgrunbook approve NAME would not know which one is meant. Rename one of them.", first.Range),
			Subject:  labelRange(b.NameRange, b.Range),
		})
	}
	return diags
}

// Build gives the steps of the forward walk, in their order. It connects to nothing.
func Build(env *Env) ([]engine.Step, hcl.Diagnostics) {
	diags := Check(env.Runbook)
	if diags.HasErrors() {
		return nil, diags
	}
	var steps []engine.Step
	for _, phase := range engine.Forward() {
		own, more := phaseSteps(env, phase)
		diags = append(diags, more...)
		steps = append(steps, own...)
	}
	return steps, diags
}

// phaseSteps gives a phase's own steps between those that people put before and after it. A phase
// that is off has neither.
func phaseSteps(env *Env, phase engine.Phase) ([]engine.Step, hcl.Diagnostics) {
	hooks := env.Runbook.Hooks[string(phase)]
	if !enabled(env.Runbook, phase) {
		return nil, nil
	}
	before, d1 := people(env, Place{phase, Before}, hooks.Before)
	own, d2 := ownSteps(env, phase)
	after, d3 := people(env, Place{phase, After}, hooks.After)
	return slices.Concat(before, own, after), slices.Concat(d1, d2, d3)
}

func enabled(rb *runbook.Runbook, phase engine.Phase) bool {
	switch phase {
	case engine.PhaseSchema:
		return rb.Schema.Enabled
	case engine.PhaseVerify:
		return rb.Verify.Enabled
	case engine.PhaseCutover:
		return rb.Cutover.Enabled
	case engine.PhaseRollback:
		return rb.Rollback.Enabled
	case engine.PhaseCapture, engine.PhaseCopy, engine.PhaseCatchUp, engine.PhaseFinish:
	}
	return true
}

func unusedHooks(phase engine.Phase, blocks []runbook.StepBlock) hcl.Diagnostics {
	if len(blocks) == 0 {
		return nil
	}
	return hcl.Diagnostics{{
		Severity: hcl.DiagWarning,
		Summary:  "Steps that never run",
		Detail:   fmt.Sprintf("%s has enabled = false, so its before and after steps are left out too.", phase),
		Subject:  &blocks[0].Range,
	}}
}

func ownSteps(env *Env, phase engine.Phase) ([]engine.Step, hcl.Diagnostics) {
	switch phase {
	case engine.PhaseSchema:
		return []engine.Step{newSchema(env)}, nil
	case engine.PhaseCapture:
		return []engine.Step{newCapture(env)}, nil
	case engine.PhaseCopy:
		return []engine.Step{newCopy(env)}, nil
	case engine.PhaseCatchUp:
		return []engine.Step{newCatchUp(env), newConstraints(env)}, nil
	case engine.PhaseVerify:
		return []engine.Step{newVerify(env)}, nil
	case engine.PhaseCutover:
		repoint, diags := people(env, Place{phase, Switch}, env.Runbook.Cutover.Switch)
		own := []engine.Step{newArm(env), newFreeze(env, switchSteps(env, repoint))}
		if env.Runbook.Rollback.Enabled {
			own = slices.Concat([]engine.Step{newReverse(env)}, own)
		}
		return own, diags
	case engine.PhaseRollback, engine.PhaseFinish:
	}
	return nil, nil
}

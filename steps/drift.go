package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// CheckDrift compares a plan that is about to begin a run with both databases as they are now.
// What changed is named in an error of ClassStale. The preflight is made again: what has come up since
// the plan was made, such as a target that took rows, is an error of ClassPreflight.
func CheckDrift(ctx context.Context, env *Env, p *engine.Plan) error {
	now := &engine.Plan{Format: p.Format, Name: p.Name, Runbook: p.Runbook, Steps: p.Steps}
	if _, err := survey(ctx, env, now); err != nil {
		return err
	}
	if changes := Drift(p, now); len(changes) > 0 {
		return stale(changes)
	}
	return comeUp(now.Findings)
}

// comeUp is the error for findings of severity error.
func comeUp(findings []engine.Finding) error {
	var texts, fixes []string
	for _, f := range findings {
		if f.Severity == engine.SeverityError {
			texts = append(texts, strings.TrimSpace(f.Code+" "+f.Object)+": "+f.Text)
			fixes = append(fixes, f.Fix)
		}
	}
	if texts == nil {
		return nil
	}
	return &engine.Error{
		Class: engine.ClassPreflight, Op: "looking again before the saved plan begins", Err: errors.New(joinSome(texts)),
		Hint: joinSome(slices.Compact(fixes)) + " What was reviewed is no longer so: plan again to see all of it.",
	}
}

// Drift names what changed between a plan and the same plan made now: "table public.orders: column
// note added". It is empty where nothing that the digest covers did.
func Drift(plan, now *engine.Plan) []string {
	if plan.Digest() == now.Digest() {
		return nil
	}
	had, has := tablesOf(plan), tablesOf(now)
	var out []string
	for _, name := range sortedKeys(now.Shapes) {
		if was, ok := plan.Shapes[name]; ok && was != now.Shapes[name] {
			out = append(out, tableDrift(name, had[name], has[name])...)
		}
	}
	detailed := len(out) > 0
	for _, c := range journal.Changes(plan, now) {
		if detailed && changedTable(c, plan, now) {
			continue
		}
		out = append(out, c)
	}
	return out
}

// changedTable reports whether a change of journal.Changes says what tableDrift said in detail.
func changedTable(change string, plan, now *engine.Plan) bool {
	for name, was := range plan.Shapes {
		if is, ok := now.Shapes[name]; ok && is != was && change == "table "+name+" changed" {
			return true
		}
	}
	return false
}

func tableDrift(name string, was, is scope.Table) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, "table "+name+": "+fmt.Sprintf(format, args...)) }
	a, b := columnsOf(was), columnsOf(is)
	for _, c := range sortedKeys(b) {
		switch old, ok := a[c]; {
		case !ok:
			say("column %s added", c)
		case old != b[c]:
			say("column %s is %s, was %s", c, b[c], old)
		}
	}
	for _, c := range sortedKeys(a) {
		if _, ok := b[c]; !ok {
			say("column %s dropped", c)
		}
	}
	if !sameKey(was.Key, is.Key) {
		say("its key changed")
	}
	if !slices.EqualFunc(was.Members, is.Members, func(x, y scope.Member) bool { return x.Name == y.Name && x.OID == y.OID }) {
		say("its partitions changed")
	}
	if out == nil {
		say("its definition changed")
	}
	return out
}

// Amend makes the plan for a run that goes on with a changed runbook: tunables and steps not begun
// may change. What may not is named in an error of ClassStale that says what it would cost.
// env.Runbook is the changed runbook; env.Scope is filled from the accepted plan, with the changed sizes of chunks.
func Amend(ctx context.Context, env *Env, run *journal.Run, toolVersion string) (*engine.Plan, error) {
	was, _ := runbook.Parse(run.Plan.Runbook.Path, []byte(run.Plan.Runbook.Text), runbook.Options{Vars: run.Plan.Runbook.Variables, Validate: true})
	if changes := fixed(was, env.Runbook); len(changes) > 0 {
		e := stale(changes)
		e.Hint = "These cannot change in mid-run. Go back to the accepted runbook, or begin again: pgrunbook abort, then plan and apply."
		return nil, e
	}
	env.Plan = run.Plan
	if err := env.readScope(); err != nil {
		return nil, err
	}
	loads, err := run.TableStates(ctx, nil)
	if err != nil {
		return nil, err
	}
	if diags := env.Scope.Rechunk(env.Runbook, func(table int32) bool { _, ok := loads[table]; return ok }); diags.HasErrors() {
		return nil, &engine.Error{Class: engine.ClassRunbook, Op: "reading the runbook", Err: diags}
	}
	records, err := run.Steps(ctx)
	if err != nil {
		return nil, err
	}
	begun := map[engine.StepID]engine.StepRecord{}
	for _, r := range records {
		begun[r.ID] = r
	}
	built, diags := Build(env)
	if diags.HasErrors() {
		return nil, &engine.Error{Class: engine.ClassRunbook, Op: "reading the runbook", Err: diags}
	}
	p := *run.Plan
	p.Runbook, p.ToolVersion, p.Steps = pinRunbook(env.Runbook), toolVersion, nil
	if p.Scope, err = json.Marshal(env.Scope); err != nil {
		return nil, fmt.Errorf("writing the scope as JSON: %w", err)
	}
	for _, s := range built {
		rec, started := begun[s.ID()]
		if started && rec.State == engine.StepDone {
			if rec.Fingerprint != s.Fingerprint() {
				e := stale([]string{"step " + string(s.ID()) + " is done and was changed"})
				e.Hint = "Change that step back, or begin again: pgrunbook abort, then plan and apply."
				return nil, e
			}
			old, _ := run.Plan.Step(s.ID())
			p.Steps = append(p.Steps, old)
			continue
		}
		sp, err := planStep(ctx, env, s)
		if err != nil {
			return nil, err
		}
		p.Steps = append(p.Steps, sp)
	}
	p.Predictions = predict(env, engine.Source)
	return &p, nil
}

// fixed names what differs between two runbooks of what a run cannot change: which rows it carries,
// and how it tells them apart.
func fixed(was, is *runbook.Runbook) []string {
	var out []string
	texts := func(list []runbook.Pattern) []string {
		t := make([]string, len(list))
		for i, p := range list {
			t[i] = p.Text
		}
		return t
	}
	for _, l := range []struct {
		name     string
		was, now []runbook.Pattern
	}{
		{"include", was.Tables.Include, is.Tables.Include},
		{"exclude", was.Tables.Exclude, is.Tables.Exclude},
		{"exclude_data", was.Tables.ExcludeData, is.Tables.ExcludeData},
	} {
		if !slices.Equal(texts(l.was), texts(l.now)) {
			out = append(out, "tables { "+l.name+" }")
		}
	}
	same := slices.EqualFunc(was.Rules, is.Rules, func(a, b runbook.TableRule) bool {
		return a.Pattern.Text == b.Pattern.Text && a.Data == b.Data && a.Identity == b.Identity && a.Method == b.Method && slices.Equal(a.Key, b.Key)
	})
	if !same {
		out = append(out, "table blocks (their chunk may change)")
	}
	return out
}

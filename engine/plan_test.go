package engine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
)

func plan() *engine.Plan {
	return &engine.Plan{
		Format: engine.PlanFormat, ToolVersion: "1.0.0", Created: start, Name: "erp",
		Runbook: engine.RunbookPin{Path: "a.runbook.hcl", Text: "runbook \"erp\" {}", Digest: "x", Files: map[string]string{"dns.sh": "1"}, Variables: map[string]string{"n": "1"}},
		Source:  engine.Identity{SystemIdentifier: "7", Database: "erp", DatabaseOID: 5, Major: 15, Version: "15.4", StartedAt: start, Timeline: 1, Address: "a:5432/erp"},
		Target:  engine.Identity{SystemIdentifier: "8", Database: "erp", DatabaseOID: 6, Major: 18, Version: "18.1", StartedAt: start, Timeline: 1, Address: "b:5432/erp"},
		Shapes:  map[string]string{"erp.a": "1", "erp.b": "2"},
		Steps:   []engine.StepPlan{{ID: "schema", Title: "Create"}, {ID: "copy", Title: "Load", Estimate: engine.Estimate{Rows: 5}}},
		Scope:   []byte(`{"tables":[]}`),
	}
}

func TestDigestIgnoresWhatAlwaysMoves(t *testing.T) {
	want := plan().Digest()
	for name, change := range map[string]func(p *engine.Plan){
		"time of planning":   func(p *engine.Plan) { p.Created = p.Created.Add(time.Hour) },
		"tool":               func(p *engine.Plan) { p.ToolVersion = "1.0.1" },
		"estimates":          func(p *engine.Plan) { p.Steps[1].Estimate = engine.Estimate{Seconds: 9, Rows: 99, Bytes: 999} },
		"findings":           func(p *engine.Plan) { p.Findings = []engine.Finding{{Code: "PRE001", Text: "disk is at 80 %"}} },
		"prediction":         func(p *engine.Plan) { p.Predictions.WriteBlock = time.Second },
		"sizes in the scope": func(p *engine.Plan) { p.Scope = []byte(`{"tables":[{"rows":7}]}`) },
		"restart":            func(p *engine.Plan) { p.Source.StartedAt = p.Source.StartedAt.Add(time.Hour) },
		"failover":           func(p *engine.Plan) { p.Source.Timeline++ },
		"minor version":      func(p *engine.Plan) { p.Target.Version = "18.2" },
		"address":            func(p *engine.Plan) { p.Target.Address = "c:5432/erp" },
		"path":               func(p *engine.Plan) { p.Runbook.Path = "b/a.runbook.hcl" },
	} {
		p := plan()
		change(p)
		if p.Digest() != want {
			t.Errorf("%s changes the digest", name)
		}
	}
}

func TestDigestCoversWhatWasReviewed(t *testing.T) {
	seen := map[string]string{plan().Digest(): "nothing"}
	for name, change := range map[string]func(p *engine.Plan){
		"text":           func(p *engine.Plan) { p.Runbook.Text += " " },
		"file":           func(p *engine.Plan) { p.Runbook.Files["dns.sh"] = "2" },
		"variable":       func(p *engine.Plan) { p.Runbook.Variables["n"] = "2" },
		"shape":          func(p *engine.Plan) { p.Shapes["erp.a"] = "9" },
		"new table":      func(p *engine.Plan) { p.Shapes["erp.c"] = "1" },
		"order of steps": func(p *engine.Plan) { p.Steps[0], p.Steps[1] = p.Steps[1], p.Steps[0] },
		"step":           func(p *engine.Plan) { p.Steps = p.Steps[:1] },
		"source":         func(p *engine.Plan) { p.Source.SystemIdentifier = "9" },
		"target's oid":   func(p *engine.Plan) { p.Target.DatabaseOID++ },
		"major":          func(p *engine.Plan) { p.Target.Major = 17 },
		"format":         func(p *engine.Plan) { p.Format++ },
	} {
		p := plan()
		change(p)
		if other, ok := seen[p.Digest()]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[p.Digest()] = name
	}
}

func TestPlanSurvivesJSON(t *testing.T) {
	p := plan()
	p.Steps[0].Actions = []engine.Action{{On: engine.Source, Object: "erp.a", SQL: "SELECT 1", Why: "w", Reverse: "r", Group: "g"}}
	p.Steps[0].Hazards = []engine.Hazard{{Kind: engine.HazardLock, Text: "waits"}}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var got engine.Plan
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, &got); diff != "" || got.Digest() != p.Digest() {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

func TestPlanLooksUp(t *testing.T) {
	p := plan()
	if s, ok := p.Step("copy"); !ok || s.Title != "Load" {
		t.Errorf("step copy: %+v, %t", s, ok)
	}
	if _, ok := p.Step("flip"); ok {
		t.Error("a step that is not there was found")
	}
	for severity, want := range map[engine.Severity]bool{engine.SeverityError: true, engine.SeverityWarning: false, engine.SeverityInfo: false} {
		p.Findings = []engine.Finding{{Severity: engine.SeverityInfo}, {Severity: severity}}
		if p.Blocking() != want {
			t.Errorf("a finding of severity %s blocks: %t", severity, p.Blocking())
		}
	}
	if p.Source.Same(p.Target) || !p.Source.Same(p.Source) {
		t.Error("source and target are taken for the same database, or the source for another")
	}
	if engine.Source.Other() != engine.Target || engine.Target.Other() != engine.Source {
		t.Error("the other side is the same side")
	}
}

func TestErrorKeepsClassHintAndCauseUnderWrapping(t *testing.T) {
	cause := errors.New("deadlock")
	inner := &engine.Error{Class: engine.ClassHeld, Op: "arming the gate", Object: "erp.a", Hint: "Wait.", Err: cause}
	outer := fmt.Errorf("step x: %w", &engine.Error{Op: "applying", Err: inner})
	if engine.ClassOf(outer) != engine.ClassHeld || engine.HintOf(outer) != "Wait." || !errors.Is(outer, cause) {
		t.Errorf("class %d, hint %q of %v", engine.ClassOf(outer), engine.HintOf(outer), outer)
	}
	if want := "step x: applying: arming the gate erp.a: deadlock"; outer.Error() != want {
		t.Errorf("text %q, want %q", outer, want)
	}
	for _, plain := range []error{nil, cause, engine.Errorf(engine.ClassFailed, "", "x")} {
		if engine.ClassOf(plain) != engine.ClassFailed || engine.HintOf(plain) != "" {
			t.Errorf("class %d, hint %q of %v", engine.ClassOf(plain), engine.HintOf(plain), plain)
		}
	}
}

// TestPrediction: switch steps' timeouts are said and are no reason to refuse a freeze.
func TestPrediction(t *testing.T) {
	p := engine.Prediction{WriteBlock: 1250 * time.Millisecond, Switch: time.Second, Budget: time.Second, Why: "2 tables"}
	if got := p.String(); p.Over() || got != "predicted write block 1.25s of 1s (2 tables)" {
		t.Errorf("over %v: %s", p.Over(), got)
	}
	p.WriteBlock = 1141 * time.Millisecond
	if got := p.String(); !strings.Contains(got, " 1.141s of ") {
		t.Errorf("it is not as exact as its parts: %s", got)
	}
	p.WriteBlock = 1250 * time.Millisecond
	p.Switch, p.Drain = 0, time.Second
	if p.Over() {
		t.Error("one drain that was slow keeps every later attempt away")
	}
	p.Drain, p.Undone = 0, time.Second
	if p.Over() {
		t.Error("one attempt that was undone keeps every later one away")
	}
	p.Undone = 0
	if got := p.String(); !p.Over() || got != "predicted write block 1.25s of 1s, OVER the budget: no freeze would begin (2 tables)" {
		t.Errorf("over %v: %s", p.Over(), got)
	}
}

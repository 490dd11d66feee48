package view

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// examplePlan is a plan with everything in it, over n tables.
func examplePlan(n int) *engine.Plan {
	p := &engine.Plan{
		Format: 1, ToolVersion: "1.0.0", Created: start, Name: "erp-to-rds",
		Runbook: engine.RunbookPin{Path: "erp.runbook.hcl", Text: "runbook \"erp-to-rds\" {}\n", Digest: "d"},
		Source:  engine.Identity{SystemIdentifier: "1", Database: "erp", DatabaseOID: 5, Major: 15, Version: "15.14", Address: "old:5432/erp", TLS: "sslmode prefer on loopback"},
		Target:  engine.Identity{SystemIdentifier: "2", Database: "erp", DatabaseOID: 6, Major: 18, Version: "18.1", Address: "new:5432/erp", TLS: "sslmode verify-full"},
		Findings: []engine.Finding{
			{Code: "PRE020", Severity: engine.SeverityInfo, Text: "sslmode is verify-full"},
			{Code: "PRE012", Severity: engine.SeverityWarning, Side: engine.Source, Object: "erp.log", Text: "has no key: it is reloaded in the freeze", Fix: `table "erp.log" { identity = "append_only" }`},
		},
		NotCarried:  []string{"Subscription billing_sub on the source is not carried."},
		Predictions: engine.Prediction{WriteBlock: 180 * time.Millisecond, Why: "40 ms of passes, 140 ms of sequences"},
	}
	type object = map[string]any
	var tables []object
	var gate []engine.Action
	for i := range n {
		name := fmt.Sprintf("t%03d", i)
		t := object{
			"id": i + 1, "schema": "erp", "name": name, "kind": "table", "method": "stream", "data": "live", "identity": "key", "capture": "statement", "index_bytes": 8192, "rows": 1000 * (i + 1), "bytes": (i + 1) << 22, "chunks": 1,
			"key": object{"primary": true, "columns": []object{{"name": "id"}}}, "why": "ctid ranges of 128 MiB",
		}
		switch i % 5 {
		case 1:
			t["key"] = object{"primary": false, "columns": []object{{"name": "invoice"}, {"name": "no"}}}
		case 2:
			delete(t, "key")
			t["data"], t["chunks"] = "at_freeze", 0
		case 3:
			delete(t, "key")
			t["identity"] = "append_only"
		case 4:
			t["kind"] = "partitioned"
			t["members"], t["chunks"] = []object{{"leaf": true}, {"leaf": true}, {"leaf": false}}, 2
		}
		tables = append(tables, t)
		if i > 0 {
			p.Findings = append(p.Findings, engine.Finding{Code: "PRE012", Severity: engine.SeverityWarning, Side: engine.Source, Object: "erp." + name, Text: "has no key: it is reloaded in the freeze", Fix: "x"})
		}
		gate = append(gate, engine.Action{
			On: engine.Source, Object: "erp." + name, Group: "gate {n} tables", Why: "writes can be held",
			SQL: "CREATE TRIGGER \"!pgrunbook_gate\" BEFORE INSERT ON erp." + name + "\n  FOR EACH STATEMENT EXECUTE FUNCTION pgrunbook.gate()", Reverse: "DROP TRIGGER \"!pgrunbook_gate\" ON erp." + name,
		})
	}
	scope, err := json.Marshal(object{"tables": tables, "sequences": []object{{"name": "s"}, {"name": "t"}}, "not_carried": []string{"View erp.v depends on erp.tmp_x.", p.NotCarried[0]}})
	if err != nil {
		panic(err)
	}
	p.Scope = scope
	p.Steps = []engine.StepPlan{
		{
			ID: "schema", Phase: engine.PhaseSchema, Title: "Create the schema on the target", Why: "tables without keys load fastest", Estimate: engine.Estimate{Seconds: 12},
			Actions: []engine.Action{{On: engine.Runner, SQL: "pg_dump --schema-only --format=custom"}, {On: engine.Target, SQL: "pg_restore --section=pre-data"}},
		},
		{ID: "arm", Phase: engine.PhaseCutover, Title: "Arm the gate on the source", Actions: gate, Hazards: []engine.Hazard{
			{Kind: engine.HazardLock, Object: "erp.t000", Text: "takes SHARE ROW EXCLUSIVE for some milliseconds"}, {Kind: engine.HazardLoad, Text: "a trigger call a statement"}, {Kind: engine.HazardOneWay, Text: "none"},
		}},
		{ID: "copy", Phase: engine.PhaseCopy, Title: "Load the tables", Estimate: engine.Estimate{Seconds: 3600, Rows: 12_345_678, Bytes: 5 << 30, SourceDisk: 1 << 20, TargetDisk: 7 << 30}},
		{ID: "catch_up", Phase: engine.PhaseCatchUp, Title: "Follow", Rules: []engine.Rule{
			{Change: "new columns", Then: "carried", How: "ALTER TABLE ... ADD COLUMN"}, {Change: "a renamed table", Then: "stops, named"},
		}},
		{ID: "cutover.switch.exec.dns", Phase: engine.PhaseCutover, Title: "Run ./dns.sh rds", Actions: []engine.Action{{On: engine.Runner, SQL: "./dns.sh rds", Reverse: "./dns.sh onprem"}}},
	}
	return p
}

func render(t *testing.T, f func(b *bytes.Buffer) error) string {
	t.Helper()
	var b bytes.Buffer
	if err := f(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGoldenPlans(t *testing.T) {
	p := examplePlan(7)
	golden(t, "plan.txt", render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{}) }))
	golden(t, "plan-verbose.txt", render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{Verbose: true}) }))
	golden(t, "plan.md", render(t, func(b *bytes.Buffer) error { return WritePlanMarkdown(b, p, 0) }))
	golden(t, "plan.json", render(t, func(b *bytes.Buffer) error { return WritePlanJSON(b, p) }))
	golden(t, "findings.txt", render(t, func(b *bytes.Buffer) error { return WriteFindings(b, p.Findings, PlanOptions{}) }))
}

// Whatever else is left out of a form that fits some screens or a comment, what becomes of DDL is in it.
func TestEveryFormShowsTheRulesOfDDL(t *testing.T) {
	p := examplePlan(500)
	for name, text := range map[string]string{
		"short":    render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{}) }),
		"verbose":  render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{Verbose: true}) }),
		"markdown": render(t, func(b *bytes.Buffer) error { return WritePlanMarkdown(b, p, 60_000) }),
		"json":     render(t, func(b *bytes.Buffer) error { return WritePlanJSON(b, p) }),
	} {
		for _, want := range []string{"new columns", "carried", "a renamed table", "stops, named"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
	}
}

func TestRowsThatNobodyCounted(t *testing.T) {
	p := examplePlan(2)
	p.Scope = []byte(`{"tables": [{"schema": "a", "name": "fresh", "method": "stream", "data": "live", "rows": 0, "unanalyzed": true, "bytes": 8192}]}`)
	p.Steps = []engine.StepPlan{{ID: "copy", Phase: engine.PhaseCopy, Title: "copy", Estimate: engine.Estimate{Seconds: 1, Bytes: 8192, Unanalyzed: 1}}}
	text := func() string {
		return render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{}) }) + render(t, func(b *bytes.Buffer) error { return WritePlanMarkdown(b, p, 0) })
	}
	look := func(got string, want ...string) {
		t.Helper()
		for _, s := range want {
			if !strings.Contains(got, s) {
				t.Errorf("%q is missing in:\n%s", s, got)
			}
		}
		if strings.Contains(got, " 0 rows") || strings.Contains(got, "| 0 |") {
			t.Errorf("unknown is not 0:\n%s", got)
		}
	}
	look(text(), "moves   1 table, 0 sequences, rows unknown: never analyzed, 8.0 KiB", "[about 1.0s, rows unknown: never analyzed, 8.0 KiB]",
		"  unknown     8.0 KiB", "1 table, rows unknown: never analyzed, 8.0 KiB.", "| unknown | 8.0 KiB |")
	p.Scope = []byte(`{"tables": [{"schema": "a", "name": "tree", "data": "live", "rows": 70, "unanalyzed": true, "bytes": 8192}, {"schema": "a", "name": "known", "data": "live", "rows": 5}]}`)
	p.Steps[0].Estimate.Rows = 75
	look(text(), "2 tables, 0 sequences, about 75 rows and those of 1 table never analyzed,", "[about 1.0s, 75 rows and those of 1 table never analyzed,", "> 70 ", "| > 70 |")
	look(render(t, func(b *bytes.Buffer) error { return WritePlanJSON(b, p) }), `"unanalyzed": true`, `"unanalyzed": 1`)
}

// A text that follows a long label is not pressed into the columns right of it.
func TestPredictionFits80Columns(t *testing.T) {
	p, s := examplePlan(1), exampleStatus()
	p.Predictions = engine.Prediction{WriteBlock: 80 * time.Millisecond, Budget: 2 * time.Second, Why: "40ms to hold and prove + 42ms for 412 tables + 78ms for 390 sequences + 20ms to flip + 19ms for the last pass"}
	s.Predicted = &p.Predictions
	for name, text := range map[string]string{
		"plan":   render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{Width: 80}) }),
		"status": render(t, func(b *bytes.Buffer) error { return WriteStatus(b, s, PlanOptions{Width: 80}) }),
	} {
		_, text, _ = strings.Cut(text, "predicted: ")
		lines := strings.Split(text, "\n")
		at := slices.IndexFunc(lines, func(l string) bool { return strings.HasSuffix(l, "pass)") })
		if at < 1 || len(lines[1]) > 80 || strings.HasPrefix(lines[1], strings.Repeat(" ", 20)) {
			t.Errorf("%s: the prediction takes %d lines:\n%s", name, at+1, text)
		}
	}
}

func TestPlanOf500TablesFitsSomeScreens(t *testing.T) {
	p := examplePlan(500)
	for i := range 16 { // as many steps as a whole walk with people's own has, each with all it can have
		p.Steps = append(p.Steps, engine.StepPlan{ID: engine.StepID(fmt.Sprintf("step%d", i)), Title: "Do", Why: "because", Actions: p.Steps[1].Actions, Hazards: p.Steps[1].Hazards, Estimate: engine.Estimate{Seconds: 3}})
	}
	for i := range 30 {
		p.NotCarried = append(p.NotCarried, fmt.Sprintf("Thing %d is not carried.", i))
		p.Findings = append(p.Findings, engine.Finding{Code: fmt.Sprintf("PRE1%02d", i), Severity: engine.SeverityError, Text: "stops apply", Fix: "mend it"})
	}
	short := render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{Width: 80}) })
	lines := strings.Split(short, "\n")
	if len(lines) >= 200 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if n := len([]rune(l)); n > 110 {
			t.Errorf("%d columns: %s", n, l)
		}
	}
	for _, s := range p.Steps {
		if !strings.Contains(short, ". "+string(s.ID)+"  ") {
			t.Errorf("step %s is missing", s.ID)
		}
	}
	if !strings.HasPrefix(short, "Plan of erp-to-rds: NOT READY: 30 errors, 500 warnings\n") {
		t.Errorf("begins with %q", lines[0])
	}
	for _, want := range []string{"gate 500 tables", "erp.t499", "… and 470 smaller ones", "erp.log, erp.t001, erp.t002 and 497 more"} {
		if !strings.Contains(strings.ReplaceAll(render(t, func(b *bytes.Buffer) error { return WritePlan(b, examplePlan(500), PlanOptions{Width: 80}) }), "\n", " "), want) {
			t.Errorf("%q is missing", want)
		}
	}
	full := render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{Verbose: true}) })
	for i := range 500 {
		if name := fmt.Sprintf("erp.t%03d ", i); !strings.Contains(full, name) {
			t.Fatalf("%s is missing with Verbose", name)
		}
		if sql := fmt.Sprintf("BEFORE INSERT ON erp.t%03d", i); !strings.Contains(full, sql) {
			t.Fatalf("%s is missing with Verbose", sql)
		}
	}
}

func TestMarkdownKeepsToItsLimit(t *testing.T) {
	p := examplePlan(500)
	whole := render(t, func(b *bytes.Buffer) error { return WritePlanMarkdown(b, p, 0) })
	if strings.Contains(whole, "Truncated") || !strings.Contains(whole, "erp.t000") {
		t.Error("without a limit something is missing")
	}
	for _, limit := range []int{1, 512, 700, 1000, 2000, 5000, 20000, 60000, len(whole), len(whole) + 1000} {
		got := render(t, func(b *bytes.Buffer) error { return WritePlanMarkdown(b, p, limit) })
		if len(got) > max(limit, smallestMarkdown) {
			t.Errorf("limit %d: %d bytes", limit, len(got))
		}
		if !strings.HasPrefix(got, PlanMarker("erp-to-rds")+"\n") || !strings.Contains(got, "ready, with 500 warnings") {
			t.Errorf("limit %d: marker or verdict is missing in %q", limit, got[:min(300, len(got))])
		}
		if cut := len(got) < len(whole); cut != strings.Contains(got, "**Truncated.**") {
			t.Errorf("limit %d: cut %t, and the mark does not say so", limit, cut)
		}
		if open, shut := strings.Count(got, "<details>"), strings.Count(got, "</details>"); open != shut {
			t.Errorf("limit %d: %d folds opened, %d closed", limit, open, shut)
		}
		if limit >= 5000 && !strings.Contains(got, "PRE012") {
			t.Errorf("limit %d: the risks are missing", limit)
		}
	}
}

func TestHostileNamesStayText(t *testing.T) {
	p := examplePlan(1)
	evil := "x\x1b[31m`|</details><script>--> @everyone\n# h"
	p.Name, p.Findings[0].Text, p.Steps[0].Title = evil, evil, evil
	p.Steps[0].Hazards = []engine.Hazard{{Kind: engine.HazardLoss, Object: evil, Text: evil}}
	scope, err := json.Marshal(map[string]any{"tables": []map[string]any{{"schema": evil, "name": evil, "method": "stream", "data": "live"}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Scope = scope
	out := render(t, func(b *bytes.Buffer) error { return WritePlanMarkdown(b, p, 0) })
	if strings.Contains(out, "\x1b") || strings.Contains(out, "\n# h") || strings.Count(out, "-->") > strings.Count(out, "`")+1 {
		t.Errorf("markdown:\n%s", out)
	}
	if first, _, _ := strings.Cut(out, "\n"); strings.Count(first, "--") != 2 {
		t.Errorf("the marker ends early: %s", first)
	}
	for _, verbose := range []bool{false, true} {
		if s := render(t, func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{Verbose: verbose}) }); strings.Contains(s, "\x1b") || strings.Contains(s, "\n# h") {
			t.Errorf("text:\n%s", s)
		}
	}
}

func TestBrokenScopeIsAnError(t *testing.T) {
	p := examplePlan(1)
	p.Scope = []byte("{")
	for name, f := range map[string]func(b *bytes.Buffer) error{
		"text":     func(b *bytes.Buffer) error { return WritePlan(b, p, PlanOptions{}) },
		"markdown": func(b *bytes.Buffer) error { return WritePlanMarkdown(b, p, 0) },
		"json":     func(b *bytes.Buffer) error { return WritePlanJSON(b, p) },
	} {
		if err := f(&bytes.Buffer{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	full := errors.New("disk full")
	for name, err := range map[string]error{
		"plan":   WritePlan(brokenPipe{full}, examplePlan(1), PlanOptions{}),
		"status": WriteStatus(brokenPipe{full}, exampleStatus(), PlanOptions{}),
	} {
		if !errors.Is(err, full) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func exampleStatus() Status {
	pending := int64(12345)
	return Status{
		Writes: "source", Since: start, Run: "k3xq9t2b", Name: "erp-to-rds", State: "active", Started: start, Holder: "process 12 of anna on host a since 2026-11-20T02:00:00Z",
		Paused: "by bert", Lag: 1200 * time.Millisecond, LagKnown: true, Pending: &pending, Phase: engine.PhaseCopy, Step: "copy", Notes: []string{"approval \"go\" is not given"}, Next: "pgrunbook unpause --target ...",
		Steps:  []StatusStep{{ID: "schema", State: engine.StepDone, Elapsed: 3 * time.Second}, {ID: "copy", State: engine.StepFailed, Elapsed: time.Minute, Error: "no space left"}, {ID: "flip", State: engine.StepPending}},
		Tables: []StatusTable{{Name: "erp.orders", State: "loading", Rows: 100, Bytes: 5 << 20, BytesAll: 10 << 20}, {Name: "erp.ref", State: "following", Rows: 5, Bytes: 10, BytesAll: 10}, {Name: "erp.log", State: "at_freeze", BytesAll: 16 << 10}, {Name: "erp.tmp", State: "empty", BytesAll: 9}},
	}
}

// flippedStatus has all that exampleStatus has not.
func flippedStatus() Status {
	refused := int64(3)
	back := &StatusBack{Possible: true, Rows: 7, Takes: time.Second, Seconds: 1, Measured: true, Since: start, Proved: start, Why: "w", Hint: "h", Unasked: "the source was not asked"}
	return Status{
		Writes: "target", Since: start, Run: "k3xq9t2b", Name: "erp-to-rds", State: "active", Started: start, Next: "pgrunbook finish",
		Steps:     []StatusStep{{ID: "verify", State: engine.StepPending, Again: "writes went back to the source"}},
		PendingAt: start, Predicted: &engine.Prediction{WriteBlock: time.Second, Pause: time.Second, Resume: time.Second, Budget: 2 * time.Second, From: engine.Target, Measured: true, Why: "1s for 2 tables", Parts: []engine.Part{{What: "for 2 tables", Takes: time.Second}}},
		After: &StatusAfter{Old: "source", Refused: &refused, Connected: []string{"1 session of user app"}, Standbys: []string{"standby"}, Back: back}, Back: back,
	}
}

func TestGoldenStatus(t *testing.T) {
	golden(t, "status.txt", render(t, func(b *bytes.Buffer) error { return WriteStatus(b, exampleStatus(), PlanOptions{}) }))
	golden(t, "status.json", render(t, func(b *bytes.Buffer) error { return WriteStatusJSON(b, exampleStatus(), start) }))
	flipped := render(t, func(b *bytes.Buffer) error { return WriteStatus(b, flippedStatus(), PlanOptions{}) })
	if strings.Contains(flipped, "  freeze ") || !strings.Contains(flipped, "  way back predicted: writes wait in the rollback for 1s of 2s (1s for 2 tables)\n") {
		t.Errorf("after the flip:\n%s", flipped)
	}
	if !strings.Contains(flipped, "  pending            verify: to be made again, since writes went back to the source\n") {
		t.Errorf("a step that was set back:\n%s", flipped)
	}
	s := exampleStatus()
	s.Writes = "unclear"
	lines := strings.Split(strings.TrimSpace(render(t, func(b *bytes.Buffer) error { return WriteStatus(b, s, PlanOptions{}) })), "\n")
	if !strings.Contains(lines[0], "UNCLEAR") || lines[len(lines)-1] != "Next: "+s.Next {
		t.Errorf("first %q, last %q", lines[0], lines[len(lines)-1])
	}
}

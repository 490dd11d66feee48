package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps"
)

// A saved plan is refused where its runbook was changed or the run went over and back since, never where a
// flip may have to be ended.
func TestSavedPlanIsFresh(t *testing.T) {
	const text = "runbook \"r\" {}\ncutover { max_write_block = \"4s\" }\n"
	plan := func(flips int) *engine.Plan {
		return &engine.Plan{Format: 1, Name: "r", Flips: flips, Runbook: engine.RunbookPin{Path: "nowhere/r.runbook.hcl", Text: text}}
	}
	run := func(owner engine.Side, flips int, p *engine.Plan) *steps.Existing {
		return &steps.Existing{ID: "r1", Name: "r", State: "active", Plan: p, Owner: owner, Flips: flips}
	}
	other := plan(0)
	other.Name, other.Steps = "r", []engine.StepPlan{{ID: "copy"}}
	edited := strings.Replace(text, "4s", "2s", 1)
	for name, c := range map[string]struct {
		file string // beside the plan; empty is none, / a directory
		plan *engine.Plan
		run  *steps.Existing
		want string
	}{
		"another runbook of the same name":   {strings.Replace(edited, `"r"`, `"other"`, 1), plan(0), nil, ""},
		"a file that cannot be read":         {"/", plan(0), nil, ""},
		"one, with a flip to be ended":       {"/", plan(0), run("unclear", 0, plan(0)), ""},
		"new":                                {text, plan(0), nil, ""},
		"on another machine":                 {"", plan(0), nil, ""},
		"edited":                             {edited, plan(0), nil, "cutover.max_write_block changed"},
		"edited in the run":                  {edited, plan(0), run(engine.Source, 0, plan(0)), "cutover.max_write_block changed"},
		"edited, a flip to be ended":         {edited, plan(0), run("unclear", 0, plan(0)), ""},
		"edited, steps after the flip":       {edited, plan(0), run(engine.Target, 1, plan(0)), ""},
		"cut over by it":                     {text, plan(0), run(engine.Target, 1, plan(0)), ""},
		"cut over by another":                {text, plan(0), run(engine.Target, 1, other), "was cut over since"},
		"cut over and rolled back":           {text, plan(0), run(engine.Source, 2, plan(0)), "was cut over and rolled back since"},
		"planned again since":                {text, plan(2), run(engine.Source, 2, plan(0)), ""},
		"planned again, and cut over by it":  {text, plan(2), run(engine.Target, 3, plan(0)), ""},
		"rolled back twice since it was one": {text, plan(2), run(engine.Source, 4, plan(0)), "was cut over and rolled back since"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "r.runbook.hcl")
			if c.file == "/" {
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
			} else if c.file != "" {
				if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			a := newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) (string, bool) { return "", false })
			err := a.fresh(&subject{plan: c.plan, path: filepath.Join(dir, "s.plan")}, c.run)
			if c.want == "" && err == nil {
				return
			}
			if err == nil || c.want == "" || engine.ClassOf(err) != engine.ClassStale || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

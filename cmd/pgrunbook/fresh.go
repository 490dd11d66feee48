package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps"
)

// fresh refuses a saved plan that is not what its readers would approve now: its runbook was changed, or
// the run went over and back since. Where the source does not surely take writes, a command that may have to
// end a flip is not held up: it goes on with what was reviewed, and the change is said.
func (a *app) fresh(s *subject, run *steps.Existing) error {
	ends := run.Active() && run.Owner != engine.Source
	changes, path := a.runbookChanges(s.path, s.plan)
	switch {
	case len(changes) == 0:
	case ends:
		a.logger().Warn(path + " was changed since the plan was made: " + strings.Join(changes, "; ") + "; what was reviewed is applied")
	default:
		return stalePlan(path+" was changed since the plan was made: "+strings.Join(changes, "; "), path)
	}
	if !run.Active() || run.Name != s.plan.Name || s.plan.Flips >= run.Flips {
		return nil
	}
	switch {
	case run.Owner == engine.Source:
		return stalePlan(fmt.Sprintf("the run %s was cut over and rolled back since the plan was made", run.ID), path)
	case run.Owner == engine.Target && s.plan.Digest() != run.Plan.Digest():
		return stalePlan(fmt.Sprintf("the run %s was cut over since the plan was made", run.ID), path)
	}
	return nil
}

func stalePlan(why, path string) error {
	return &engine.Error{
		Class: engine.ClassStale, Op: "comparing with the plan", Err: fmt.Errorf("the plan is stale: %s", why),
		Hint: "Plan again, and have the new plan reviewed: pgrunbook plan " + path + " --out FILE",
	}
}

// runbookChanges says how the runbook differs from the one that a saved plan carries, where its file is
// at hand: at the path that it was planned from, or beside the plan. Elsewhere the plan stands alone, as it does
// where the file cannot be read, or is another runbook's: a monorepo has many of one name.
func (a *app) runbookChanges(planFile string, p *engine.Plan) (changes []string, path string) {
	path = p.Runbook.Path
	candidates := []string{path}
	if !filepath.IsAbs(path) {
		candidates = append(candidates, filepath.Join(filepath.Dir(planFile), path))
	}
	candidates = append(candidates, filepath.Join(filepath.Dir(planFile), filepath.Base(path)))
	for _, candidate := range slices.Compact(candidates) {
		text, err := runbook.ReadFile(candidate)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			a.logger().Warn("the plan cannot be compared with this file, and stands alone without it", "err", err)
		case runbook.Names(path, text, p.Name):
			return runbook.Differences(path, []byte(p.Runbook.Text), text), candidate
		}
	}
	return nil, path
}

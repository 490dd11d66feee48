package steps

import (
	"context"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/load"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// snapshotHazard is the size from which one snapshot of a table is worth a warning.
const snapshotHazard = 1 << 30

// Plan lists the tables with their method, chunks and dangers. It reads nothing but the scope.
func (s *copyStep) Plan(context.Context) (engine.StepPlan, error) {
	c := s.env.Runbook.Copy
	p := engine.StepPlan{ID: s.ID(), Phase: s.Phase(), Why: "every later change is captured already, so no snapshot is held open"}
	var tables, bulk int
	var indexes int64
	for _, t := range s.env.Scope.Tables {
		if t.Data != scope.Live {
			continue
		}
		tables++
		addRows(&p.Estimate, t)
		p.Estimate.Bytes += t.Bytes
		p.Estimate.TargetDisk += t.Bytes + t.IndexBytes
		if t.Method == scope.PgDump {
			bulk++
			p.Estimate.RunnerDisk += t.Bytes
		}
		indexes += t.IndexBytes
		p.Actions = append(p.Actions, copyAction(t))
		p.Hazards = append(p.Hazards, copyHazards(t)...)
	}
	workers := max(c.Workers, 1)
	p.Title = fmt.Sprintf("copy %d tables with %d workers, and build keys and plain indexes", tables, workers)
	p.Estimate.Seconds = (float64(p.Estimate.Bytes)/copyRate + float64(indexes)/indexRate) / float64(min(workers, 8))
	p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoad, Text: fmt.Sprintf("up to %d sessions read the source; workers, pause and limit blocks slow them down while it runs", workers)})
	if tables > 0 {
		room, hazard := deltaDisk(s.env.Runbook, s.env.Scope.Tables)
		p.Estimate.SourceDisk = room
		p.Hazards = append(p.Hazards, hazard)
	}
	if bulk > 0 {
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardDisk, Text: fmt.Sprintf("pg_dump writes the rows of %s below the temporary directory (TMPDIR) of the machine that runs apply before pg_restore reads them: up to %s, less as far as they compress", engine.Plural(bulk, "table"), runbook.FormatSize(float64(p.Estimate.RunnerDisk)))})
		p.Hazards = append(p.Hazards, engine.Hazard{Kind: engine.HazardLoad, Text: fmt.Sprintf("pg_dump holds one snapshot for all of %d tables: the source's VACUUM removes no newer dead rows meanwhile", bulk)})
	}
	return p, nil
}

// addRows counts a table's rows, where the source knows their number.
func addRows(e *engine.Estimate, t scope.Table) {
	e.Rows += t.Rows
	if t.Unanalyzed {
		e.Unanalyzed++
	}
}

func copyAction(t scope.Table) engine.Action {
	name := t.Display()
	a := engine.Action{On: engine.Source, Object: name, Why: t.Why}
	switch t.Method {
	case scope.PgDump:
		a.SQL, a.Group = "pg_dump --data-only, pg_restore", "load with pg_dump"
	case scope.External:
		a.On, a.SQL, a.Group = engine.Runner, "somebody else loads it; then pgrunbook approve "+externalApproval, "wait for somebody else's load"
	case scope.Stream:
		a.SQL, a.Group = load.Statement(t), "copy in chunks"
		if t.Chunks > 1 {
			a.Why = fmt.Sprintf("%d chunks. %s", t.Chunks, t.Why)
		}
	}
	return a
}

func copyHazards(t scope.Table) []engine.Hazard {
	name := t.Display()
	if t.Identity == scope.FullRow && t.Bytes > snapshotHazard {
		return []engine.Hazard{{
			Kind: engine.HazardLoad, Object: name,
			Text: fmt.Sprintf("a table without a key is read in one snapshot: the source's VACUUM removes no newer dead rows for the time that reading %d MiB takes, and it starts over if the runner dies", t.Bytes>>20),
		}}
	}
	if t.Method == scope.External {
		return []engine.Hazard{{Kind: engine.HazardExternal, Object: name, Text: "somebody else loads this table, from a snapshot taken after capture is installed; verification by hash proves it"}}
	}
	return nil
}

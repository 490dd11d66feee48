package steps

import (
	"log/slog"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Env is what every step kind is built from. In validate only Runbook is set; in plan, Journal is
// nil; in apply everything is there.
type Env struct {
	Runbook *runbook.Runbook
	Source  *pg.Server
	Target  *pg.Server
	Scope   *scope.Scope
	Run     scope.Run
	Journal *journal.Run
	Plan    *engine.Plan // the accepted plan; nil while planning
	Log     *slog.Logger
	Sink    engine.Sink
	// Guardian is the command line of a process that calls Guard; empty is none.
	Guardian []string

	watch *watch // of NewEnv

	AcceptDifferences string // who goes back although both sides differ, or may; empty is nobody

	withoutPoolers bool // of an abort: those that cannot be pointed back are named and left alone
}

// runAt is the run for a side's gate: it knows where writes go when that side is closed.
func (e *Env) runAt(side engine.Side) scope.Run {
	run := e.Run
	if run.Elsewhere = e.Plan.Target.Address; side == engine.Target {
		run.Elsewhere = e.Plan.Source.Address
	}
	return run
}

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
}

package steps

import (
	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// waiting reports lost attempts at a lock on a side.
func waiting(cp interface{ Emit(engine.Event) }, side engine.Side, what string) capture.OnWait {
	return func(w pg.LockWait) { cp.Emit(scope.Waiting(side, what, w)) }
}

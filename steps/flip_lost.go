package steps

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// lostFlip is a flip that the source knows, which it closed, and the journal does not. The journal is on the target: another
// server has taken that one's place, from before the flip.
type lostFlip struct{ gate.Closing }

// findLostFlip asks the source, whose gate is closed, while the journal says that the source takes writes and no flip is open.
// It gives nil where a flip on record explains the gate, or a person closed it.
func findLostFlip(ctx context.Context, source *pg.Server, owner journal.Ownership) (*lostFlip, error) {
	conn, err := source.Connect(ctx, pg.Use{Name: "closing", ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	closing, err := gate.ReadClosing(ctx, conn, string(engine.Target))
	if err != nil || closing.At.IsZero() {
		return nil, err
	}
	// A way back that is on record came after the flip that closed the source, unless that one was a later runner's. What
	// the source would be like after that way back, its own server may have lost.
	if f := owner.Flip; f != nil && f.To == engine.Source && closing.Epoch <= f.Epoch {
		return nil, nil //nolint:nilnil // see above
	}
	return &lostFlip{closing}, nil
}

func (l *lostFlip) why() string {
	return fmt.Sprintf("neither side takes writes: the source was closed at %s by the flip to %s, which the journal on the target does not know: another server is there now, a standby that lagged or a backup, without what was written since",
		l.At.Format(time.RFC3339), l.To)
}

// next begins in lower case: status puts a word before it.
func (l *lostFlip) next(target string) string {
	return fmt.Sprintf("pgrunbook rollback --without-target --check says what is lost, and without --check the source takes writes again: it has every row up to the flip, "+
		"and what came back since. Not so where the server that took over is still there: lead %s to it again", target)
}

// flipLost is the error of a target that lacks the flip: a promoted standby, or one that was put back to an earlier state,
// which has its timeline all the same. It is nil of any other. A source that does not answer is asked later.
func flipLost(ctx context.Context, env *Env) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Side != engine.Source {
		return err
	}
	for _, side := range []engine.Side{engine.Source, engine.Target} { // else one was opened by hand: status says what that means
		if at, err := gateNow(ctx, env, side); err != nil || at != gate.Closed {
			return err
		}
	}
	return closedByLostFlip(ctx, env, owner)
}

// closedByLostFlip is the error where such a flip closed the source; nil where it is none.
func closedByLostFlip(ctx context.Context, env *Env, owner journal.Ownership) error {
	lost, err := findLostFlip(ctx, env.Source, owner)
	if err != nil || lost == nil {
		return err
	}
	e := ambiguous(lost.why())
	e.Hint = lost.next(env.Target.Address()) + "."
	return e
}

package steps

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// strays counts the changes that were captured on the target before a flip. Passes, loads and whatever else of ours writes
// there are in marked sessions, which capture lets pass: somebody wrote past the gate, which may look untouched by now.
func strays(ctx context.Context, env *Env, target *pgx.Conn) (int64, error) {
	if !env.Runbook.Rollback.Enabled {
		return 0, nil
	}
	back, err := wayBack(ctx, env, target)
	if err != nil || !back {
		return 0, err
	}
	return pendingRows(ctx, target, nil)
}

func strayWords(n int64) string {
	return fmt.Sprintf("%s on the target past its gate", engine.Plural(int(n), "captured change"))
}

// unwritten has both sides compared again where somebody wrote to the target. After a way back such changes are for a person.
func (f *flipper) unwritten(ctx context.Context) error {
	if f.to != engine.Target {
		return nil
	}
	n, err := strays(ctx, f.env, f.looks.target)
	if err != nil || n == 0 {
		return err
	}
	owner, err := f.env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	if err := unstrayed(ctx, f.env, owner); err != nil {
		return err
	}
	why := strayWords(n)
	f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: why, Finding: &engine.Finding{
		Code: "CUT002", Severity: engine.SeverityWarning, Side: engine.Target, Text: why, Fix: "Find out who writes there and disables triggers for it.",
	}})
	if !f.env.Runbook.Verify.Enabled {
		err := pass.Untold(ctx, f.looks.target, engine.Target, captured(f.env))
		var told *engine.Error
		if !errors.As(err, &told) {
			return err
		}
		return &engine.Error{
			Op: "cutting over", Object: told.Object, Err: fmt.Errorf("%w: on the target %w", errOneWay, told.Err),
			Hint: "Set verify { enabled = true } in the runbook and run the same command again: changes that somebody made on the target are forgotten once both sides are equal. Or go without a way back: rollback { enabled = false }.",
		}
	}
	if err := f.compareAgain(ctx, why); err != nil {
		return err
	}
	return &engine.Error{
		Op: "cutting over", Err: fmt.Errorf("%w: %s", errMended, why),
		Hint: "Run the same command again: it compares both sides before the next attempt, and forgets these changes where they are equal.",
	}
}

// note remembers the changes that wait on the target from before the comparison: they are compared by rows.
func (s *verifyStep) note(ctx context.Context, target *pgx.Conn) error {
	n, err := strays(ctx, s.env, target)
	if err != nil || n == 0 {
		return err
	}
	if err := mayDiffer(ctx, s.env, strayWords(n)); err != nil {
		return err
	}
	s.seen, err = capture.Present(ctx, target)
	return err
}

// forget lets go of those changes once every row was found equal: the first pass back would carry them to the source.
func (s *verifyStep) forget(ctx context.Context) error {
	if s.seen == "" {
		return nil
	}
	sides, err := openSides(ctx, s.env, "verify")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	n, err := capture.ForgetSeen(ctx, sides.target, s.seen)
	if err == nil {
		s.env.Sink.Emit(engine.Event{Kind: engine.EventNote, Message: strayWords(n) + ": forgotten, since both sides are equal"})
	}
	return err
}

package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// firing says which triggers and rules of the application stand in the way of passes to a side, and
// what to do about them: what is ENABLE ALWAYS or REPLICA fires for the rows that we write, and would
// change them once more. Before the first flip the target has none, since the restore disables them;
// the source keeps its own, and the target has them from its flip on.
func firing(ctx context.Context, conn *pgx.Conn, side engine.Side, s *scope.Scope) (why, hint string, err error) {
	names, err := dump.Firing(ctx, conn, s)
	if err != nil || len(names) == 0 {
		return "", "", err
	}
	why = fmt.Sprintf("on the %s %s would fire for the rows that are carried there (ENABLE ALWAYS or REPLICA)", side, strings.Join(cut(names, 5), ", "))
	hint = "Disable them there (ALTER TABLE ... DISABLE TRIGGER ...), run the command again, and give them their mode back when that side takes writes."
	if side == engine.Target {
		hint = "Disable those there that are so on the source, too (ALTER TABLE ... DISABLE TRIGGER ...): the cutover gives them their mode back. Give others the mode that they have on the source. Then run the command again."
	}
	return why, hint, nil
}

// silent is the error of a side where something fires.
func silent(ctx context.Context, conn *pgx.Conn, side engine.Side, s *scope.Scope) error {
	why, hint, err := firing(ctx, conn, side, s)
	if err != nil || why == "" {
		return err
	}
	return &engine.Error{Op: "carrying rows", Err: errors.New(why), Hint: hint}
}

// silentTarget refuses a target whose triggers fire for what passes write: after a rollback they have the
// mode that the flip gave them.
func (e *Env) silentTarget(ctx context.Context) error {
	conn, err := e.Target.Connect(ctx, pg.Use{Name: "triggers", Marked: true, LockTimeout: lockPatience})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return silent(ctx, conn, engine.Target, e.Scope)
}

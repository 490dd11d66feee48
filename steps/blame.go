package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// eventTriggersSQL gives the enabled event triggers with their functions as a CONTEXT line has them.
const eventTriggersSQL = `
SELECT e.evtname::text, quote_ident(p.proname) FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid WHERE e.evtenabled <> 'D' ORDER BY 1`

// blamed names the event trigger that stopped a statement of ours: the server's error tells its
// function only.
func blamed(ctx context.Context, env *Env, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || !strings.Contains(pgErr.Where, "function ") {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	for _, side := range []engine.Side{engine.Source, engine.Target} {
		conn, connErr := env.Server(side).Connect(ctx, pg.Use{Name: "blame", ReadOnly: true})
		if connErr != nil {
			continue // the error that is there says more
		}
		name := blockingTrigger(ctx, conn, pgErr.Where)
		_ = conn.Close(ctx)
		if name == "" {
			continue
		}
		quoted := pgx.Identifier{name}.Sanitize()
		return &engine.Error{
			Class: engine.ClassOf(err), Op: "running a statement past the event trigger", Object: fmt.Sprintf("%s of the %s", quoted, side), Err: err,
			Hint: fmt.Sprintf("On the %s, while the run lasts: ALTER EVENT TRIGGER %s DISABLE; then run the same command again.", side, quoted),
		}
	}
	return err
}

// placed says whose server refused a statement for want of something, where one side's alone did: its own words do not
// tell, and what is to be done is done there.
func (e *Env) placed(err error) error {
	var at *pg.Server
	var seen *placedError
	if err == nil || errors.As(err, &seen) {
		return err
	}
	for _, side := range []engine.Side{engine.Source, engine.Target} {
		if srv := e.Server(side); srv != nil && srv.Wants(err) {
			if at != nil {
				return err
			}
			at = srv
		}
	}
	if at == nil {
		return err
	}
	name := fmt.Sprintf("the %s at %s", at.Side(), at.Address())
	return &engine.Error{Class: engine.ClassOf(err), Err: &placedError{name, err}, Hint: strings.Replace(engine.HintOf(err), "that server", name, 1)}
}

// placedError is an error whose server is named.
type placedError struct {
	at  string
	err error
}

func (p *placedError) Error() string { return "on " + p.at + ": " + p.err.Error() }

func (p *placedError) Unwrap() error { return p.err }

func blockingTrigger(ctx context.Context, conn *pgx.Conn, where string) (name string) {
	rows, err := conn.Query(ctx, eventTriggersSQL)
	if err != nil {
		return ""
	}
	var trigger, function string
	_, err = pgx.ForEachRow(rows, []any{&trigger, &function}, func() error {
		if strings.Contains(where, " "+function+"()") || strings.Contains(where, "."+function+"()") {
			name = trigger
		}
		return nil
	})
	if err != nil {
		return ""
	}
	return name
}

package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/preflight"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// survey reads identities, tables and findings; false means that the scope must not be used. What is
// wrong with the tables does not keep the preflight from looking at everything else. It begins again where
// a session was lost or something was dropped under it; a side that cannot be reached is said at once.
func survey(ctx context.Context, env *Env, p *engine.Plan) (usable bool, err error) {
	_ = pg.Retrier{Tries: surveyTries, Also: pg.Vanished}.Do(ctx, "looking at both sides", func(ctx context.Context) error {
		usable, err = surveyOnce(ctx, env, p)
		if errors.As(err, new(*closedSides)) {
			return nil
		}
		return err
	})
	return usable, err
}

const surveyTries = 3

func surveyOnce(ctx context.Context, env *Env, p *engine.Plan) (usable bool, err error) {
	sides, err := openForPlan(ctx, env)
	if err != nil {
		return false, err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if p.Source, err = identity(ctx, env.Source, sides.source); err != nil {
		return false, err
	}
	if p.Target, err = identity(ctx, env.Target, sides.target); err != nil {
		return false, err
	}
	resolved, findings, err := scope.Resolve(ctx, scope.Input{Source: sides.source, Runbook: env.Runbook})
	if err != nil {
		return false, err
	}
	env.Scope = resolved
	p.Findings, p.NotCarried, p.Shapes = findings, resolved.NotCarried, scope.Shapes(resolved)
	if p.Scope, err = json.Marshal(resolved); err != nil {
		return false, fmt.Errorf("writing the scope as JSON: %w", err)
	}
	usable = !p.Blocking()
	more, err := examine(ctx, env, p, sides.source, sides.target)
	if err != nil {
		return false, err
	}
	pooled, err := checkPoolers(ctx, env)
	p.Findings = slices.Concat(p.Findings, more, pooled)
	return usable && err == nil, err
}

// examine runs the preflight.
func examine(ctx context.Context, env *Env, p *engine.Plan, source, target *pgx.Conn) ([]engine.Finding, error) {
	tools, err := dump.Find(ctx, p.Source.Major, p.Target.Major)
	usesDump := func(t scope.Table) bool { return t.Method == scope.PgDump }
	facts, gatherErr := preflight.Gather(ctx, preflight.Input{
		Runbook: env.Runbook, Scope: env.Scope, Source: env.Source.ReadOnly(), Target: env.Target.ReadOnly(), SourceConn: source, TargetConn: target,
		Dump: preflight.DumpTool{
			Dir: tools.Dir, Version: tools.Version, Major: tools.Major, Warning: tools.Warning, Err: err,
			Needed: env.Runbook.Schema.Enabled || slices.ContainsFunc(env.Scope.Tables, usesDump),
		},
		DeltaRoom: deltaRoom(env.Scope.Tables),
	})
	if gatherErr != nil {
		return nil, fmt.Errorf("preflight: %w", gatherErr)
	}
	findings, err := preflight.Run(ctx, facts)
	if err != nil {
		return nil, fmt.Errorf("preflight: %w", err)
	}
	return findings, nil
}

func identity(ctx context.Context, server *pg.Server, conn *pgx.Conn) (engine.Identity, error) {
	id, err := server.Identity(ctx, conn)
	if err != nil {
		return engine.Identity{}, err
	}
	return engine.Identity{
		SystemIdentifier: id.SystemIdentifier, Database: id.Database, DatabaseOID: id.DatabaseOID,
		Major: id.Major, Version: id.Version, StartedAt: id.StartedAt, Timeline: id.Timeline, Address: id.Address,
		TLS: server.EffectiveTLS().String(),
	}, nil
}

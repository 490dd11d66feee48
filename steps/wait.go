package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// waitStep waits for a time, or until a query on one side says true.
type waitStep struct {
	person
	duration time.Duration
	polls    bool // waits for sql, not for a time
	sql      string
	on       engine.Side
	interval time.Duration
	timeout  time.Duration // 0: for ever
}

// waitStarted is the checkpoint of a wait: a new process goes on waiting, it does not begin again.
type waitStarted struct {
	At time.Time `json:"at"`
}

func decodeWait(env *Env, place Place, b runbook.StepBlock) (engine.Step, hcl.Diagnostics) {
	body := runbook.DecodeBody(b)
	s := &waitStep{
		duration: body.Duration("duration", 0),
		sql:      body.String("sql"),
		on:       engine.Side(body.Enum("on", "source", "source", "target")),
		interval: body.Duration("interval", time.Second),
		timeout:  body.Duration("timeout", 0),
	}
	s.polls = body.Has("sql")
	switch fixed := body.Has("duration"); {
	case fixed == s.polls:
		body.Errorf("duration", "Wait for what?", `Give either duration = "5m", or sql = "SELECT ..." with on = "source" or "target".`)
	case fixed && (body.Has("on") || body.Has("interval") || body.Has("timeout")):
		body.Errorf("duration", "Too many arguments for a fixed wait", "on, interval and timeout belong to sql.")
	case s.polls:
		body.Require("on")
	}
	s.person = newPerson(env, place, b, s.duration, s.sql, s.on, s.interval, s.timeout)
	return s, body.Done()
}

// Plan says what is waited for.
func (s *waitStep) Plan(context.Context) (engine.StepPlan, error) {
	if !s.polls {
		p := s.plan("wait "+s.duration.String(), "")
		p.Estimate = engine.Estimate{Seconds: s.duration.Seconds()}
		return p, nil
	}
	p := s.plan(fmt.Sprintf("wait until the %s says true: %s", s.on, firstLine(s.sql)), "", engine.Action{On: s.on, SQL: s.sql})
	if s.timeout > 0 {
		p.Why = "gives up after " + s.timeout.String()
	}
	return p, nil
}

// Apply waits. The time that an earlier process of the run waited counts, but for the timeout:
// it is this process's own.
func (s *waitStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	if s.polls {
		return s.poll(ctx, cp)
	}
	var started waitStarted
	found, err := cp.Load(ctx, &started)
	if err != nil {
		return err
	}
	if !found {
		started.At = time.Now()
		if err := cp.Save(ctx, nil, started); err != nil {
			return err
		}
	}
	rest := time.Until(started.At.Add(s.duration))
	if rest <= 0 {
		return nil
	}
	cp.Emit(engine.Event{Kind: engine.EventWaiting, Message: "waiting " + rest.Round(time.Second).String(), Reason: "wait " + s.duration.String(), ETA: rest})
	return pause(ctx, rest)
}

func (s *waitStep) poll(ctx context.Context, cp engine.Checkpoint) error {
	outer := ctx
	if s.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("it was not true within %s", s.timeout))
		defer cancel()
	}
	server := s.env.Target
	if s.on == engine.Source {
		server = s.env.Source
	}
	err := s.pollOn(ctx, server, cp)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return s.fail(outer, "waiting on the "+string(s.on)+" for", firstLine(s.sql), "See why it does not become true, and run the same command again.", err)
}

// pollOn asks on one read-only connection. The query must return one boolean first.
func (s *waitStep) pollOn(ctx context.Context, server *pg.Server, cp engine.Checkpoint) error {
	conn, err := server.Connect(ctx, pg.Use{Name: "runbook wait", ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "RESET search_path"); err != nil {
		return fmt.Errorf("resetting search_path: %w", err)
	}
	for told := false; ; {
		var yes *bool
		err := conn.QueryRow(ctx, s.sql).Scan(&yes)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if err == nil && yes != nil && *yes {
			return nil
		}
		if !told {
			told = true
			cp.Emit(engine.Event{Kind: engine.EventWaiting, Message: s.redact.String("waiting for: " + firstLine(s.sql)), Reason: s.redact.String(firstLine(s.sql))})
		}
		if err := pause(ctx, s.interval); err != nil {
			return err
		}
	}
}

package steps

import (
	"context"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Plan lists the freeze in the order of the protocol.
func (s *freezeStep) Plan(context.Context) (engine.StepPlan, error) {
	c, to, budget := s.env.Runbook.Cutover, s.from.Other(), writeBlock(s.env.Runbook, s.from)
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(),
		Title:    fmt.Sprintf("hold writes for at most %s, carry the last changes over, let them go on the %s", budget, to),
		Why:      fmt.Sprintf("one side takes writes at every instant, and the %s has every row before it is the one", to),
		Estimate: s.estimate(),
		Hazards: []engine.Hazard{{
			Kind: engine.HazardBlock,
			Text: fmt.Sprintf("writes wait for at most %s per attempt (%d attempts); queued writers without a pooler get one error, SQLSTATE %s, at the flip", budget, c.Attempts, c.ClosedError),
		}},
	}
	add := func(on engine.Side, sql, why string) {
		p.Actions = append(p.Actions, engine.Action{On: on, SQL: sql, Why: why})
	}
	add(s.from, "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '1s', lock_timeout = '250ms', statement_timeout = '1s'; ALTER SEQUENCE pgrunbook.gate_flag RESTART 1; SELECT pg_advisory_xact_lock(K)", "the hold: ended by the server itself within a second when we die")
	add(s.from, "SELECT ... FROM pg_locks", "proof that no older writer is left")
	add(to, "the final exact pass, tables reloaded at the freeze, ALTER SEQUENCE ... RESTART for "+engine.Plural(len(s.env.Scope.Sequences), "sequence"), fmt.Sprintf("the %s equals the %s", to, s.from))
	for _, p := range c.Poolers {
		add(engine.Runner, fmt.Sprintf("pooler %s: PAUSE %s before the hold; file and RELOAD in the switch; RESUME once a side is open", p.Name, p.Database), "clients wait instead of failing")
	}
	for _, sw := range s.repoint {
		add(engine.Runner, sw.Name, "repoint, while writes are held on both sides")
	}
	add(s.from, "COMMIT", fmt.Sprintf("the flip: the %s is closed", s.from))
	add(to, "COMMIT", fmt.Sprintf("the %s is open", to))
	if c.ReadOnly {
		add(s.from, "ALTER DATABASE ... SET default_transaction_read_only = on", "moves clients that look for a writable server")
	}
	if c.EndSessions {
		add(s.from, "SELECT pg_terminate_backend(...) for the application's sessions", "pools must not keep the old side")
	}
	return p, nil
}

// estimate is of one attempt: the write block and what is reloaded inside it.
func (s *freezeStep) estimate() engine.Estimate {
	e := engine.Estimate{Seconds: predict(s.env, s.from).WriteBlock.Seconds()}
	for _, t := range s.env.Scope.Tables {
		if t.Data != scope.AtFreeze {
			continue
		}
		addRows(&e, t)
		e.Bytes += t.Bytes
		if s.from == engine.Source { // on the way back they have their room already
			e.TargetDisk += t.Bytes + t.IndexBytes
		}
	}
	return e
}

package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
)

// AfterFlip is what a flip left behind.
type AfterFlip struct {
	Old       engine.Side  `json:"old_side"`
	Refused   int64        `json:"refused_writes"` // by the old side's gate
	Connected []OldClients `json:"still_connected,omitempty"`
	Back      *Back        `json:"rollback,omitempty"`      // where the target takes writes
	Proved    time.Time    `json:"last_possible,omitempty"` // the last time at which the way back was known to be possible
}

// OldClients are sessions of one application on the old side.
type OldClients struct {
	User        string    `json:"user"`
	Application string    `json:"application"`
	Address     string    `json:"address"`
	Sessions    int       `json:"sessions"`
	Newest      time.Time `json:"newest"` // when the newest connected
}

func (c OldClients) String() string {
	s := fmt.Sprintf("%d sessions of user %s", c.Sessions, c.User)
	if c.Sessions == 1 {
		s = "1 session of user " + c.User
	}
	if c.Application != "" {
		s += fmt.Sprintf(", application %q", c.Application)
	}
	if c.Address != "" {
		s += ", from " + c.Address
	}
	return s + ", the newest since " + c.Newest.UTC().Format(time.RFC3339)
}

const oldClientsSQL = `
SELECT coalesce(usename::text, ''), coalesce(application_name, ''), coalesce(host(client_addr), ''), count(*), max(backend_start)
  FROM pg_stat_activity
 WHERE datname = current_database() AND backend_type = 'client backend'
   AND pid <> pg_backend_pid() AND coalesce(application_name, '') NOT LIKE 'pgrunbook%'
 GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT 20`

// readAfter looks at the side that was left, and for the way back. What cannot be asked is said.
func (st *Status) readAfter(ctx context.Context, run *journal.Run, owner journal.Ownership, target, source *pg.Server) {
	if owner.Flip == nil || owner.Flip.Outcome != journal.FlipDone || owner.Side == journal.Unclear {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pendingLimit)
	defer cancel()
	env := &Env{Source: source, Target: target, Runbook: &runbook.Runbook{Name: run.Name}}
	err := env.adopt(run)
	if err == nil {
		_, env.Runbook.Rollback.Enabled = env.Plan.Step("reverse")
		err = refreshScope(ctx, env)
	}
	if err == nil {
		st.After, err = afterFlip(ctx, env, owner)
	}
	if err != nil {
		st.SourceNote = strings.TrimPrefix(st.SourceNote+"; the way back cannot be looked at: "+err.Error(), "; ")
	}
}

func afterFlip(ctx context.Context, env *Env, owner journal.Ownership) (*AfterFlip, error) {
	a := &AfterFlip{Old: owner.Side.Other()}
	conn, err := env.Server(a.Old).Connect(ctx, pg.Use{Name: "status", ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if a.Refused, err = gate.Refused(ctx, conn); err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, oldClientsSQL)
	if err != nil {
		return nil, fmt.Errorf("asking who is connected: %w", err)
	}
	if a.Connected, err = pgx.CollectRows(rows, pgx.RowToStructByPos[OldClients]); err != nil {
		return nil, fmt.Errorf("asking who is connected: %w", err)
	}
	if owner.Side != engine.Target {
		return a, nil
	}
	back, err := WayBack(ctx, env)
	if err != nil {
		return nil, err
	}
	a.Back = &back
	if back.Possible || !env.Runbook.Rollback.Enabled {
		return a, nil
	}
	a.Proved, err = lastReverse(ctx, conn)
	if a.Proved.Before(owner.Since) {
		a.Proved = owner.Since
	}
	return a, err
}

// lastReverse is when the last reverse pass ended: it looked at the tables before and after.
func lastReverse(ctx context.Context, conn *pgx.Conn) (at time.Time, err error) {
	err = conn.QueryRow(ctx, "SELECT w.at FROM pgrunbook.watermark w WHERE w.from_side = $1::text", string(engine.Target)).Scan(&at)
	if errors.Is(err, pgx.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return at, fmt.Errorf("reading the last reverse pass: %w", err)
	}
	return at, nil
}

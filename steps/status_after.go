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
	Old engine.Side `json:"old_side"`
	OldSide
	Standbys []string `json:"standbys_behind,omitempty"` // of the old side, without the COMMIT that closed it
	Back     *Back    `json:"rollback,omitempty"`        // where the target takes writes
}

// OldSide is what a closed side says of those who still go there.
type OldSide struct {
	Refused   *int64       `json:"refused_writes"` // by its gate; nil: it was not asked
	ReadOnly  bool         `json:"read_only"`      // new sessions are, and the server refuses their writes uncounted
	Connected []OldClients `json:"still_connected,omitempty"`
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
	if owner.Side == journal.Unclear {
		st.Back = &Back{Why: "a flip is decided and not settled: it is not clear who takes writes", Hint: "pgrunbook apply settles it."}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pendingLimit)
	defer cancel()
	env := &Env{Source: source, Target: target, Runbook: &runbook.Runbook{Name: run.Name}}
	note := func(what string, err error) {
		if err != nil {
			st.SourceNote = strings.TrimPrefix(st.SourceNote+"; "+what+": "+err.Error(), "; ")
		}
	}
	if err := env.adopt(run); err != nil {
		note("the plan cannot be read", err)
		return
	}
	note("its gate cannot be read", st.readShut(ctx, env, owner))
	if st.Shut != "" {
		return
	}
	_, env.Runbook.Rollback.Enabled = env.Plan.Step(reverseID)
	if owner.Side == engine.Source && (owner.Flip == nil || owner.Flip.Outcome != journal.FlipDone) {
		back, err := WayBack(ctx, env)
		note("the way back cannot be looked at", err)
		st.Back = &back
		return
	}
	if source != nil && st.SourceNote == "" {
		note("its tables cannot be read", refreshScope(ctx, env))
	}
	st.After = &AfterFlip{Old: owner.Side.Other()}
	if old := env.Server(st.After.Old); old != nil {
		note(fmt.Sprintf("the %s cannot be looked at", st.After.Old), st.readOld(ctx, env, old))
	}
	back, err := WayBack(ctx, env)
	if owner.Side != engine.Target {
		if note("the way back cannot be looked at", err); err == nil {
			back.Since, back.Hint = owner.Since, "pgrunbook apply cuts over again, pgrunbook abort gives the run up."
			st.Back = &back
		}
		return
	}
	if err == nil {
		back, err = back.compared(ctx, env, owner)
	}
	if err == nil {
		back, err = back.dated(ctx, env, owner)
	}
	note("the way back cannot be looked at", err)
	if err != nil {
		return
	}
	st.unlike, st.touched = back.unlike, back.touched
	if st.stray = back.stray; back.class == engine.ClassAmbiguous && !back.stray {
		st.Writes, st.Apart = journal.Unclear, back.Why
	}
	st.After.Back = &back
}

// predict says what the next freeze would cost, where there may be one: to the target, or back where that
// is possible. A source that could not be asked just now is not asked again.
func (st *Status) predict(ctx context.Context, run *journal.Run, owner journal.Ownership, target, source *pg.Server) error {
	back := st.After != nil && st.After.Back != nil && st.After.Back.Possible
	if st.Writes == journal.Unclear || st.Writes == engine.Target && !back {
		return nil
	}
	if st.SourceNote != "" {
		source = nil
	}
	env := &Env{Source: source, Target: target}
	err := env.adopt(run)
	if err == nil {
		st.Predicted, err = predictNow(ctx, env, owner)
	}
	return err
}

// readShut looks whether the side that takes writes by the journal is closed: somebody did that by hand. The
// other side is asked as well: opened beside one that takes writes, this one would be the second.
func (st *Status) readShut(ctx context.Context, env *Env, owner journal.Ownership) error {
	at, err := gateNow(ctx, env, owner.Side)
	if err != nil || at != gate.Closed {
		return err
	}
	side, other := owner.Side, owner.Side.Other()
	beside, unasked := gateNow(ctx, env, other)
	now, err := env.Journal.Owner(ctx) // a flip may have begun since
	if err != nil || now.Side != side {
		return err
	}
	st.Writes = journal.Unclear
	const reopen = "Then open it: " + gate.OpenByHand
	switch {
	case unasked != nil || beside == "":
		st.Shut = fmt.Sprintf("by the journal the %s takes writes, and its gate is closed, which no flip explains; the %s could not be asked", side, other)
		st.shutNext = fmt.Sprintf("nothing before you know who closed the %s, and why, and have seen that the %s is closed. %s", side, other, reopen)
	case beside == gate.Open, beside == gate.Absent:
		st.Shut, st.shutNext = shutBeside(side, beside)
	default:
		st.Shut = fmt.Sprintf("neither side takes writes: by the journal the %s does, and its gate is closed, which no flip explains", side)
		st.shutNext = fmt.Sprintf("nothing before you know who closed the %s, and why. %s", side, reopen)
		if side == engine.Target {
			return nil
		}
		lost, err := findLostFlip(ctx, env.Source, now)
		if err != nil || lost == nil {
			return err
		}
		st.Shut, st.shutNext = lost.why(), lost.next(env.Target.Address())
	}
	return nil
}

// shutBeside says what it means, and what to type, where the side that takes writes by the journal is closed and the
// other one is not.
func shutBeside(side engine.Side, beside gate.Position) (why, next string) {
	other := side.Other()
	if beside == gate.Absent {
		return fmt.Sprintf("the %s has no gate, so nothing refuses writes there; by the journal the %s takes them, whose gate is closed", other, side),
			fmt.Sprintf("nothing: the %s was given up, and must stay closed as long as the %s takes writes", side, other)
	}
	next = fmt.Sprintf("nothing before you know who opened the %s, and why. Never open the %s beside it: to go there, first close the %s: %s", other, side, other, gate.CloseByHand)
	if other == engine.Source {
		next += " To stay: pgrunbook abort --without-target"
	}
	return fmt.Sprintf("the %s takes writes: its gate is open; by the journal the %s does, whose gate is closed", other, side), next
}

// gateNow asks one side for its gate: "" where it is not known or cannot be reached. Who asks more of it says so.
func gateNow(ctx context.Context, env *Env, side engine.Side) (gate.Position, error) {
	srv := env.Server(side)
	if srv == nil {
		return "", nil
	}
	conn, err := srv.Connect(ctx, pg.Use{Name: "status", ReadOnly: true})
	if err != nil {
		return "", nil //nolint:nilerr // see above
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return gate.State(ctx, conn, env.Run)
}

const goneWithFinish = "the run is finished, and since then nothing captures the target's changes"

// readEnded says why there is no way back from a run that is over.
func (st *Status) readEnded() {
	st.Back = &Back{Why: goneWithFinish, Since: st.Ended}
	if st.State == journal.Aborted {
		st.Back.Done, st.Back.Why = true, "the run was given up: writes are on the source"
	}
}

// readOld reads who was refused by the old side and who is still there.
func (st *Status) readOld(ctx context.Context, env *Env, old *pg.Server) error {
	a := st.After
	conn, err := old.Connect(ctx, pg.Use{Name: "status", ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if a.OldSide, err = oldSide(ctx, conn); err != nil {
		return err
	}
	if a.Old == engine.Target { // of the source's gate, the look at the way back asks
		at, err := gate.State(ctx, conn, env.Run)
		if err != nil {
			return err
		}
		if at != gate.Closed && at != gate.Held {
			st.Writes, st.Apart = journal.Unclear, fmt.Sprintf("writes are on the source, and the target's gate is %s", at)
		}
	}
	// Where no command has come to record the position, the log's end is asked for: too many are named then.
	var position string
	if c, err := certificateOf(ctx, env.Journal); err == nil {
		position = c.ClosedAt
	}
	if a.Standbys, err = behind(ctx, conn, position, lagWait); err != nil {
		return fmt.Errorf("looking for its standbys: %w", err)
	}
	return nil
}

func oldSide(ctx context.Context, conn *pgx.Conn) (o OldSide, err error) {
	refused, err := gate.Refused(ctx, conn)
	if err != nil {
		return o, err
	}
	o.Refused = &refused
	var database, set string
	if err := conn.QueryRow(ctx, readOnlySQL).Scan(&database, &set); err != nil {
		return o, fmt.Errorf("reading the database's settings: %w", err)
	}
	o.ReadOnly = set != "" && set != "off"
	rows, err := conn.Query(ctx, oldClientsSQL)
	if err == nil {
		o.Connected, err = pgx.CollectRows(rows, pgx.RowToStructByPos[OldClients])
	}
	if err != nil {
		return o, fmt.Errorf("asking who is connected: %w", err)
	}
	return o, nil
}

// Left is what a source still holds of a run whose journal is not on the target: what finish
// leaves, or, where the target was replaced, all of it.
type Left struct {
	Run      string `json:"run"`
	Finished bool   `json:"finished"` // only the closed gate is there
	Closed   bool   `json:"closed"`
	OldSide
	Objects []Ours `json:"objects"`
	Back    Back   `json:"rollback"`
	Remove  string `json:"remove"` // the statement that takes it off, or the command
}

// NothingLeft is what a source holds that finish has opened, or that never had a run.
func NothingLeft() *Left {
	return &Left{Objects: []Ours{}, Back: Back{Why: "neither side knows of a run"}}
}

const leftOnSourceSQL = `
SELECT substr(r.remark, length('pgrunbook run ') + 1), to_regclass('pgrunbook.side') IS NULL, to_regclass('pgrunbook.gate_flag') IS NOT NULL
  FROM (SELECT coalesce(obj_description(to_regprocedure('pgrunbook.gate()'), 'pg_proc'),
                        obj_description((SELECT oid FROM pg_namespace WHERE nspname = 'pgrunbook'), 'pg_namespace'), '') AS remark) r
 WHERE r.remark LIKE 'pgrunbook run %'`

// ReadLeft looks at a source whose target has no run; nil is nothing.
func ReadLeft(ctx context.Context, source *pg.Server) (*Left, error) {
	ctx, cancel := context.WithTimeout(ctx, pendingLimit)
	defer cancel()
	conn, err := source.Connect(ctx, pg.Use{Name: "status", ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	l := &Left{}
	var gated bool
	err = conn.QueryRow(ctx, leftOnSourceSQL).Scan(&l.Run, &l.Finished, &gated)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // nothing of ours is there
	}
	if err != nil {
		return nil, fmt.Errorf("looking for what a run left: %w", err)
	}
	if gated {
		if l.OldSide, err = oldSide(ctx, conn); err != nil {
			return nil, err
		}
		if err := conn.QueryRow(ctx, "SELECT last_value <> 0 FROM pgrunbook.gate_flag").Scan(&l.Closed); err != nil {
			return nil, fmt.Errorf("reading the gate: %w", err)
		}
	}
	if l.Objects, err = listOurs(ctx, conn); err != nil {
		return nil, err
	}
	switch {
	case !l.Finished && l.Closed:
		l.Back.Why = "the target does not know of the run: what was written there and not carried back cannot be"
		l.Remove = "pgrunbook rollback --without-target, if that target is gone for good"
	case !l.Finished:
		l.Back = Back{Done: true, Why: "writes are on the source already"}
		l.Remove = "pgrunbook abort --without-target, if that target is gone for good"
	default:
		l.Back.Why = goneWithFinish
		l.Remove, err = removeGate(ctx, conn, "")
	}
	return l, err
}

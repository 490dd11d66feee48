package steps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Status is what the target knows of a run, and what the source adds when it can be asked.
type Status struct {
	At      time.Time        `json:"at"`
	Run     string           `json:"run"`
	Runbook string           `json:"runbook"`
	State   journal.RunState `json:"state"`
	Started time.Time        `json:"started"`
	Ended   time.Time        `json:"ended,omitzero"`

	Writes  engine.Side `json:"writes"` // who may write: source, target, or unclear
	Since   time.Time   `json:"writes_since"`
	Flipped bool        `json:"flipped"` // the target took over at least once

	Holder *journal.Holder `json:"holder,omitempty"` // who holds the run, or held it last
	Paused bool            `json:"paused,omitempty"`
	By     string          `json:"paused_by,omitempty"`

	Phase engine.Phase  `json:"phase,omitempty"`
	Step  engine.StepID `json:"step,omitempty"` // running, failed or next
	Steps []StepStatus  `json:"steps"`

	Tables []TableStatus `json:"tables,omitempty"`

	Passed     bool      `json:"-"`                     // there was an exact pass
	LagSeconds *float64  `json:"lag_seconds,omitempty"` // since the snapshot of the last exact pass: now, or at PendingAt
	Pending    *int64    `json:"pending,omitempty"`     // rows in the deltas: now, or at PendingAt
	PendingAt  time.Time `json:"pending_at,omitzero"`   // the source was not asked: when the runner last saw them
	SourceNote string    `json:"source_note,omitempty"` // why the source could not be asked

	Predicted engine.Prediction `json:"predicted,omitzero"`   // of the next freeze: the cutover's, or the rollback's where one is possible
	After     *AfterFlip        `json:"after_flip,omitempty"` // once a flip was made
	Back      *Back             `json:"rollback,omitempty"`   // while there is nothing to go back from
	Apart     string            `json:"apart,omitempty"`      // why two sides may take writes
	Shut      string            `json:"shut,omitempty"`       // why none does

	Held      string   `json:"held,omitempty"`    // what slows or pauses a load or its passes
	Waiting   string   `json:"waiting,omitempty"` // for what
	Blockers  []string `json:"blockers,omitempty"`
	Error     string   `json:"error,omitempty"` // of the failed step
	Type      string   `json:"type"`            // what to type next
	asks      string   // for the approval of this name, which nobody gave yet
	shutNext  string   // what to type where the side that writes by the journal is closed
	unlike    bool     // both sides differ, or may, until verify finds them equal
	touched   bool     // they may, since our triggers were touched
	stray     bool     // the closed source has changes of its own
	goingBack bool     // a rollback has begun
	wentBack  bool     // one was the last flip
	aborting  string   // the command of an abort that has begun
	inWay     string   // what to type about those who hold what is being waited for
}

// StepStatus is one step of the plan with its record.
type StepStatus struct {
	ID      engine.StepID    `json:"id"`
	Phase   engine.Phase     `json:"phase"`
	State   engine.StepState `json:"state"`
	Started time.Time        `json:"started,omitzero"`
	Ended   time.Time        `json:"ended,omitzero"`
	Error   string           `json:"error,omitempty"`
	Again   string           `json:"again,omitempty"` // pending although it was done before, since
}

// TableStatus is one table's load and whether passes follow it.
type TableStatus struct {
	Name     string  `json:"name"`
	State    string  `json:"state"` // pending, loading, scrubbed, following, at_freeze, empty
	Rows     int64   `json:"rows"`
	Bytes    int64   `json:"bytes"`
	BytesAll int64   `json:"bytes_all"` // estimate
	Done     float64 `json:"done"`      // 0 to 1
}

// recentEvents is how far status looks back for what is being waited for.
const recentEvents = 50

// ReadStatus reads the run of a target. The source may be nil; where it cannot be reached the
// status says so and is complete otherwise. Without a run it returns journal.ErrNoRun.
func ReadStatus(ctx context.Context, target, source *pg.Server) (Status, error) {
	run, err := journal.OpenReadOnly(ctx, target)
	if err != nil {
		return Status{}, err
	}
	defer run.Close(ctx)
	st := Status{At: time.Now().UTC(), Run: run.ID, Runbook: run.Name, State: run.State, Started: run.Started, Ended: run.Ended, Writes: engine.Source}
	owner, err := run.Owner(ctx)
	if err != nil {
		return st, err
	}
	st.Writes, st.Since = owner.Side, owner.Since
	st.wentBack = wentBack(owner)
	st.Flipped = owner.Flip != nil && owner.Flip.Outcome == "done"
	if h, ok, err := run.Holder(ctx); err != nil {
		return st, err
	} else if ok {
		st.Holder = &h
	}
	control, err := run.Control(ctx)
	if err != nil {
		return st, err
	}
	if control.Paused {
		st.Paused, st.By = true, control.By
	}
	for _, read := range []func(context.Context, *journal.Run) error{st.readSteps, st.readTables, st.readWaiting, st.readAsks} {
		if err := read(ctx, run); err != nil {
			return st, err
		}
	}
	if st.Paused && st.running() && !strings.Contains(st.Held+st.Waiting, pausedWords) {
		st.Waiting = "the pause is not heard yet: what is under way goes on to its next safe point"
	}
	if run.State == journal.Active {
		if err := st.readRows(ctx, run, target, source); err != nil {
			return st, err
		}
		if st.Writes == engine.Source {
			if st.unlike, err = unlikeNow(ctx, run, owner); err != nil {
				return st, err
			}
		}
		st.readAfter(ctx, run, owner, target, source)
		if err := st.predict(ctx, run, owner, target, source); err != nil {
			return st, err
		}
	} else {
		st.readEnded()
	}
	st.Type = st.next()
	return st, nil
}

func (st *Status) readSteps(ctx context.Context, run *journal.Run) error {
	records, err := run.Steps(ctx)
	if err != nil {
		return err
	}
	known := map[engine.StepID]engine.StepRecord{}
	for _, r := range records {
		known[r.ID] = r
	}
	st.aborting = abortCommand(records)
	if back := known["rollback"].State; st.Writes == engine.Target {
		st.goingBack = back == engine.StepRunning || back == engine.StepFailed
	}
	for _, p := range run.Plan.Steps {
		s := StepStatus{ID: p.ID, Phase: p.Phase, State: engine.StepPending}
		if r, ok := known[p.ID]; ok {
			s.State, s.Started, s.Ended, s.Error = r.State, r.Started, r.Ended, r.Error
			if why, is := journal.SetBack(r); is {
				s = StepStatus{ID: p.ID, Phase: p.Phase, State: engine.StepPending, Again: why}
			}
		}
		st.Steps = append(st.Steps, s)
		if st.Step == "" && s.State != engine.StepDone {
			st.Step, st.Phase, st.Error = s.ID, s.Phase, s.Error
		}
	}
	return nil
}

// readAsks finds the approval that the run stands before. One that was given needs only apply.
func (st *Status) readAsks(ctx context.Context, run *journal.Run) error {
	name, asks := strings.CutPrefix(lastTwo(st.Step), "approve.")
	if strings.Contains(st.Error, externalWait) {
		name, asks = externalApproval, true
	}
	if !asks {
		return nil
	}
	a, given, err := run.Approval(ctx, name, run.Digest)
	if err == nil && (!given || expired(st.Error, a)) {
		st.asks = name
	}
	return err
}

// expired reports whether a step failed since this very approval was too old.
func expired(failure string, a engine.Approval) bool {
	return strings.Contains(failure, fmt.Sprintf("at %s has expired", a.At.UTC().Format(time.RFC3339)))
}

func (st *Status) readTables(ctx context.Context, run *journal.Run) error {
	env := &Env{Plan: run.Plan}
	if err := env.readScope(); err != nil {
		return err
	}
	loads := map[int32]journal.TableProgress{}
	for _, step := range []engine.StepID{"copy", "copy." + engine.StepID(scope.PgDump), "copy." + engine.StepID(scope.External)} {
		progress, err := run.Progress(ctx, step)
		if err != nil {
			return err
		}
		for _, p := range progress {
			loads[p.Table] = p
		}
	}
	states, err := run.TableStates(ctx, nil)
	if err != nil {
		return err
	}
	for _, t := range env.Scope.Tables {
		st.Tables = append(st.Tables, tableStatus(t, loads[t.ID], string(states[t.ID].State)))
	}
	return nil
}

func tableStatus(t scope.Table, load journal.TableProgress, state string) TableStatus {
	ts := TableStatus{Name: t.Display(), State: state, Rows: load.Rows, Bytes: load.Bytes, BytesAll: t.Bytes}
	switch {
	case t.Data == scope.AtFreeze:
		ts.State, ts.Done = "at_freeze", 1
	case t.Data == scope.NoData:
		ts.State, ts.Done = "empty", 1
	case state == "":
		ts.State = "pending"
	case state == "following" || state == "scrubbed":
		ts.Done, ts.BytesAll = 1, ts.Bytes // the estimate has done its work
	case load.Items > 0:
		ts.Done = float64(load.DoneItems) / float64(load.Items)
	}
	return ts
}

// readWaiting finds what holds a load that runs, and the newest event that says what is waited for,
// unless something happened since.
func (st *Status) readWaiting(ctx context.Context, run *journal.Run) error {
	held, found, err := run.Marked(ctx, limitMark)
	if err != nil {
		return err
	}
	if found && held.Kind == engine.EventWaiting && held.Step == st.Step && st.running() {
		st.Held = held.Message
	}
	events, err := run.Events(ctx, recentEvents)
	if err != nil {
		return err
	}
	before := false // what was said before the pause that was asked for last, or let go of
	for i := len(events) - 1; i >= 0; i-- {
		e := events[i]
		switch {
		case e.Mark == pauseMark:
			before = true
		case before && saysPaused(e):
			continue
		case e.Step != "" && e.Step != st.Step:
			return nil
		case e.Kind == engine.EventWaiting && e.Mark == limitMark:
			continue
		case e.Kind == engine.EventWaiting:
			st.Waiting, st.Blockers, st.inWay = e.Message, e.Blockers, e.Hint
			return nil
		case e.Kind == engine.EventLag:
			continue
		default:
			return nil
		}
	}
	return nil
}

// next says what to type.
func (st *Status) next() string {
	switch {
	case st.State == journal.Finished:
		return "nothing: the run is finished"
	case st.State == journal.Aborted:
		return "pgrunbook plan: the run was aborted, a new one can begin"
	case st.Apart != "":
		return "nothing before one side is closed: " + gate.CloseByHand + " Then pgrunbook verify"
	case st.Shut != "":
		return st.shutNext
	case st.Writes == journal.Unclear:
		return "pgrunbook apply: it looks at both gates and settles who may write. If the source is gone for good: pgrunbook finish --without-source"
	case st.aborting != "" && !st.running():
		return st.aborting + ", which was begun and has not ended"
	case st.stray:
		return "pgrunbook verify: the source took writes of its own. What is missing on the target is written there by hand; then pgrunbook finish"
	case st.goingBack && !st.unlike && !st.running():
		return "pgrunbook rollback, which was begun and has not ended; or pgrunbook finish, to stay"
	case st.Paused:
		return "pgrunbook unpause"
	case st.asks == externalApproval && !st.running():
		return "the load, as apply said; then pgrunbook approve " + st.asks + " --by WHO"
	case st.asks != "" && !st.running():
		return "pgrunbook approve " + st.asks + " --by WHO"
	case st.asks != "" && st.asks != externalApproval: // the runner asks on its terminal, else it would have ended
		return fmt.Sprintf("yes, where the runner asks (process %d of %s on %s), or pgrunbook approve %s --by WHO", st.Holder.PID, st.Holder.User, st.Holder.Host, st.asks)
	case st.unlike && !st.running() && (st.Step == "" || st.Writes != engine.Target): // apply has steps after the flip still to make
		return st.nextUnlike()
	case st.running() && st.inWay != "":
		return st.inWay
	case st.running() && st.Held != "":
		return "nothing: it goes on once the limit is kept. pgrunbook set NAME=VALUE changes a limit"
	case st.running() && st.Waiting != "":
		return "nothing: it goes on by itself when that is over. pgrunbook status --watch follows it"
	case st.running():
		return "nothing: it is running. pgrunbook status --watch follows it"
	case st.wentBack:
		return "pgrunbook apply, which cuts over again; or pgrunbook abort, to give the run up"
	case st.Step == "":
		return "pgrunbook finish, once the way back is no longer needed"
	default:
		return "pgrunbook apply"
	}
}

// nextUnlike is for sides that differ, or may.
func (st *Status) nextUnlike() string {
	next := "pgrunbook verify, once what differs is mended as it says"
	if st.touched {
		next = "pgrunbook verify: where it finds both sides equal, the way back is open again"
	}
	if st.Writes == engine.Target {
		next += "; or pgrunbook finish, to stay"
	}
	return next
}

func (st *Status) running() bool { return st.Holder != nil && st.Holder.Alive }

// lastTwo gives "kind.name" of a person's step.
func lastTwo(id engine.StepID) string {
	parts := strings.SplitN(string(id), ".", 3)
	if len(parts) < 3 {
		return ""
	}
	return parts[2]
}

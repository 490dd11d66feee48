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
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// Back says whether writes can go back to the source.
type Back struct {
	Possible bool      `json:"possible"`
	Done     bool      `json:"done,omitempty"` // the source takes writes already
	Why      string    `json:"why,omitempty"`  // not
	Hint     string    `json:"hint,omitempty"`
	Since    time.Time `json:"since,omitzero"`         // not possible: the first look that saw it
	Proved   time.Time `json:"last_possible,omitzero"` // the last time at which it was known to be possible
	Unasked  string    `json:"unasked,omitempty"`      // what was not looked at
	class    engine.Class
	stray    bool          // the closed side has changes of its own
	unlike   bool          // both sides differ, or may, until verify finds them equal
	touched  bool          // they may, since our triggers were touched
	accepted string        // in what, where a person accepts it
	Pending  int64         `json:"pending"`            // rows that reverse passes have still to carry
	Estimate time.Duration `json:"estimate,omitzero"`  // how long that takes
	Measured bool          `json:"measured,omitempty"` // by passes of this run; otherwise by an assumed rate
}

// reverseRate is what a reverse pass is expected to carry, in rows a second, before one was measured.
const reverseRate = 20000

// WayBack looks at both sides. It is read-only. Without a source in env it looks at the target alone.
func WayBack(ctx context.Context, env *Env) (Back, error) {
	owner, err := env.Journal.Owner(ctx)
	if err != nil {
		return Back{}, err
	}
	if owner.Flip == nil || owner.Flip.From == engine.Source && owner.Flip.Outcome == journal.FlipUndone {
		return Back{Why: "there was no cutover yet: writes are on the source", Hint: "pgrunbook abort leaves the source as it was found."}, nil
	}
	if owner.Side == engine.Source {
		return Back{Done: true, Why: "writes are on the source already"}, nil
	}
	if !env.Runbook.Rollback.Enabled {
		return Back{Why: "the runbook has rollback { enabled = false }, so the target's changes were not captured", Since: owner.Since}, nil
	}
	b := Back{Unasked: "the source was not asked: it is not known here (PGRUNBOOK_SOURCE_URL)"}
	if env.Source != nil {
		b = sourceBack(ctx, env, owner)
	}
	if b.Why != "" {
		return b, ctx.Err()
	}
	target, err := env.Target.Connect(ctx, pg.Use{Name: "way back", Marked: true, LockTimeout: lockPatience})
	if err != nil {
		return Back{}, fmt.Errorf("looking for the way back: %w", err)
	}
	defer func() { _ = target.Close(context.WithoutCancel(ctx)) }()
	return targetBack(ctx, env, target, b)
}

// sourceBack looks whether the source is still the closed one. While a flip is open, the freeze
// itself settles it.
func sourceBack(ctx context.Context, env *Env, owner journal.Ownership) Back {
	source, err := env.Source.Connect(ctx, pg.Use{Name: "way back", Marked: true, LockTimeout: lockPatience})
	if err != nil {
		return Back{Why: err.Error(), Hint: "Once it answers again, rollback may go on. If it is gone for good: pgrunbook finish --without-source"}
	}
	defer func() { _ = source.Close(context.WithoutCancel(ctx)) }()
	if owner.Side != engine.Target {
		return Back{}
	}
	at, err := gate.State(ctx, source, env.Run)
	switch {
	case err != nil:
		return Back{Why: "the source's gate cannot be read: " + err.Error()}
	case at == gate.Held:
		return Back{Why: "a freeze holds the source's gate right now", Hint: "Look again in a second."}
	case at != gate.Closed:
		return Back{Why: openSource(ctx, source, at), Hint: "Two sides may take writes: stop one of them, then compare: pgrunbook verify", class: engine.ClassAmbiguous}
	}
	if b, err := strayWrites(ctx, source); err != nil || b.Why != "" {
		if err != nil {
			b.Why = "the source's captured changes cannot be read: " + err.Error()
		}
		return b
	}
	if lost, err := emptied(ctx, env, source, engine.Source); err != nil || len(lost) > 0 {
		if err != nil {
			return Back{Why: err.Error()}
		}
		return Back{Why: lost[0].Text + ": " + errEmptied.Error(), Hint: "Stay on the target: pgrunbook finish"}
	}
	why, hint, err := firing(ctx, source, engine.Source, env.Scope)
	if err != nil {
		return Back{Why: "the source's triggers cannot be read: " + err.Error()}
	}
	return Back{Why: why, Hint: hint}
}

// openSource says how a source came to be open although the target takes writes.
func openSource(ctx context.Context, source *pgx.Conn, at gate.Position) string {
	if c, err := gate.ReadClosing(ctx, source, string(engine.Target)); err == nil && !c.GivenUp.IsZero() {
		return fmt.Sprintf("the source was opened by rollback --without-target at %s: this target was given up", c.GivenUp.Format(time.RFC3339))
	}
	return fmt.Sprintf("the source's gate is %s: somebody opened it, or a failover lost it; the sides may have gone apart", at)
}

// targetBack looks whether every change of the target was captured, and how many wait.
func targetBack(ctx context.Context, env *Env, target *pgx.Conn, b Back) (Back, error) {
	changes, err := capture.Check(ctx, target, env.Run, captured(env))
	if err != nil {
		return Back{}, err
	}
	changes, _ = defaultsApart(changes) // as each reverse pass does
	lost, err := emptied(ctx, env, target, engine.Target)
	if err != nil {
		return Back{}, err
	}
	changes = append(changes, lost...)
	if len(changes) > 0 {
		b.Why, b.Hint = changedTarget(changes)
		return b, nil
	}
	err = noLargeObjects(ctx, env, target, engine.Target) // as each reverse pass asks
	if err == nil {
		err = pass.Untold(ctx, target, engine.Target, captured(env))
	}
	var told *engine.Error
	if errors.As(err, &told) {
		b.Why, b.Hint = told.Object+": "+told.Err.Error(), told.Hint
		return b, nil
	}
	if err != nil {
		return Back{}, err
	}
	if b.Pending, err = pendingRows(ctx, target, nil); err != nil {
		return Back{}, err
	}
	rate, err := backRate(ctx, env.Journal)
	if err != nil {
		return Back{}, err
	}
	b.Possible, b.Measured = true, rate > 0
	if rate == 0 {
		rate = reverseRate
	}
	b.Estimate = time.Duration(float64(b.Pending) / rate * float64(time.Second)).Round(100 * time.Millisecond)
	return b, nil
}

// backRate is what passes have carried in rows a second: those from the target, else those to it.
func backRate(ctx context.Context, run *journal.Run) (float64, error) {
	for _, from := range []engine.Side{engine.Target, engine.Source} {
		m, err := measure(ctx, run, from, time.Time{})
		if err != nil || m.Rate > 0 {
			return m.Rate, err
		}
	}
	return 0, nil
}

// Codes of the findings that record when the way back was first seen to be lost, and to be there
// again. Between them it may have come and gone unseen.
const (
	backLost  = "BCK001"
	backFound = "BCK002"
	backMark  = "way back"
)

// seenBack is what the newest of these findings says.
type seenBack struct {
	Flip   int64     `json:"flip"` // after which
	Lost   bool      `json:"lost"`
	Since  time.Time `json:"since,omitzero"`
	Proved time.Time `json:"proved,omitzero"`
}

// dated completes a way back with when it was last known to be possible and first seen not to be,
// and records a change. Who may not write to the journal only reads.
func (b Back) dated(ctx context.Context, env *Env, owner journal.Ownership) (Back, error) {
	if b.Done || owner.Side != engine.Target || !env.Runbook.Rollback.Enabled || b.Unasked != "" && b.Possible {
		return b, nil
	}
	flip, err := env.Journal.LastDone(ctx)
	if err != nil {
		return b, err
	}
	var last seenBack
	if found, err := env.Journal.Kept(ctx, backMark, &last); err != nil {
		return b, err
	} else if !found || last.Flip != flip { // not a time: two clocks are not compared
		last = seenBack{Flip: flip, Proved: owner.Since}
	}
	b.Since, b.Proved = last.Since, last.Proved
	if pass, err := lastReverse(ctx, env); err == nil && pass.After(b.Proved) && (!last.Lost || pass.Before(b.Since)) {
		b.Proved = pass // a look before and after it found nothing
	}
	now, err := env.Journal.Now(ctx) // as the flip and the reverse passes have it
	if err != nil {
		return b, err
	}
	object := fmt.Sprintf("flip %d", flip)
	switch {
	case b.Possible && last.Lost:
		b.note(ctx, env, engine.Finding{Code: backFound, Severity: engine.SeverityInfo, Object: object, Text: "the way back is there again"}, seenBack{Flip: flip, Proved: now})
	case !b.Possible && !last.Lost:
		b.Since = now
		b.note(ctx, env, engine.Finding{Code: backLost, Severity: engine.SeverityWarning, Object: object, Text: "the way back is not possible: " + b.Why, Fix: b.Hint},
			seenBack{Flip: flip, Lost: true, Since: now, Proved: last.Proved})
	}
	if b.Possible {
		b.Since, b.Proved = time.Time{}, time.Time{}
	}
	return b, nil
}

// note records a change of the way back, from a session of its own where env only reads.
func (b Back) note(ctx context.Context, env *Env, found engine.Finding, seen seenBack) {
	run := env.Journal
	if run.ReadOnly() {
		attached, err := journal.Attach(ctx, env.Target, "status")
		if err != nil {
			return // said all the same, and recorded by the next who may
		}
		defer attached.Close(ctx)
		run = attached
	}
	err := run.Keep(ctx, engine.Event{Kind: engine.EventDiagnosed, At: time.Now().UTC(), Level: "warn", Mark: backMark, Message: found.Text, Finding: &found}, seen)
	if err != nil && env.Log != nil {
		env.Log.Debug("recording the way back", "err", err)
	}
}

// lastReverse is when the last reverse pass ended, by the target's clock: it looked at the tables
// before and after.
func lastReverse(ctx context.Context, env *Env) (at time.Time, err error) {
	if env.Source == nil {
		return time.Time{}, errors.New("the source is not known")
	}
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "way back", ReadOnly: true})
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	c, err := gate.ReadClosing(ctx, conn, string(engine.Target))
	return c.Carried, err
}

// changedTarget says what changed on the target, and whether undoing it helps.
func changedTarget(changes []capture.Change) (why, hint string) {
	hint = "Undo that change on the target (what rewrites the table cannot be undone), or stay there: pgrunbook finish"
	names := make([]string, len(changes))
	for i, c := range changes {
		names[i] = pg.Name(c.Table.Schema, c.Table.Name) + ": " + c.Text
		if c.Rule == capture.Recopy || c.What == capture.PartitionMoved {
			hint = "Rows may have changed there without a trace, so undoing it does not bring the way back. Stay on the target: pgrunbook finish"
		}
	}
	return "the target's tables changed: " + strings.Join(names, "; "), hint
}

// refuse is the error of a way back that is not there; nil where it is, or where it was walked.
func (b Back) refuse() error {
	if b.Possible || b.Done {
		return nil
	}
	return &engine.Error{Class: b.class, Op: "rolling back", Err: errors.New(b.Why + b.when()), Hint: b.Hint}
}

// when says since when it is not possible.
func (b Back) when() string {
	if b.Since.IsZero() || b.Proved.IsZero() {
		return ""
	}
	return fmt.Sprintf(" (first seen at %s; it was possible at %s)", b.Since.UTC().Format(time.RFC3339), b.Proved.UTC().Format(time.RFC3339))
}

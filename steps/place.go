package steps

import (
	"context"
	"fmt"
	"regexp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/compare"
)

// A standby that was promoted may have lagged: on the source it lost commits that the target may
// hold, on the target rows whose keys the source has forgotten. Nothing that a run can look at says
// how much, so a change of timeline stops it until a comparison of all rows, or a person, says that
// nothing is missing.

// placeApproval is the name under which a person says that a promoted standby lost nothing.
func placeApproval(side engine.Side, timeline int64) string {
	return fmt.Sprintf("%s-timeline-%d", side, timeline)
}

var placeApprovals = regexp.MustCompile(`^(source|target)-timeline-[0-9]+$`)

// pinPlaces compares both sides' timelines with those that the run has seen, and makes every later
// session of this process insist on them.
func pinPlaces(ctx context.Context, env *Env, o OpenOptions) error {
	if !o.AnyPlace {
		if err := flipLost(ctx, env); err != nil {
			return err
		}
	}
	for _, side := range []engine.Side{engine.Source, engine.Target} {
		is, err := timelineOf(ctx, env, side)
		if err != nil {
			return err
		}
		if !o.AnyPlace {
			if err := seenPlace(ctx, env, side, is); err != nil {
				return err
			}
		}
		env.pinPlace(side, is)
	}
	return nil
}

// pinPlace makes a side's sessions insist on a timeline.
func (e *Env) pinPlace(side engine.Side, timeline int64) {
	pinned := e.Server(side).OnTimeline(timeline, func(m *pg.MovedError) error { return promoted(side, m) })
	if side == engine.Source {
		e.Source = pinned
		return
	}
	e.Target = pinned
	e.Journal.Pin(pinned)
}

// timelineOf asks a side, which must be the one that the run was begun with.
func timelineOf(ctx context.Context, env *Env, side engine.Side) (int64, error) {
	server, was := env.Server(side).OnTimeline(0, nil), env.Journal.TargetIdentity
	if side == engine.Source {
		was = env.Journal.SourceIdentity
	}
	conn, err := server.Connect(ctx, pg.Use{Name: "identity", ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	id, err := server.Identity(ctx, conn)
	if err == nil && id.SystemIdentifier != "" && was.SystemIdentifier != "" && (id.SystemIdentifier != was.SystemIdentifier || id.Database != was.Database) {
		hint := fmt.Sprintf("Name the %s that the run was begun with: %s", side, was.Address)
		if side == engine.Source {
			hint += "; if it is gone for good, after the cutover: pgrunbook finish --without-source"
		}
		return 0, engine.Errorf(engine.ClassStale, hint,
			"the %s at %s is another database than the run's: database %s of cluster %s, not %s of %s", side, server.Address(), id.Database, id.SystemIdentifier, was.Database, was.SystemIdentifier)
	}
	return id.Timeline, err
}

// seenPlace accepts the timeline that the run has seen, any before rows move, and one that a person
// has approved.
func seenPlace(ctx context.Context, env *Env, side engine.Side, is int64) error {
	seen := env.Journal.Timeline(side)
	if is == seen || is == 0 {
		return nil
	}
	if seen != 0 {
		begun, err := captureBegun(ctx, env)
		if err != nil {
			return err
		}
		_, approved, err := env.Journal.Approval(ctx, placeApproval(side, is), env.Journal.Digest)
		if err != nil {
			return err
		}
		if begun && !approved {
			return promoted(side, &pg.MovedError{Side: string(side), Address: env.Server(side).Address(), Was: seen, Is: is})
		}
		if approved {
			if err := keptSnapshots(ctx, env, side, seen, is); err != nil {
				return err
			}
		}
	}
	return env.Journal.SetTimeline(ctx, side, is)
}

// keptSnapshots makes the snapshots of a side's images (see package pass) count on its new timeline: of a server that has
// everything that its predecessor had, transaction ids say the same. Those from before another promotion stay what they are.
func keptSnapshots(ctx context.Context, env *Env, side engine.Side, was, is int64) error {
	to := env.Server(side.Other())
	conn, err := to.Connect(ctx, pg.Use{Name: "timeline", Marked: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var there bool
	err = conn.QueryRow(ctx, "SELECT to_regclass('pgrunbook.watermark') IS NOT NULL").Scan(&there)
	if err == nil && there {
		_, err = conn.Exec(ctx, "UPDATE pgrunbook.watermark SET timeline = $3 WHERE split_part(from_side, '/', 1) = $1 AND timeline = $2", string(side), was, is)
	}
	if err != nil {
		return fmt.Errorf("recording on the %s that the %s's snapshots count on timeline %d: %w", to.Side(), side, is, err)
	}
	return nil
}

// captureBegun reports whether anything was put up on the source.
func captureBegun(ctx context.Context, env *Env) (bool, error) {
	records, err := env.Journal.Steps(ctx)
	if err != nil {
		return false, err
	}
	for _, r := range records {
		if r.ID == "capture" {
			return true, nil
		}
	}
	return false, nil
}

// promoted is the error of a side that was promoted. A retry meets it again.
func promoted(side engine.Side, m *pg.MovedError) error {
	if m.Recovery {
		return &engine.Error{
			Op: "connecting to the", Object: string(side), Err: m,
			Hint: "Promote it, or point the runbook at the primary, and run the same command again.",
		}
	}
	return &engine.Error{
		Class: engine.ClassAmbiguous, Op: "trusting the", Object: string(side), Err: fmt.Errorf("%w; a standby that lagged has lost commits", m),
		Hint: fmt.Sprintf("Before the flip, pgrunbook verify compares every row: where both sides are equal, the same command goes on afterwards; where they differ, pgrunbook abort and begin anew. "+
			"If the standby is known to have lost nothing: pgrunbook approve %s --by WHO, then the same command. "+
			"After the flip, what a target lost is lost: what reverse passes had carried of it stays on the source. It goes on as it is, and pgrunbook finish takes ours off.", placeApproval(side, m.Is)),
	}
}

// placesProved records after a comparison without a difference that both sides are trusted again.
func placesProved(ctx context.Context, env *Env) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil || owner.Side != engine.Source || env.Runbook.Verify.Mode != string(compare.Hash) {
		return err
	}
	for _, side := range []engine.Side{engine.Source, engine.Target} {
		is := env.Server(side).Config().Timeline
		if is == 0 || is == env.Journal.Timeline(side) {
			continue
		}
		if err := env.Journal.SetTimeline(ctx, side, is); err != nil {
			return err
		}
		env.Sink.Emit(engine.Event{Kind: engine.EventNote, Message: fmt.Sprintf("every row was compared: the %s is trusted on timeline %d", side, is)})
	}
	return nil
}

package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/steps/internal/compare"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// verifyStep compares both sides live, table by table, after exact passes. It keeps no cursor: a
// comparison that was not finished proved nothing that a person could rely on.
type verifyStep struct {
	env  *Env
	from engine.Side // the side that takes writes
	as   bool        // compared as it is: no pass carries anything
	mode compare.Mode
	// mends accepts what was touched on the target. Only the step does: it stays to be made until its comparison has ended.
	mends bool
	again bool   // what a comparison before this one began to load again is loaded first: see sure
	seen  string // the target's snapshot from before the comparison, where captured changes wait there
}

func newVerify(env *Env) engine.Step {
	return &verifyStep{env: env, from: engine.Source, mends: true}
}

// verifyID is the step's name.
const verifyID engine.StepID = "verify"

func (s *verifyStep) ID() engine.StepID   { return verifyID }
func (s *verifyStep) Phase() engine.Phase { return engine.PhaseVerify }

// Fingerprint covers what counts as proof.
func (s *verifyStep) Fingerprint() string { return "verify/" + s.env.Runbook.Verify.Mode }

// compared gives the tables whose rows both sides hold before the freeze.
func compared(tables []scope.Table) []scope.Table {
	var out []scope.Table
	for _, t := range tables {
		if t.Data == scope.Live {
			out = append(out, t)
		}
	}
	return out
}

// Plan says how much is read.
func (s *verifyStep) Plan(context.Context) (engine.StepPlan, error) {
	tables := compared(s.env.Scope.Tables)
	c := s.env.Runbook.Verify
	var estimate engine.Estimate
	for _, t := range tables {
		addRows(&estimate, t)
		estimate.Bytes += t.Bytes
	}
	estimate.Seconds = float64(estimate.Bytes) / hashRate / float64(max(1, c.Workers))
	p := engine.StepPlan{
		ID: s.ID(), Phase: s.Phase(),
		Title:    fmt.Sprintf("compare %d tables on both sides by %s while the application writes", len(tables), c.Mode),
		Why:      "what is proved before the approval need not be proved inside the freeze",
		Estimate: estimate,
		Hazards: []engine.Hazard{{
			Kind: engine.HazardLoad,
			Text: fmt.Sprintf("reads every row once on both sides over %d sessions each; the oldest snapshot is as old as one batch", max(1, c.Workers)),
		}},
	}
	sql := "SELECT count(*), sum(hashtextextended(ROW(columns)::text, 0))"
	if c.Mode == string(compare.Count) {
		sql = "SELECT count(*)"
	}
	for _, t := range tables {
		for _, on := range []engine.Side{engine.Source, engine.Target} {
			p.Actions = append(p.Actions, engine.Action{On: on, Object: t.Display(), SQL: sql, Group: "compare"})
		}
	}
	return p, nil
}

// Apply compares everything. Differences are an error of their own class that names tables and
// keys; nothing is repaired.
func (s *verifyStep) Apply(ctx context.Context, _ engine.StepPlan, cp engine.Checkpoint) error {
	var passer *pass.Passer
	var triggers string
	s.mode = compare.Mode(s.env.Runbook.Verify.Mode)
	if !s.as {
		var err error
		if triggers, err = ourTriggers(ctx, s.env); err != nil {
			return err
		}
		if s.from == engine.Source {
			if err := s.env.silentTarget(ctx); err != nil {
				return err
			}
		}
		if s.mends {
			if err := s.wayBackRight(ctx, cp); err != nil {
				return err
			}
		}
		if err := s.doubted(ctx); err != nil {
			return err
		}
		passer = newPasser(s.env, s.env.Server(s.from), s.env.Server(s.from.Other()), cp)
		defer func() { _ = passer.Close(context.WithoutCancel(ctx)) }()
	}
	res, err := s.compare(ctx, passer, cp.Emit)
	if err != nil {
		return err
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Message: s.covered(res)})
	failpoint.Hit("verify.proved")
	if !s.as { // as they are, what was not yet carried differs too
		if err := s.remember(ctx, res, triggers); err != nil {
			return err
		}
	}
	if err := s.differences(res); err != nil {
		return err
	}
	return s.forget(ctx)
}

// wayBackRight makes the way back right, where it was made ready before, and somebody touched the target or wrote there
// since: what comes next compares the rows of that.
func (s *verifyStep) wayBackRight(ctx context.Context, cp engine.Checkpoint) error {
	sides, err := openSides(ctx, s.env, "verify")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if err := recaptureTarget(ctx, s.env, sides.target, cp); err != nil {
		return err
	}
	return s.note(ctx, sides.target)
}

// doubted compares by hash where both sides are known to differ, or may: equal numbers of rows take nothing of
// that back.
func (s *verifyStep) doubted(ctx context.Context) error {
	owner, err := s.env.Journal.Owner(ctx)
	if err != nil || s.mode == compare.Hash {
		return err
	}
	d, err := doubtful(ctx, s.env, owner)
	if err == nil && d.why != "" {
		s.mode = compare.Hash
		s.env.Sink.Emit(engine.Event{Kind: engine.EventNote, Message: "every row is compared, not numbers of rows: " + d.why})
	}
	return err
}

// passPatience is how long an exact pass before a comparison is tried against locks.
const passPatience = time.Minute

// compare compares tables, each batch after an exact pass where there is a passer.
func (s *verifyStep) compare(ctx context.Context, passer *pass.Passer, emit func(engine.Event)) (compare.Result, error) {
	done, tables, verify := 0, compared(s.env.Scope.Tables), s.env.Runbook.Verify
	cfg := compare.Config{
		From: s.env.Server(s.from), To: s.env.Server(s.from.Other()), Tables: tables,
		Mode: s.mode, Workers: verify.Workers,
		Report: func(t compare.TableResult) {
			done++
			emit(s.verified(t, done, len(tables)))
		},
		Progress: func(bytes, all int64) {
			emit(engine.Event{Kind: engine.EventProgress, Bytes: bytes, BytesAll: all, Message: "comparing"})
		},
	}
	if passer != nil {
		how := pass.FollowOptions{Options: pass.Options{Snapshot: true, Patience: passPatience}}
		if s.from == engine.Source { // the way back is opened as it is, should the target be lost
			parts := s.env.betweenParts(emit)
			how.Pieces = &pass.DrainOptions{
				Workers: s.env.Runbook.Copy.Workers, PieceRows: pieceRows, Patience: passPatience,
				Spent: func(ctx context.Context, _ int64) error { return parts(ctx) },
			}
		}
		cfg.Paused = s.env.paused
		cfg.Pass = func(ctx context.Context) (compare.Snapshot, error) {
			if err := s.env.unpaused(ctx, emit); err != nil {
				return compare.Snapshot{}, err
			}
			res, err := passer.Follow(ctx, how)
			if err != nil {
				return compare.Snapshot{}, err
			}
			return compare.Snapshot{PassID: res.PassID, Exported: res.ExportedSnapshot, Release: res.Release}, nil
		}
	}
	return compare.Run(ctx, cfg)
}

// verified reports one table.
func (s *verifyStep) verified(t compare.TableResult, done, all int) engine.Event {
	e := engine.Event{
		Kind: engine.EventVerify, Object: t.Display(), Rows: t.FromRows, Elapsed: t.Elapsed,
		Message: fmt.Sprintf("%s: %d rows equal (%d of %d tables)", t.Display(), t.FromRows, done, all),
	}
	if t.Differs {
		e.Level, e.Message = "error", s.describe(t)
	}
	return e
}

// covered says which tables were compared and found equal, and which were not compared and why.
func (s *verifyStep) covered(res compare.Result) string {
	how := "row by row"
	if s.mode == compare.Count {
		how = "by their numbers of rows"
	}
	var equal, left []string
	for _, t := range res.Tables {
		if !t.Differs {
			equal = append(equal, t.Display())
		}
	}
	for _, t := range s.env.Scope.Tables {
		switch t.Data {
		case scope.AtFreeze:
			left = append(left, t.Display()+" (reloaded inside the freeze)")
		case scope.NoData:
			left = append(left, t.Display()+" (its rows are not carried)")
		case scope.Live:
		}
	}
	text := fmt.Sprintf("%s compared %s, %d equal", engine.Plural(len(res.Tables), "table"), how, len(equal))
	if len(equal) > 0 {
		text += ": " + joinSome(equal)
	}
	if len(left) > 0 {
		text += ". Not compared: " + joinSome(left)
	}
	return text
}

// describe names a table's differences in one line.
func (s *verifyStep) describe(t compare.TableResult) string {
	var rows []string
	for _, r := range t.Rows {
		rows = append(rows, r.String())
	}
	more := ""
	if t.More {
		more = "; and more"
	}
	text := fmt.Sprintf("%s differs: %d rows on the %s, %d on the %s", t.Display(), t.FromRows, s.from, t.ToRows, s.from.Other())
	if len(rows) > 0 {
		text += " (" + strings.Join(rows, "; ") + more + ")"
	}
	return text
}

// differences turns a result into an error of class differences, or nil.
func (s *verifyStep) differences(res compare.Result) error {
	bad := res.Differing()
	if len(bad) == 0 {
		return nil
	}
	var texts []string
	for _, t := range bad {
		texts = append(texts, s.describe(t))
	}
	return &engine.Error{
		Class: engine.ClassDifferences, Op: "comparing both sides", Object: bad[0].Display(),
		Err:  fmt.Errorf("%d of %d tables differ: %s", len(bad), len(res.Tables), strings.Join(cut(texts, 10), "\n")),
		Hint: s.mending(bad),
	}
}

// mending says what helps against differences in tables.
func (s *verifyStep) mending(bad []compare.TableResult) string {
	other := s.from.Other()
	if s.as {
		return fmt.Sprintf("Nothing was carried from side to side. What only the %[1]s has may have been written there after the flip: write what is needed of it on the %[2]s by hand, then stay there.", other, s.from)
	}
	var keyed, keyless []string
	for _, t := range bad {
		name := t.Display()
		if at := slices.IndexFunc(s.env.Scope.Tables, func(c scope.Table) bool { return c.Name == t.Name }); at >= 0 && s.env.Scope.Tables[at].Identity != scope.ByKey {
			keyless = append(keyless, name)
		} else {
			keyed = append(keyed, name)
		}
	}
	texts := []string{fmt.Sprintf("Find out who wrote to the %s or changed the %s unseen.", other, s.from)}
	if len(keyed) > 0 {
		texts = append(texts, fmt.Sprintf("%s: a row that is written again on the %s (UPDATE ... SET c = c; for an extra one INSERT, then DELETE) is carried anew.", joinSome(keyed), s.from))
	}
	if len(keyless) > 0 { // an UPDATE is no change of images, or ends append_only
		texts = append(texts, fmt.Sprintf("%s, without a key: leave the %[2]s as it is, and write the %[3]s's rows on the %[3]s itself, past its gate: %[4]s.", joinSome(keyless), s.from, other, pass.PastTheGate))
	}
	if s.from == engine.Target {
		return strings.Join(append(texts, "Then compare again: pgrunbook verify; until both sides are equal do not go back."), " ")
	}
	return strings.Join(append(texts, "Then pgrunbook apply compares again; else begin again with pgrunbook abort."), " ")
}

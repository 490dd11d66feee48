package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/compare"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// comparedMark marks the comparisons of both sides that the journal keeps; the finding's code says how one ended.
const (
	comparedMark = "compared"
	foundUnlike  = "CMP001"
	foundEqual   = "CMP002"
	acceptedAs   = "CMP003" // differences that a person goes back with
	mayBeUnlike  = "CMP004" // rows may have changed on the target since
)

// compareFact is what commands decide by.
type compareFact struct {
	Writes   engine.Side  `json:"writes"` // where writes were
	Flip     int64        `json:"flip"`   // after which
	Mode     compare.Mode `json:"mode"`
	Equal    bool         `json:"equal"`
	Tables   []int32      `json:"tables,omitempty"`   // that differ
	Triggers string       `json:"triggers,omitempty"` // what our triggers on the source were before it
}

// touched is true of a fact that stands for no comparison: something was done to the target. What it was is the event's message
// alone, from which secrets are taken; a fact is stored as it is.
func (c compareFact) touched() bool { return !c.Equal && len(c.Tables) == 0 }

// remember keeps how a comparison ended, for commands that must not trust a side that is known to differ.
// triggers are those of the source from before it. Equal numbers of rows prove nothing, and take nothing back.
func (s *verifyStep) remember(ctx context.Context, res compare.Result, triggers string) error {
	bad, mode := res.Differing(), s.mode
	if len(bad) == 0 && mode != compare.Hash {
		return nil
	}
	owner, err := s.env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	flip, err := s.env.Journal.LastDone(ctx)
	if err != nil {
		return err
	}
	fact := compareFact{Writes: owner.Side, Flip: flip, Mode: mode, Equal: len(bad) == 0, Triggers: triggers}
	found, level := engine.Finding{Code: foundEqual, Severity: engine.SeverityInfo, Text: "both sides are equal"}, "info"
	if !fact.Equal {
		for _, t := range s.env.Scope.Tables {
			if slices.ContainsFunc(bad, func(b compare.TableResult) bool { return b.Name == t.Name }) {
				fact.Tables = append(fact.Tables, t.ID)
			}
		}
		level, found.Code, found.Severity, found.Text = "error", foundUnlike, engine.SeverityError, fact.text(s.env.Scope)
	}
	return s.env.Journal.Keep(ctx, engine.Event{Kind: engine.EventDiagnosed, At: time.Now().UTC(), Level: level, Mark: comparedMark, Message: found.Text, Finding: &found}, fact)
}

// mayDiffer records that rows of the target may have changed unseen. Until their comparison finds both sides equal, numbers
// of rows prove nothing, whatever dies meanwhile.
func mayDiffer(ctx context.Context, env *Env, why string) error {
	owner, err := env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	if last, err := lastCompared(ctx, env.Journal, owner); err != nil || last != nil && !last.Equal {
		return err
	}
	flip, err := env.Journal.LastDone(ctx)
	if err != nil {
		return err
	}
	found := engine.Finding{Code: mayBeUnlike, Severity: engine.SeverityWarning, Side: engine.Target, Text: "rows may have changed unseen: " + why}
	return env.Journal.Keep(ctx, engine.Event{Kind: engine.EventDiagnosed, At: time.Now().UTC(), Level: "warn", Mark: comparedMark, Message: found.Text, Finding: &found},
		compareFact{Writes: owner.Side, Flip: flip})
}

// text says in what both sides differ, or why they may.
func (c compareFact) text(s *scope.Scope) string {
	if c.touched() {
		return "rows may have changed unseen on the target since it was touched, or written past its gate"
	}
	var names []string
	for _, t := range s.Tables {
		if slices.Contains(c.Tables, t.ID) {
			names = append(names, pg.Name(t.Schema, t.Name.Name))
		}
	}
	return "the newest comparison found both sides different in " + joinSome(names)
}

// lastCompared reads the newest comparison since writes are where they are; nil is none.
func lastCompared(ctx context.Context, run *journal.Run, owner journal.Ownership) (*compareFact, error) {
	var c compareFact
	if found, err := run.Kept(ctx, comparedMark, &c); err != nil || !found || c.Writes != owner.Side {
		return nil, err
	}
	if flip, err := run.LastDone(ctx); err != nil || c.Flip != flip { // rows went on in the other direction since
		return nil, err
	}
	return &c, nil
}

// ourTriggersSQL changes with whatever somebody does to a capture trigger. The gate's are mended by every freeze.
const ourTriggersSQL = `
SELECT md5(coalesce(string_agg(concat_ws(' ', t.tgrelid, t.tgname, t.tgenabled, t.xmin), ',' ORDER BY t.oid), ''))
  FROM pg_trigger t WHERE t.tgname LIKE 'pgrunbook\_capture\_%'`

func ourTriggers(ctx context.Context, env *Env) (sum string, err error) {
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "triggers", ReadOnly: true})
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return triggerSum(ctx, conn)
}

func triggerSum(ctx context.Context, conn *pgx.Conn) (sum string, err error) {
	if err := conn.QueryRow(ctx, ourTriggersSQL).Scan(&sum); err != nil {
		return "", fmt.Errorf("reading our triggers on the source: %w", err)
	}
	return sum, nil
}

// compared takes a way back for not possible while the closed source is known to differ from the target, or
// where our triggers there were touched, so that rows may have changed unseen, and no comparison has come since.
// A person may accept either.
func (b Back) compared(ctx context.Context, env *Env, owner journal.Ownership) (Back, error) {
	if !b.Possible || owner.Side != engine.Target {
		return b, nil
	}
	d, err := doubtful(ctx, env, owner)
	if err != nil || d.why == "" {
		return b, err
	}
	b.unlike, b.touched = true, d.touched
	if env.AcceptDifferences != "" {
		b.accepted = d.why
		return b, nil
	}
	b.Possible, b.class, b.Why = false, engine.ClassDifferences, d.why
	b.Hint = "Mend the rows as verify says, then look again: pgrunbook verify."
	if d.touched {
		b.Hint = "Compare both sides: pgrunbook verify. Where they are equal, rollback may go on."
	}
	b.Hint += " To go back with what differs: pgrunbook rollback --accept-differences --by WHO. To stay: pgrunbook finish"
	return b, nil
}

// doubt is why both sides may differ.
type doubt struct {
	why     string // empty: nothing says so
	touched bool   // our triggers were, and no comparison found a difference
}

func doubtful(ctx context.Context, env *Env, owner journal.Ownership) (doubt, error) {
	last, err := lastCompared(ctx, env.Journal, owner)
	if err != nil {
		return doubt{}, err
	}
	if last != nil && !last.Equal {
		return doubt{why: last.text(env.Scope)}, nil
	}
	if env.Source == nil || owner.Side != engine.Target {
		return doubt{}, nil
	}
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "way back", Marked: true, LockTimeout: lockPatience})
	if err != nil {
		return doubt{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	touched, err := tampered(ctx, env, conn)
	if err != nil || len(touched) == 0 {
		return doubt{}, err
	}
	sum, err := triggerSum(ctx, conn)
	if err != nil || last != nil && last.Triggers == sum {
		return doubt{}, err // what changed there unseen was compared since
	}
	return doubt{touched: true, why: "our triggers on the closed source were changed, so rows may have changed there unseen: " + strings.Join(touched, "; ")}, nil
}

// acceptance is what the plan of a rollback says of differences that a person accepts.
func (b Back) acceptance(by string) engine.Finding {
	return engine.Finding{Code: acceptedAs, Severity: engine.SeverityWarning, Side: engine.Source, Text: fmt.Sprintf("%s goes back with what differs, or may: %s. The application finds the source's rows", by, b.accepted)}
}

// acceptDifferences records who goes back with which differences; the approval stays as long as the journal.
func acceptDifferences(ctx context.Context, env *Env, b Back) error {
	if b.accepted == "" {
		return nil
	}
	now, found := time.Now().UTC(), b.acceptance(env.AcceptDifferences)
	if err := env.Journal.Approve(ctx, engine.Approval{Name: "accept-differences", By: env.AcceptDifferences, At: now, PlanDigest: env.Journal.Digest}); err != nil {
		return err
	}
	return env.Journal.Record(ctx, engine.Event{Kind: engine.EventDiagnosed, At: now, Level: "warn", Message: found.Text, Finding: &found})
}

// tampered names the tables of the source whose triggers of ours are not what they were.
func tampered(ctx context.Context, env *Env, source *pgx.Conn) ([]string, error) {
	changes, err := capture.Check(ctx, source, env.Run, captured(env))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range changes {
		if c.What == capture.Tampered {
			out = append(out, c.Text)
		}
	}
	return cut(out, 5), nil
}

// unlikeNow reports whether the newest comparison found both sides different.
func unlikeNow(ctx context.Context, run *journal.Run, owner journal.Ownership) (bool, error) {
	last, err := lastCompared(ctx, run, owner)
	return last != nil && !last.Equal && !last.touched(), err
}

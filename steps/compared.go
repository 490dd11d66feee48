package steps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/compare"
)

// comparedMark marks the newest comparison of both sides in the journal; the finding's code says how it ended, its
// object where writes were, its fix what our triggers on the source were then.
const (
	comparedMark = "compared"
	foundUnlike  = "CMP001"
	foundEqual   = "CMP002"
)

// comparedWhile is between which flips a comparison says something: rows went on in the other direction since.
func comparedWhile(owner journal.Ownership) string {
	n := int64(0)
	if owner.Flip != nil {
		n = int64(owner.Flip.N)
	}
	return fmt.Sprintf("%s, flip %d", owner.Side, n)
}

// remember records how a comparison ended, for commands that must not trust a side that is known to differ.
// triggers are those of the source from before it.
func (s *verifyStep) remember(ctx context.Context, res compare.Result, triggers string) error {
	owner, err := s.env.Journal.Owner(ctx)
	if err != nil {
		return err
	}
	found := engine.Finding{Code: foundEqual, Severity: engine.SeverityInfo, Object: comparedWhile(owner), Text: "both sides are equal", Fix: triggers}
	level := "info"
	if bad := res.Differing(); len(bad) > 0 {
		names := make([]string, len(bad))
		for i, t := range bad {
			names[i] = pg.Name(t.Schema, t.Name.Name)
		}
		level, found.Code, found.Severity = "error", foundUnlike, engine.SeverityError
		found.Text = "the newest comparison found both sides different in " + joinSome(names)
	}
	return s.env.Journal.Record(ctx, engine.Event{Kind: engine.EventDiagnosed, At: time.Now().UTC(), Level: level, Mark: comparedMark, Message: found.Text, Finding: &found})
}

// lastCompared reads the newest comparison since writes are where they are; nil is none.
func lastCompared(ctx context.Context, run *journal.Run, owner journal.Ownership) (*engine.Finding, error) {
	e, found, err := run.Marked(ctx, comparedMark)
	if err != nil || !found || e.Finding == nil || e.Finding.Object != comparedWhile(owner) {
		return nil, err
	}
	return e.Finding, nil
}

// ourTriggersSQL changes with whatever somebody does to a trigger of ours.
const ourTriggersSQL = `
SELECT md5(coalesce(string_agg(concat_ws(' ', t.tgrelid, t.tgname, t.tgenabled, t.xmin), ',' ORDER BY t.oid), ''))
  FROM pg_trigger t WHERE t.tgname LIKE 'pgrunbook\_capture\_%' OR t.tgname = '!pgrunbook_gate'`

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
func (b Back) compared(ctx context.Context, env *Env, owner journal.Ownership) (Back, error) {
	if !b.Possible || owner.Side != engine.Target {
		return b, nil
	}
	last, err := lastCompared(ctx, env.Journal, owner)
	if err != nil {
		return b, err
	}
	if last != nil && last.Code == foundUnlike {
		b.Possible, b.unlike, b.class, b.Why = false, true, engine.ClassDifferences, last.Text
		b.Hint = "Mend the rows as verify says, then look again: pgrunbook verify"
		return b, nil
	}
	if env.Source == nil {
		return b, nil
	}
	conn, err := env.Source.Connect(ctx, pg.Use{Name: "way back", Marked: true, LockTimeout: lockPatience})
	if err != nil {
		return b, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	touched, err := tampered(ctx, env, conn)
	if err != nil || len(touched) == 0 {
		return b, err
	}
	sum, err := triggerSum(ctx, conn)
	if err != nil || last != nil && last.Fix == sum {
		return b, err // what changed there unseen was compared since
	}
	b.Possible, b.unlike, b.class = false, true, engine.ClassDifferences
	b.Why = "our triggers on the closed source were changed, so rows may have changed there unseen: " + strings.Join(touched, "; ")
	b.Hint = "Compare both sides: pgrunbook verify. Where they are equal, rollback may go on."
	return b, nil
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

// unlikeNow says in what the newest comparison found both sides different; empty where it did not.
func unlikeNow(ctx context.Context, run *journal.Run, owner journal.Ownership) (string, error) {
	last, err := lastCompared(ctx, run, owner)
	if err != nil || last == nil || last.Code != foundUnlike {
		return "", err
	}
	return last.Text, nil
}

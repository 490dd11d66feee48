package steps

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/pooler"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Loss is what going back without the target gives up, as far as the source can know.
type Loss struct {
	Run      string    `json:"run"`
	Target   string    `json:"target"`             // address in the runbook
	Answer   string    `json:"answer"`             // what is there instead of a target
	WentTo   string    `json:"went_to,omitempty"`  // address that the flip went to
	Closed   time.Time `json:"closed,omitzero"`    // by the source's clock
	Carried  time.Time `json:"carried,omitzero"`   // the target's commits up to here, by its clock, are on the source
	Reverse  string    `json:"reverse,omitempty"`  // the reverse pass that carried them
	AtFlip   []string  `json:"at_flip,omitempty"`  // tables that reverse passes do not carry
	Refused  int64     `json:"refused_writes"`     // by the source's gate
	Opened   time.Time `json:"opened,omitzero"`    // an earlier call opened the source
	Raised   int       `json:"sequences"`          // that are set ahead
	Margin   int64     `json:"sequence_margin"`    // by how many values
	Commands []string  `json:"commands,omitempty"` // that point the application back
	Unknown  []string  `json:"unknown"`            // what the source cannot know

	changes []pooler.Change
}

func readLoss(ctx context.Context, env *Env, conn *pgx.Conn, c gate.Closing, answer string, undo []freeze.SwitchStep, done bool) (*Loss, error) {
	l := &Loss{
		Run: env.Run.ID, Target: env.Target.Address(), Answer: answer, WentTo: c.To, Closed: c.At, Carried: c.Carried, Reverse: c.Pass,
		Raised: len(env.Scope.Sequences), Margin: env.Runbook.Cutover.SequenceMargin, changes: c.Changes,
		Unknown: []string{
			"how many rows that is, and which: only the target had them",
			"which numbers the target's sequences have handed out; where more than the margin may have left the house, set those sequences ahead by hand",
			"what the application told others of these rows: mails, payments, messages",
		},
	}
	if done {
		l.Opened = c.GivenUp
	}
	var err error
	if l.Refused, err = gate.Refused(ctx, conn); err != nil {
		return nil, err
	}
	for _, t := range env.Scope.Tables {
		if t.Data == scope.AtFreeze {
			l.AtFlip = append(l.AtFlip, t.Display())
		}
	}
	for _, u := range undo {
		l.Commands = append(l.Commands, u.Name)
	}
	for _, p := range env.Runbook.Cutover.Poolers {
		l.Commands = append(l.Commands, fmt.Sprintf("pooler %s: point %s back to the source, RELOAD, RESUME", p.Name, p.Database))
	}
	if p := env.Runbook.Cutover.Poolers; len(p) > 0 && len(c.Changes) == 0 {
		l.Unknown = append(l.Unknown, "where the poolers led before the cutover: look at their files")
	}
	return l, nil
}

// String says it to a person.
func (l *Loss) String() string {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", what, fmt.Sprintf(format, args...))
	}
	stamp := func(t time.Time) string { return t.Format(time.RFC3339) }
	line("target", "%s: %s", l.Target, l.Answer)
	if l.WentTo != "" && l.WentTo != l.Target {
		line("", "the flip went to %s: make sure that it is that one that is gone", l.WentTo)
	}
	switch {
	case !l.Opened.IsZero():
		line("source", "opened without the target at %s; what is left is done now", stamp(l.Opened))
	case l.Closed.IsZero():
		line("source", "closed, not by a flip of this run")
	default:
		line("source", "closed since %s, %d writes refused by its gate since then", stamp(l.Closed), l.Refused)
	}
	if l.Carried.IsZero() {
		line("lost", "everything that was written to the target since the flip: no reverse pass has come back")
	} else {
		line("lost", "what was committed on the target after %s, by its clock (reverse pass %s)", stamp(l.Carried), l.Reverse)
	}
	if len(l.AtFlip) > 0 {
		line("", "every change since the flip in tables that are carried in a freeze only: %s", strings.Join(l.AtFlip, ", "))
	}
	for _, u := range l.Unknown {
		line("not known", "%s", u)
	}
	for _, c := range l.Commands {
		line("first", "%s", c)
	}
	line("then", "the source takes writes; %d sequences are set %d values ahead", l.Raised, l.Margin)
	return b.String()
}

// targetLook bounds the look for a target that may be gone.
const targetLook = 30 * time.Second

// targetGone makes sure that no application can write to the target: nothing answers at its
// address, or its gate is closed and kept so until release. Two writable sides are worse than none,
// so everything else is an error.
func targetGone(ctx context.Context, env *Env) (answer string, release func(), err error) {
	bounded, cancel := context.WithTimeout(ctx, targetLook)
	defer cancel()
	conn, err := env.Target.Connect(bounded, pg.Use{Name: "rollback", LockTimeout: lockPatience})
	if ctx.Err() != nil {
		return "", nil, context.Cause(ctx)
	}
	if err != nil {
		if !unreachable(err) {
			return "", nil, stillThere(fmt.Errorf("something answers at its address: %w", err), "Find out what answers there; stop it, or mend it and use it.")
		}
		return "no answer: " + err.Error(), func() {}, nil
	}
	keep, err := closedTarget(bounded, env, conn)
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return "", nil, err
	}
	return "it answers, and is closed", func() { keep(); _ = conn.Close(context.WithoutCancel(ctx)) }, nil
}

// closedTarget takes the key of a target that answers; one that is not this run's, or not closed,
// is an error.
func closedTarget(ctx context.Context, env *Env, conn *pgx.Conn) (release func(), err error) {
	var standby bool
	if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		return nil, err
	}
	if standby {
		return nil, stillThere(errors.New("a standby answers at its address"), "Promote it and go on with it: nothing is lost then but what it lags.")
	}
	run, err := capture.RunOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	at, err := gate.State(ctx, conn, env.Run)
	if err != nil {
		return nil, err
	}
	if run.ID != env.Run.ID || at == gate.Absent {
		return nil, stillThere(errors.New("a database that has nothing of this run answers at its address, and takes writes"), "Stop it, or keep applications away from it, before the source is opened.")
	}
	release, closed, err := gate.KeepClosed(ctx, conn, env.Run.GateKey)
	if err != nil {
		return nil, err
	}
	if !closed {
		return nil, stillThere(errors.New("it answers and takes writes"), "Nothing need be lost: pgrunbook rollback")
	}
	return release, nil
}

func stillThere(err error, hint string) error {
	return &engine.Error{Op: "giving up the", Object: "target", Err: err, Hint: hint}
}

// unreachable tells a server that is not there (no route, no name, nobody listening, silence, a
// proxy without a server behind it, the database dropped) from one that answers and refuses us.
func unreachable(err error) bool {
	if state := pg.SQLState(err); state != "" {
		return state == "3D000" // invalid_catalog_name: there is no such database any more
	}
	var netErr net.Error
	return errors.As(err, &netErr) || pg.IsConnLost(err) || errors.Is(err, context.DeadlineExceeded)
}

package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
)

// Certificate is the record of the latest freeze.
type Certificate struct {
	freeze.Certificate
	// ByAnother: the runner died between the two COMMITs, and its guardian or another command ended
	// the flip. Its end is then the one in the journal, by the target's clock.
	ByAnother bool `json:"ended_by_another_process,omitempty"`
}

// ReadCertificate reads the certificate of the target's latest flip.
func ReadCertificate(ctx context.Context, target *pg.Server) (Certificate, error) {
	var c Certificate
	run, err := journal.OpenReadOnly(ctx, target)
	if err != nil {
		return c, err
	}
	defer run.Close(ctx)
	return certificateOf(ctx, run)
}

func certificateOf(ctx context.Context, run *journal.Run) (c Certificate, err error) {
	flip, err := run.Certified(ctx)
	if err != nil {
		return c, err
	}
	if flip == nil {
		return c, &engine.Error{Op: "reading the freeze certificate", Err: errors.New("there is none: no flip was made"), Hint: "pgrunbook status says who takes writes."}
	}
	if err := json.Unmarshal(flip.Certificate, &c); err != nil {
		return c, fmt.Errorf("reading the freeze certificate: %w", err)
	}
	if c.Flipped.IsZero() { // each part by one clock: two are not compared
		c.ByAnother, c.Flipped, c.Blocked = true, flip.Settled, c.Decided+flip.Settled.Sub(flip.Decided)
	}
	return c, nil
}

// MarshalJSON gives durations in seconds, as all that is printed for machines has them. The fields of
// the same names outside hide those of the journal's record.
func (c Certificate) MarshalJSON() ([]byte, error) {
	type drained struct {
		freeze.Blocker
		Age   float64 `json:"age_seconds,omitempty"`
		NoAge any     `json:"age,omitempty"`
	}
	out := struct {
		freeze.Certificate
		ByAnother bool       `json:"ended_by_another_process,omitempty"`
		Decided   float64    `json:"decided_seconds"`
		NoDecided any        `json:"decided,omitempty"`
		Blocked   float64    `json:"write_block_seconds"`
		Budget    float64    `json:"budget_seconds"`
		Drain     float64    `json:"drain_seconds"`
		Drained   []drained  `json:"drained"`
		Marks     []markLine `json:"marks"`
		NoBlocked any        `json:"write_block,omitempty"`
		NoBudget  any        `json:"budget,omitempty"`
		NoDrain   any        `json:"drain,omitempty"`
	}{Certificate: c.Certificate, ByAnother: c.ByAnother, Decided: c.Decided.Seconds(), Blocked: c.Blocked.Seconds(), Budget: c.Budget.Seconds(), Drain: c.Drain.Seconds(), Drained: []drained{}, Marks: markLines(c.Marks)}
	for _, b := range c.Drained {
		out.Drained = append(out.Drained, drained{Blocker: b, Age: b.Age.Seconds()})
	}
	return json.Marshal(out)
}

type markLine struct {
	Name  string  `json:"name"`
	After float64 `json:"after_seconds"`
}

func markLines(marks []freeze.Mark) []markLine {
	out := make([]markLine, 0, len(marks))
	for _, m := range marks {
		out = append(out, markLine{m.Name, m.After.Seconds()})
	}
	return out
}

// String is the certificate for people.
func (c Certificate) String() string {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", what, fmt.Sprintf(format, args...))
	}
	ms := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
	line("flip", "from %s to %s, epoch %d, attempt %d", c.From, c.To, c.Epoch, c.Attempt)
	line("began", "%s", c.Began.UTC().Format(time.RFC3339Nano))
	if c.Paused > 0 {
		line("poolers", "their clients waited %s before that: PAUSE, then connecting", ms(c.Paused))
	}
	ended := ""
	if c.ByAnother {
		ended = ", by the target's clock, by another process, since this one died between the two COMMITs"
	}
	line("flipped", "%s%s", c.Flipped.UTC().Format(time.RFC3339Nano), ended)
	line("write block", "%s of %s", ms(c.Blocked), c.Budget)
	line("drain", "%s until the gate was held, for %d writers in flight", ms(c.Drain), len(c.Drained))
	for _, d := range c.Drained {
		line("  drained", "%s", d)
	}
	line("proof", "%s (look %d)", c.Proof.Text, c.Proof.Looks)
	line("final pass", "%s, %d rows", c.Pass.ID, c.Pass.Rows)
	line("position", "snapshot %s of the %s, at %s by its clock", c.Pass.Position, c.From, c.Pass.At.UTC().Format(time.RFC3339Nano))
	if c.ClosedAt != "" {
		line("closed", "by position %s of the %s's log: a standby that has it has the COMMIT that closed it", c.ClosedAt, c.From)
	}
	line("left over", "%d changes", c.Pending)
	line("gated", "%d tables", c.Tables)
	line("sequences", "%d", c.Sequences)
	line("compared", "%s", c.Compared)
	for _, s := range c.Ended {
		line("ended", "%s", s)
	}
	last := time.Duration(0)
	for _, m := range c.Marks {
		line("  "+m.Name, "%s", ms(m.After-last))
		last = m.After
	}
	return b.String()
}

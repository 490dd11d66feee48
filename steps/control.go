package steps

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// SetControl changes the switches of the target's active run and gives them back.
func SetControl(ctx context.Context, target *pg.Server, by string, change func(*journal.Control)) (journal.Control, error) {
	run, err := journal.Attach(ctx, target, "control")
	if err != nil {
		return journal.Control{}, err
	}
	defer run.Close(ctx)
	return run.SetControl(ctx, by, change)
}

// Tunable is one of the values that may be set while a run works.
type Tunable struct {
	Name    string
	Value   string // what holds now
	Runbook string // what the runbook says, where something else was set
}

// noLimit is what stands for a limit that neither the runbook nor anybody has set.
const noLimit = "none"

// Tunables reads what holds in the target's active run, and who changed the run's switches last: nobody where
// that is empty.
func Tunables(ctx context.Context, target *pg.Server) (list []Tunable, last journal.Control, err error) {
	run, err := journal.OpenReadOnly(ctx, target)
	if err != nil {
		return nil, last, err
	}
	defer run.Close(ctx)
	if run.State != journal.Active {
		return nil, last, ErrNoRun
	}
	if last, err = run.Control(ctx); err != nil {
		return nil, last, err
	}
	rb, diags := ParsePlan(run.Plan, runbook.Options{Validate: true})
	if diags.HasErrors() {
		return nil, last, fmt.Errorf("reading the run's runbook: %w", diags)
	}
	set := ""
	if last.Workers > 0 {
		set = strconv.Itoa(last.Workers)
	}
	list = append(list, tunable("workers", strconv.Itoa(rb.Copy.Workers), set))
	for _, kind := range runbook.LimitKinds() {
		var written []string
		for _, l := range rb.Limits {
			if l.Kind == kind {
				written = append(written, l.Max+" ("+l.Then+")")
			}
		}
		said := strings.Join(written, ", ")
		if said == "" {
			said = noLimit
		}
		list = append(list, tunable(kind, said, last.Settings[kind]))
	}
	return list, last, nil
}

func tunable(name, written, set string) Tunable {
	if set == "" {
		return Tunable{Name: name, Value: written}
	}
	return Tunable{Name: name, Value: set, Runbook: written}
}

const (
	// pauseMark is the mark of the events that say that somebody paused a run, or let it go on.
	pauseMark = "pause"
	// pausedWords begin what a runner says that has heard of a pause.
	pausedWords = "paused by "
	// heardWithin is how long pause waits for that: a runner looks every second, and stores its events as often.
	heardWithin = 4 * time.Second
)

// Paused is what became of a pause, or of its end.
type Paused struct {
	Was    bool // it was paused before
	By     string
	Asked  time.Time
	Holder *journal.Holder // of the run; nil where no command works on it
	Step   engine.StepID   // that it is at
	Heard  bool            // the runner said that it has heard of it
}

// Pause makes the runner of the target's active run stop at its next safe point, or go on. It waits a moment
// for the runner to hear of a pause.
func Pause(ctx context.Context, target *pg.Server, by string, paused bool) (p Paused, err error) {
	run, err := journal.Attach(ctx, target, "control")
	if err != nil {
		return p, err
	}
	defer run.Close(ctx)
	h, ok, err := run.Holder(ctx)
	if err != nil {
		return p, err
	}
	if ok && h.Alive {
		p.Holder = &h
	}
	c, err := run.Control(ctx)
	if err != nil {
		return p, err
	}
	if p.Was = c.Paused; p.Was != paused {
		said := "let go on by "
		if paused {
			said = "pause asked for by "
		}
		// First, so that what the runner says of the pause comes after it.
		if err := run.Record(ctx, engine.Event{Kind: engine.EventNote, At: time.Now().UTC(), Mark: pauseMark, Message: said + by}); err != nil {
			return p, err
		}
		if c, err = run.SetControl(ctx, by, func(c *journal.Control) { c.Paused = paused }); err != nil {
			return p, err
		}
	}
	p.By, p.Asked = c.By, c.At
	for end := time.Now().Add(heardWithin); paused && p.Holder != nil && !p.Heard && time.Now().Before(end); {
		if err := pause(ctx, heardWithin/20); err != nil {
			return p, err
		}
		if p.Heard, p.Step, err = heard(ctx, run); err != nil {
			return p, err
		}
	}
	return p, nil
}

func saysPaused(e engine.Event) bool {
	return e.Kind == engine.EventWaiting && strings.Contains(e.Reason, pausedWords)
}

// heard reports whether the run's runner has said that it heard of the pause that was asked for last, and at
// which step it is.
func heard(ctx context.Context, run *journal.Run) (yes bool, at engine.StepID, err error) {
	events, err := run.Events(ctx, recentEvents)
	before := false
	for i := len(events) - 1; err == nil && i >= 0 && !(before && at != ""); i-- {
		e := events[i]
		if at == "" {
			at = e.Step
		}
		before = before || e.Mark == pauseMark
		if !before && saysPaused(e) {
			return true, e.Step, nil
		}
	}
	return false, at, err
}

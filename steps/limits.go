package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/load"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

const (
	limitsEvery = time.Second
	saidAgain   = time.Minute // what holds for long is said again
	// limitMark is the mark of every event that says what holds a load, or that nothing does any more.
	limitMark = "limit"
)

// allowance is what people and limits allow at one moment.
type allowance struct {
	workers    int
	rate       float64 // bytes per second, 0 is no limit
	load       bool    // the load pauses
	passes     bool    // passes pause
	slowPasses bool
}

// limits holds what people and the runbook's limit blocks allow while rows are copied and caught
// up. It measures on a session of its own.
type limits struct {
	env     *Env
	cp      engine.Checkpoint
	cancel  context.CancelCauseFunc
	done    chan struct{}
	rate    *load.Rate
	measure measurer
	values  map[string]float64 // of every limit, as measured last

	mu    sync.Mutex
	now   allowance
	said  string // what was reported last, without figures
	told  time.Time
	taken taken
}

// watchLimits begins to measure. The context that it returns ends with the cause when a limit says
// stop.
func watchLimits(ctx context.Context, env *Env, cp engine.Checkpoint) (context.Context, *limits, error) {
	conn, err := env.Source.Connect(ctx, limitsSession)
	if err != nil {
		return ctx, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	l := &limits{env: env, cp: cp, cancel: cancel, done: make(chan struct{}), rate: load.NewRate(0), values: map[string]float64{}}
	l.measure = measurer{conn: conn, to: env.Target, rate: l.rate}
	err = l.look(ctx)
	if err = cmp.Or(context.Cause(ctx), err); err != nil { // a limit that says stop at once
		cancel(err)
		l.measure.close()
		return ctx, nil, err
	}
	go l.watch(ctx)
	return ctx, l, nil
}

var limitsSession = pg.Use{Name: "limits", Marked: true, ReadOnly: true}

func (l *limits) close() {
	l.cancel(nil)
	<-l.done
	l.measure.close()
}

// control is for a load.
func (l *limits) control() load.Control {
	l.mu.Lock()
	defer l.mu.Unlock()
	return load.Control{Workers: l.now.workers, Paused: l.now.load}
}

// passes is for passes. The size of the deltas never stops them: only they make it smaller.
func (l *limits) passes() pass.Control {
	l.mu.Lock()
	defer l.mu.Unlock()
	return pass.Control{Workers: l.now.workers, Paused: l.now.passes, Slow: l.now.slowPasses}
}

func (l *limits) watch(ctx context.Context) {
	defer close(l.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(limitsEvery):
		}
		if l.measure.conn.IsClosed() {
			if conn, err := l.env.Source.Connect(ctx, limitsSession); err == nil {
				l.measure.conn, l.measure.deltas = conn, deltaGauge{} // it may be another server
			}
		}
		// The load's own sessions find a lost server.
		if err := l.look(ctx); err != nil && ctx.Err() == nil {
			l.env.Log.Debug("looking at limits", "err", err)
		}
	}
}

// look asks people's switches and measures every limit. What cannot be measured stays as it was
// measured last; what people said holds all the same.
func (l *limits) look(ctx context.Context) error {
	c, err := l.env.Journal.Control(ctx)
	if err != nil {
		return err
	}
	next := allowance{workers: l.env.Runbook.Copy.Workers, load: c.Paused, passes: c.Paused}
	if c.Workers > 0 {
		next.workers = c.Workers
	}
	var why reasons
	if c.Paused {
		why.add(pausedWords+c.By, "")
	}
	var errs []error
	for _, limit := range inForce(l.env.Runbook.Limits, c.Settings) {
		if limit.Kind == limitRate && limit.Then == "slow" {
			next.rate = limit.Value
			continue
		}
		value, err := l.measure.value(ctx, limit)
		if err == nil {
			l.values[limit.Kind+limit.Then] = value
		}
		errs = append(errs, err)
		if value = l.values[limit.Kind+limit.Then]; value > limit.Value {
			l.over(&next, &why, limit, value)
		}
	}
	l.rate.Set(next.rate)
	l.set(next, why)
	return errors.Join(errs...)
}

// over puts down what a limit that is exceeded asks for.
func (l *limits) over(next *allowance, why *reasons, limit runbook.Limit, value float64) {
	deltas := limit.Kind == limitDelta
	if deltas && limit.Then != "stop" && !l.shrinks(limit) { // only passes shrink the deltas: nothing may wait that they wait for
		why.add(fmt.Sprintf("limit delta_size is over %s: only going on shrinks the deltas", limit.Max), limitText(limit.Kind, value))
		return
	}
	why.add(fmt.Sprintf("limit %s is over %s: %s", limit.Kind, limit.Max, limit.Then), limitText(limit.Kind, value))
	switch limit.Then {
	case "slow":
		next.workers = max(next.workers/2, 1)
		next.slowPasses = next.slowPasses || !deltas
	case "pause":
		next.load = true
		next.passes = next.passes || !deltas
	case "stop":
		l.cancel(overLimit(limit, value))
	}
}

// reasons are what holds a load, in words; figures change with every look and are left out where
// two states are compared.
type reasons struct{ texts, figures []string }

func (r *reasons) add(text, figure string) {
	r.texts, r.figures = append(r.texts, text), append(r.figures, figure)
}

func (r *reasons) key() string { return strings.Join(r.texts, "; ") }

func (r *reasons) String() string {
	out := slices.Clone(r.texts)
	for i, f := range r.figures {
		if f != "" {
			out[i] += " (it is " + f + ")"
		}
	}
	return strings.Join(out, "; ")
}

func overLimit(limit runbook.Limit, value float64) error {
	hint := "Wait until it has fallen, or raise the limit (in the runbook, or pgrunbook set " + limit.Kind + "=VALUE); the same command goes on where this one stopped."
	if limit.Kind == limitDelta { // capture goes on, and nothing makes passes now
		hint = fmt.Sprintf("Only passes make it smaller, and they need the run to go on. Raise the limit: pgrunbook set %[1]s=%[2]s (or in the runbook; %[3]s is none), then run the same command again: it goes on where this one stopped. Afterwards pgrunbook set %[1]s=off is the runbook's again.",
			limit.Kind, runbook.FormatSize(2*value), Unlimited)
	}
	return &engine.Error{
		Op: "holding limit", Object: limit.Kind, Err: fmt.Errorf("it is %s, over %s", limitText(limit.Kind, value), limit.Max),
		Hint: hint,
	}
}

func (l *limits) set(next allowance, why reasons) {
	said := why.key()
	l.mu.Lock()
	changed := said != l.said
	again := said != "" && time.Since(l.told) >= saidAgain
	l.now, l.said = next, said
	if changed || again {
		l.told = time.Now()
	}
	l.mu.Unlock()
	switch {
	case !changed && !again:
	case said == "":
		l.cp.Emit(engine.Event{Kind: engine.EventNote, Mark: limitMark, Message: "nothing slows it down any more"})
	default:
		l.cp.Emit(engine.Event{Kind: engine.EventWaiting, Mark: limitMark, Reason: said, Message: why.String()})
	}
}

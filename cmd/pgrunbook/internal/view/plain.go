package view

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// A progress line comes at most once a second, and at least every half minute while a step runs.
const (
	plainFastest = time.Second
	plainSlowest = 30 * time.Second
)

// plain writes lines through a log handler.
type plain struct {
	o       Options
	handler slog.Handler
	model   model
	every   time.Duration
	last    time.Time // of the last line
	lastLag time.Time
	lag     *engine.Event // the latest that was held back
	lastEq  time.Time     // of the last table that was found equal
}

func newPlain(o Options, lo LogOptions) *plain {
	p := &plain{o: o, every: max(plainFastest, min(plainSlowest, perSecond(o.FPS, 0.1)))}
	p.handler = o.NewHandler(writerFunc(p.write), lo)
	return p
}

func (p *plain) write(b []byte) { _, _ = p.o.Stderr.Write(b) }

func (p *plain) event(e engine.Event, now time.Time) {
	p.model.event(e, now)
	switch e.Kind {
	case engine.EventProgress, engine.EventTable:
		p.progress(now, p.every)
		return
	case engine.EventLag:
		if p.lag = nil; now.Sub(p.lastLag) < p.every {
			p.lag = &e
			return
		}
		p.lastLag = now
	case engine.EventStepDone: // with where it stands, not where it stood some seconds ago
		if p.lag != nil && p.lag.Step == e.Step {
			p.lag.At = e.At // lines stay in the order of time
			logEvent(p.handler, *p.lag)
		}
		p.lag = nil
	case engine.EventVerify: // equal tables come by the hundred; one that differs is always named
		if levelOf(e) == slog.LevelInfo && !p.o.Verbose {
			if now.Sub(p.lastEq) < plainFastest {
				return
			}
			p.lastEq = now
		}
	case engine.EventStepSkipped:
		if !p.o.Verbose {
			return
		}
	default:
	}
	p.last = now
	logEvent(p.handler, e)
}

func (p *plain) tick(now time.Time) { p.progress(now, plainSlowest) }

// progress writes the step's state when the last line is long enough ago.
func (p *plain) progress(now time.Time, every time.Duration) {
	s := p.model.step
	if s == nil || now.Sub(p.last) < every {
		return
	}
	p.last = now
	line := string(s.id) + ": " + s.title
	if text := s.all.text(now.Sub(s.started)); text != "" {
		line = string(s.id) + ": " + text
	}
	var attrs []slog.Attr
	if active := p.model.active(3); len(active) > 0 {
		var names []string
		for _, t := range active {
			names = append(names, t.name+" "+t.short())
		}
		attrs = append(attrs, slog.String("tables", printable(strings.Join(names, ", "))))
	}
	if p.model.waiting != "" {
		attrs = append(attrs, slog.String("waiting", printable(strings.Join(append([]string{p.model.waiting}, p.model.inWay...), "; "))))
	}
	attrs = append(attrs, slog.String("elapsed", durationText(now.Sub(s.started))))
	logLine(p.handler, now, slog.LevelInfo, line, attrs...)
}

func (p *plain) summary(s Summary, now time.Time) {
	if p.o.Mode != Quiet {
		for _, l := range timingTable(s) {
			p.write([]byte(l + "\n"))
		}
	}
	closing(p.handler, s, now, func(l string) { p.write([]byte(l + "\n")) })
}

// logEvent writes one event as one line.
func logEvent(h slog.Handler, e engine.Event) {
	level := levelOf(e)
	message, attrs := e.Message, []slog.Attr(nil)
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, printable(value)))
		}
	}
	switch e.Kind {
	case engine.EventStepStarted:
		message = "→ " + string(e.Step) + ": " + e.Message
	case engine.EventStepDone:
		message = "✓ " + string(e.Step)
	case engine.EventStepSkipped:
		message = "· " + string(e.Step) + ": " + e.Message
	case engine.EventStepFailed:
		message = "✗ " + string(e.Step) + ": " + e.Message
	case engine.EventFreeze:
		message = strings.TrimSuffix("freeze "+e.Mark+": "+e.Message, ": ")
	case engine.EventDiagnosed:
		if e.Finding != nil {
			add("code", e.Finding.Code)
			add("object", e.Finding.Object)
			add("fix", e.Finding.Fix)
		}
	default:
	}
	if e.Elapsed > 0 {
		add("elapsed", durationText(e.Elapsed))
	}
	if e.Lag > 0 && !strings.Contains(message, "behind") {
		add("lag", durationText(e.Lag))
	}
	if e.Pending > 0 {
		add("pending", countText(e.Pending))
	}
	add("reason", e.Reason)
	add("blockers", strings.Join(e.Blockers, "; "))
	add("sqlstate", e.SQLState)
	if e.Kind != engine.EventDiagnosed {
		add("object", e.Object)
	}
	add("hint", e.Hint)
	logLine(h, e.At, level, message, attrs...)
}

func levelOf(e engine.Event) slog.Level {
	switch {
	case e.Level == "error" || e.Kind == engine.EventStepFailed || e.Finding != nil && e.Finding.Severity == engine.SeverityError:
		return slog.LevelError
	case e.Level == "warning" || e.Level == "warn" || e.Kind == engine.EventRetry || e.Finding != nil && e.Finding.Severity == engine.SeverityWarning:
		return slog.LevelWarn
	case e.Level == "debug":
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func logLine(h slog.Handler, at time.Time, level slog.Level, message string, attrs ...slog.Attr) {
	if !h.Enabled(context.Background(), level) {
		return
	}
	rec := slog.NewRecord(at, level, printable(message), 0)
	rec.AddAttrs(attrs...)
	_ = h.Handle(context.Background(), rec) // the writer below keeps its error for Close
}

// closing writes the last lines: what happened, and what to type.
func closing(h slog.Handler, s Summary, now time.Time, line func(string)) {
	if s.Err != nil {
		attrs := []slog.Attr{slog.Int("exit", s.ExitCode)}
		if hint := engine.HintOf(s.Err); hint != "" {
			attrs = append(attrs, slog.String("hint", printable(hint)))
		}
		logLine(h, now, slog.LevelError, s.Err.Error(), attrs...)
	}
	if s.Message != "" {
		level := slog.LevelInfo
		if s.ExitCode != 0 {
			level = slog.LevelWarn
		}
		logLine(h, now, level, s.Message)
	}
	if s.Next != "" {
		line("Next: " + printable(s.Next))
	}
}

// timingTable shows what each step took.
func timingTable(s Summary) []string {
	if len(s.Outcomes) == 0 {
		return nil
	}
	wide := len("total")
	for _, o := range s.Outcomes {
		wide = max(wide, len(o.ID))
	}
	wide = min(wide, 48)
	out := []string{"", fmt.Sprintf("  %s  %8s  %s", pad("step", wide), "time", "state")}
	var sum time.Duration
	for _, o := range s.Outcomes {
		took, state := "", string(o.State)
		if o.State != engine.StepPending {
			took = durationText(o.Elapsed)
		}
		if o.Skipped {
			state += " before"
		} else {
			sum += o.Elapsed
		}
		out = append(out, fmt.Sprintf("  %s  %8s  %s", pad(printable(string(o.ID)), wide), took, state))
	}
	if s.Elapsed > 0 {
		sum = s.Elapsed
	}
	return append(out, fmt.Sprintf("  %s  %8s", pad("total", wide), durationText(sum)), "")
}

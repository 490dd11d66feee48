package view

import (
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
)

func TestRedactionReachesEveryOutput(t *testing.T) {
	const canary = "hunter2"
	for _, mode := range []Mode{Plain, TTY, JSON, Quiet} {
		s := newStage(t, Options{Mode: mode, Width: 200, Redact: func(s string) string { return strings.ReplaceAll(s, canary, "(sensitive)") }}, mode == TTY, nil)
		slog.New(s.Handler()).Error(canary, "key", canary)
		e := engine.Event{Step: "copy", Message: canary, Object: canary, Reason: canary, Hint: canary, Blockers: []string{canary}, Finding: &engine.Finding{Text: canary, Fix: canary, Object: canary, Severity: engine.SeverityError}}
		for _, k := range []engine.EventKind{engine.EventStepStarted, engine.EventWaiting, engine.EventTable, engine.EventDiagnosed, engine.EventStepFailed} {
			e.Kind = k
			s.Emit(e)
			s.tick()
		}
		s.Summary(Summary{ExitCode: 1, Err: engine.Errorf(engine.ClassFailed, "", "%s", canary), Message: canary, Next: canary})
		out := s.stdout.String() + s.stderr.String()
		if strings.Contains(out, canary) || !strings.Contains(out, "(sensitive)") {
			t.Errorf("%s:\n%s", mode, out)
		}
	}
}

func TestManyEmittersAtOnce(t *testing.T) {
	for _, mode := range []Mode{Plain, TTY, JSON} {
		s := newStage(t, Options{Mode: mode, Width: 80}, mode == TTY, nil)
		s.Emit(engine.Event{Kind: engine.EventStepStarted, Step: "copy", Message: "Load"})
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := range int64(50) {
					s.Emit(engine.Event{Kind: engine.EventTable, Step: "copy", Object: fmt.Sprintf("erp.t%d", w), Bytes: i, BytesAll: 100})
					slog.New(s.Handler()).Info("line")
				}
			}()
		}
		s.tick()
		wg.Wait()
		s.Summary(Summary{})
		if got := strings.Count(s.stderr.String(), "line"); got != 400 {
			t.Errorf("%s: %d of 400 log lines", mode, got)
		}
	}
}

func TestNoTimeLeftBeforeItCanBeTold(t *testing.T) {
	base := amount{bytes: 500, bytesAll: 1000, rate: 100}
	cases := []struct {
		name    string
		change  func(a *amount)
		elapsed time.Duration
		want    time.Duration
		ok      bool
	}{
		{"known", func(*amount) {}, time.Minute, 5 * time.Second, true},
		{"too early", func(*amount) {}, 29 * time.Second, 0, false},
		{"too little done", func(a *amount) { a.bytes = 9 }, time.Minute, 0, false},
		{"just enough", func(a *amount) { a.bytes = 10 }, time.Minute, 9900 * time.Millisecond, true},
		{"given", func(a *amount) { a.eta = time.Hour }, time.Minute, time.Hour, true},
		{"done", func(a *amount) { a.bytes = 1000 }, time.Minute, 0, false},
		{"size not known", func(a *amount) { a.bytesAll = 0 }, time.Minute, 0, false},
		{"standing", func(a *amount) { a.rate = 0 }, time.Minute, 0, false},
	}
	for _, c := range cases {
		a := base
		c.change(&a)
		if got, ok := a.left(c.elapsed); got != c.want || ok != c.ok {
			t.Errorf("%s: %v, %t; want %v, %t", c.name, got, ok, c.want, c.ok)
		}
	}
}

func TestRateIsMeasuredWhereNoneIsGiven(t *testing.T) {
	var a amount
	for i := range int64(20) {
		a.set(engine.Event{Bytes: i * 1000}, start.Add(time.Duration(i)*time.Second))
	}
	if a.rate < 990 || a.rate > 1010 {
		t.Errorf("rate %v of 1000 bytes a second", a.rate)
	}
	a.set(engine.Event{Bytes: 20000, Rate: 7}, start.Add(20*time.Second))
	if a.rate != 7 {
		t.Errorf("rate %v where the event gave 7", a.rate)
	}
}

func TestBlockOfATerminalThatBecomesNarrower(t *testing.T) {
	s := newStage(t, Options{Width: 100}, true, map[string]string{"TERM": "xterm", "NO_COLOR": "1"})
	width := 100
	s.View.(*view).r.(*tty).width = func() int { return width }
	s.Emit(engine.Event{Kind: engine.EventStepStarted, Step: "copy", Message: strings.Repeat("long ", 30)})
	s.Emit(engine.Event{Kind: engine.EventTable, Object: "erp.orders", Rows: 5000, Bytes: 1 << 20, BytesAll: 1 << 22, Reason: "copying"})
	s.Emit(engine.Event{Kind: engine.EventTable, Object: "erp.items", Rows: 5000, Bytes: 1 << 20, BytesAll: 1 << 20, Reason: "building indexes"})
	s.tick()
	s.stderr.Reset()
	width = 40
	s.tick()
	// The head line had 99 columns, which are three lines of 40; those of the tables had fewer than
	// 80 and more than 40.
	if !strings.HasPrefix(s.stderr.String(), "\x1b[7A\r\x1b[J") {
		t.Errorf("%q does not begin by erasing 7 lines", s.stderr.String())
	}
	for line := range strings.Lines(s.stderr.String()) {
		line = strings.TrimRight(line[strings.LastIndex(line, "\x1b[J")+1:], "\n")
		if n := len([]rune(strings.TrimPrefix(line, "[J"))); n > 39 {
			t.Errorf("%q has %d columns of 40", line, n)
		}
	}
	if out := s.stderr.String(); !strings.Contains(out, "25%") || !strings.Contains(out, "building indexes") {
		t.Errorf("the share of one table and the stage of another are missing in %q", out)
	}
}

func TestModelForgetsTablesOfEndedSteps(t *testing.T) {
	var m model
	for i := range 50 {
		m.event(engine.Event{Kind: engine.EventStepStarted, Step: "copy"}, start)
		m.event(engine.Event{Kind: engine.EventTable, Object: fmt.Sprintf("t%d", i), Bytes: 1, BytesAll: 2}, start)
		for range 3 { // whoever tells of it again has not done it again
			m.event(engine.Event{Kind: engine.EventTable, Object: "full", Bytes: 2, BytesAll: 2}, start)
		}
		if len(m.tables) != 1 || len(m.done) != 1 {
			t.Fatalf("%d tables under way, %d done", len(m.tables), len(m.done))
		}
		m.event(engine.Event{Kind: engine.EventTable, Object: "full", Bytes: 1, BytesAll: 2}, start)
		if len(m.tables) != 2 || len(m.done) != 0 {
			t.Fatalf("%d tables under way and %d done while one is loaded again", len(m.tables), len(m.done))
		}
		m.event(engine.Event{Kind: engine.EventStepDone, Step: "copy"}, start)
	}
	if !reflect.DeepEqual(m, model{}) {
		t.Errorf("after the last step the model holds %+v", m)
	}
}

func TestTextHelpers(t *testing.T) {
	got := []string{
		bytesText(0), bytesText(1023), bytesText(1536), bytesText(5 << 40), countText(9999), countText(12345), countText(12_345_678), countText(98_765_432_100),
		durationText(2 * time.Millisecond), durationText(1500 * time.Millisecond), durationText(192 * time.Second), durationText(5*time.Hour + 7*time.Minute), durationText(76 * time.Hour), durationText(-time.Second),
		engine.Plural(1, "table"), engine.Plural(2, "table"), printable("a\x1b[2J\tb\nc\x00é\u202e\xff"), clip("abcdef", 4), pad("日本", 6) + "|",
	}
	want := []string{
		"0 B", "1023 B", "1.5 KiB", "5.0 TiB", "9999", "12.3 k", "12.3 M", "98.8 G",
		"2ms", "1.5s", "3m12s", "5h07m", "3d04h", "-1.0s", "1 table", "2 tables", `a\x1b[2J b ↵ c\x00é\u202e` + "\ufffd", "abc…", "日本  |",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	for _, m := range []string{"auto", "TTY", "plain", "json", "quiet"} {
		if _, ok := ParseMode(m); !ok {
			t.Errorf("mode %s is not known", m)
		}
	}
	if _, ok := ParseMode("html"); ok || slices.Contains([]Mode{Auto}, "html") {
		t.Error("mode html is known")
	}
}

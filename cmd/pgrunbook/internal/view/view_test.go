package view

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/pgrunbook/pgrunbook/engine"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden compares with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

var start = time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC)

// clock is a time that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// stage is a view under test with what it wrote.
type stage struct {
	View
	clock          *clock
	ticks          chan time.Time
	stdout, stderr *bytes.Buffer
}

// tick does what the view's loop does at a tick.
func (s *stage) tick() {
	v := s.View.(*view)
	v.do(v.tick, true)
}

func newStage(t *testing.T, o Options, terminal bool, env map[string]string) *stage {
	t.Helper()
	s := &stage{clock: &clock{now: start}, ticks: make(chan time.Time), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	o.Stdout, o.Stderr, o.Now, o.ticks, o.terminal = s.stdout, s.stderr, s.clock.Now, s.ticks, &terminal
	o.patience = time.Minute
	o.Getenv = func(k string) string { return env[k] }
	o.Version = "1.0.0"
	s.View = New(o)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// play is a run with every kind of event.
func play(s *stage) {
	emit := func(e engine.Event) {
		e.At = s.clock.Now()
		s.Emit(e)
		s.clock.add(1500 * time.Millisecond)
	}
	emit(engine.Event{Kind: engine.EventRunStarted, Run: "k3xq9t2b", Message: "run k3xq9t2b of erp"})
	emit(engine.Event{Kind: engine.EventStepSkipped, Step: "schema", Phase: engine.PhaseSchema, Message: "already done: Create the schema"})
	emit(engine.Event{Kind: engine.EventStepStarted, Step: "copy", Phase: engine.PhaseCopy, Message: "Load 3 tables"})
	for i := range int64(4) {
		emit(engine.Event{Kind: engine.EventProgress, Step: "copy", Phase: engine.PhaseCopy, Rows: i * 1000, RowsAll: 4000, Bytes: i << 20, BytesAll: 4 << 20, Message: "loading"})
		emit(engine.Event{Kind: engine.EventTable, Step: "copy", Phase: engine.PhaseCopy, Object: "erp.orders", Rows: i * 500, Bytes: i << 19, BytesAll: 2 << 20, Rate: 1 << 20, ETA: 2 * time.Minute, Message: "erp.orders"})
	}
	s.clock.add(40 * time.Second)
	emit(engine.Event{Kind: engine.EventTable, Step: "copy", Object: "erp.evil\x1b[31m\nname", Rows: 1, Bytes: 1, Message: "x"})
	emit(engine.Event{Kind: engine.EventWaiting, Step: "copy", Message: "waits for a lock", Object: "erp.orders", Reason: "AccessShareLock", Blockers: []string{"pid 12: ALTER TABLE"}})
	s.tick()
	emit(engine.Event{Kind: engine.EventRetry, Step: "copy", Message: "connection lost, again in 1s", SQLState: "57P01"})
	emit(engine.Event{Kind: engine.EventDiagnosed, Step: "copy", Message: "unlogged table", Finding: &engine.Finding{Code: "PRE031", Severity: engine.SeverityWarning, Side: engine.Source, Object: "erp.tmp", Text: "unlogged", Fix: "SET LOGGED"}})
	emit(engine.Event{Kind: engine.EventNote, Step: "copy", Message: "indexes begin"})
	emit(engine.Event{Kind: engine.EventStepDone, Step: "copy", Phase: engine.PhaseCopy, Message: "Load 3 tables", Elapsed: 72 * time.Second})
	emit(engine.Event{Kind: engine.EventStepStarted, Step: "cutover.before.approve.go", Phase: engine.PhaseCutover, Message: "Ask a person"})
	emit(engine.Event{Kind: engine.EventApproval, Step: "cutover.before.approve.go", Message: "go approved by anna"})
	emit(engine.Event{Kind: engine.EventLag, Step: "catch_up", Lag: 1200 * time.Millisecond, Pending: 12, Message: "the target is 1.2s behind"})
	emit(engine.Event{Kind: engine.EventVerify, Step: "verify", Message: "3 tables are equal", Rows: 4000})
	emit(engine.Event{Kind: engine.EventFreeze, Step: "flip", Mark: "hold", Message: "writes are held", Elapsed: 2 * time.Millisecond})
	emit(engine.Event{Kind: engine.EventStepFailed, Step: "flip", Phase: engine.PhaseCutover, Message: "taking the hold: canceling statement", Level: "error", Elapsed: 250 * time.Millisecond, Hint: "Run again.", SQLState: "55P03"})
	emit(engine.Event{Kind: engine.EventRunEnded, Message: "ended", ExitCode: 16})
	s.Summary(Summary{
		ExitCode: 16, Err: &engine.Error{Class: engine.ClassNoCutover, Op: "taking the hold", Hint: "Run again.", Err: errors.New("canceling statement")},
		Outcomes: []engine.Outcome{
			{ID: "schema", Phase: engine.PhaseSchema, State: engine.StepDone, Skipped: true, Elapsed: 3 * time.Second},
			{ID: "copy", Phase: engine.PhaseCopy, State: engine.StepDone, Elapsed: 72 * time.Second},
			{ID: "flip", Phase: engine.PhaseCutover, State: engine.StepFailed, Elapsed: 250 * time.Millisecond},
			{ID: "finish", Phase: engine.PhaseFinish, State: engine.StepPending},
		},
		Elapsed: 80 * time.Second, Message: "no cutover: the source takes writes", Next: "pgrunbook apply erp.runbook.hcl",
	})
	s.Emit(engine.Event{Kind: engine.EventNote, Message: "too late to be seen"})
}

func TestGoldenRuns(t *testing.T) {
	cases := map[string]struct {
		o        Options
		terminal bool
		env      map[string]string
	}{
		"plain.txt":         {Options{}, false, nil},
		"plain-verbose.txt": {Options{Verbose: true, FPS: 1}, false, nil},
		"quiet.txt":         {Options{Mode: Quiet}, false, nil},
		"tty.txt":           {Options{Width: 80}, true, map[string]string{"TERM": "xterm", "NO_COLOR": "1"}},
		"json.txt":          {Options{Mode: JSON}, false, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, c.o, c.terminal, c.env)
			play(s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			golden(t, name, "--- stdout\n"+s.stdout.String()+"--- stderr\n"+strings.ReplaceAll(s.stderr.String(), "\x1b", "␛"))
		})
	}
}

func TestNoEscapeByteWithoutTerminal(t *testing.T) {
	cases := []struct {
		name     string
		mode     Mode
		terminal bool
		env      map[string]string
		color    string
		escapes  bool
	}{
		{"pipe", Auto, false, map[string]string{"TERM": "xterm"}, "", false},
		{"json", JSON, false, nil, "", false},
		{"quiet", Quiet, false, nil, "", false},
		{"dumb terminal", Auto, true, map[string]string{"TERM": "dumb"}, "", false},
		{"terminal without colour, plain", Plain, true, map[string]string{"TERM": "xterm", "NO_COLOR": "1"}, "", false},
		{"flag against colour", Plain, true, map[string]string{"TERM": "xterm", "CLICOLOR_FORCE": "1"}, "never", false},
		{"NO_COLOR beats CLICOLOR_FORCE", Plain, false, map[string]string{"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, "", false},
		{"forced", Plain, false, map[string]string{"CLICOLOR_FORCE": "1"}, "", true},
		{"forced by 0", Plain, false, map[string]string{"CLICOLOR_FORCE": "0"}, "", false},
		{"forced by flag", Plain, false, nil, "always", true},
		{"terminal", Auto, true, map[string]string{"TERM": "xterm"}, "", true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t, Options{Mode: c.mode, Color: c.color}, c.terminal, c.env)
			slog.New(s.Handler()).Warn("a diagnostic")
			play(s)
			got := strings.Contains(s.stdout.String()+s.stderr.String(), "\x1b")
			if got != c.escapes {
				t.Errorf("escape bytes: %t, want %t in\n%q", got, c.escapes, s.stderr.String())
			}
			if !strings.Contains(s.stderr.String(), "a diagnostic") {
				t.Error("the diagnostic is missing")
			}
		})
	}
}

func TestPlainProgressIsNeitherFloodNorSilence(t *testing.T) {
	for _, fps := range []float64{0, 1, 1000} {
		s := newStage(t, Options{FPS: fps}, false, nil)
		s.Emit(engine.Event{Kind: engine.EventStepStarted, Step: "copy", Message: "Load"})
		lines := func() int { return strings.Count(s.stderr.String(), "\n") }
		before := lines()
		for range 600 { // ten events a second for a minute
			s.clock.add(100 * time.Millisecond)
			s.Emit(engine.Event{Kind: engine.EventProgress, Step: "copy", Bytes: 5, BytesAll: 10})
		}
		if got := lines() - before; got < 2 || got > 60 {
			t.Errorf("fps %v: %d lines in a minute of events", fps, got)
		}
		before = lines()
		for range 60 { // silence of the step for a minute, a tick a second
			s.clock.add(time.Second)
			s.tick()
		}
		if got := lines() - before; got != 2 {
			t.Errorf("fps %v: %d lines in a silent minute, want 2", fps, got)
		}
		s.Emit(engine.Event{Kind: engine.EventStepDone, Step: "copy"})
		before = lines()
		s.clock.add(5 * time.Minute)
		s.tick()
		if got := lines() - before; got != 0 {
			t.Errorf("fps %v: %d lines while no step runs", fps, got)
		}
	}
}

// Who is in the way is what a person can do something about: it is not cut off behind the rest.
func TestBlockersHaveTheirOwnLines(t *testing.T) {
	s := newStage(t, Options{Width: 80}, true, map[string]string{"TERM": "xterm", "NO_COLOR": "1"})
	s.Emit(engine.Event{Kind: engine.EventStepStarted, Step: "capture", Message: "capture changes"})
	who := "pid 22814 (postgres, batchjob, from 127.0.0.1): active"
	s.Emit(engine.Event{
		Kind: engine.EventWaiting, Step: "capture", Reason: "lock", Blockers: []string{who, "pid 2", "pid 3", "pid 4"},
		Message: "waiting to install capture on the source: no lock on \"public\".\"big\" at attempt 6, in the way: " + who + "; pid 2; pid 3; pid 4",
	})
	out := s.stderr.String()
	if !strings.Contains(out, "  waiting: to install capture on the source") || !strings.Contains(out, "    in the way: "+who+"\n") || !strings.Contains(out, "pid 3\n") || strings.Contains(out, "pid 4\n") {
		t.Errorf("the block is\n%s", out)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStepEndsWithItsLatestLag(t *testing.T) {
	s := newStage(t, Options{}, false, nil)
	for _, lag := range []string{"9.8s", "2s", "40ms"} {
		s.Emit(engine.Event{Kind: engine.EventLag, Step: "catch_up", Message: "the target is " + lag + " behind"})
		s.clock.add(100 * time.Millisecond)
	}
	s.Emit(engine.Event{Kind: engine.EventStepDone, Step: "catch_up"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	out := s.stderr.String()
	first, last, done := strings.Index(out, "9.8s behind"), strings.Index(out, "40ms behind"), strings.Index(out, "✓ catch_up")
	if first < 0 || last < first || done < last || strings.Contains(out, "2s behind") {
		t.Errorf("the step does not end with where the target stands:\n%s", out)
	}
}

func TestEqualTablesDoNotFloodAndDifferencesAreNamed(t *testing.T) {
	s := newStage(t, Options{}, false, nil)
	for i := range 500 {
		e := engine.Event{Kind: engine.EventVerify, Step: "verify", At: s.clock.Now(), Message: "erp.t: 50 rows equal"}
		if i%100 == 50 {
			e.Level, e.Message = "error", "erp.t differs"
		}
		s.Emit(e)
		s.clock.add(4 * time.Millisecond)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	out := s.stderr.String()
	if equal, differ := strings.Count(out, "rows equal"), strings.Count(out, "differs"); equal != 2 || differ != 5 {
		t.Errorf("%d lines of equal tables in two seconds, %d of 5 differences:\n%s", equal, differ, out)
	}
}

func TestNothingIsDrawnWhileAPersonIsAsked(t *testing.T) {
	s := newStage(t, Options{Width: 80}, true, map[string]string{"TERM": "xterm", "NO_COLOR": "1"})
	s.Emit(engine.Event{Kind: engine.EventStepStarted, Step: "copy", Message: "Load"})
	s.stderr.Reset()
	resume := s.Suspend()
	if got := s.stderr.String(); got != "\x1b[1A\r\x1b[J" {
		t.Errorf("suspending writes %q", got)
	}
	s.stderr.Reset()
	s.tick()
	slog.New(s.Handler()).Info("a line")
	s.Emit(engine.Event{Kind: engine.EventNote, Message: "a note"})
	if s.stderr.Len() != 0 {
		t.Errorf("while suspended: %q", s.stderr.String())
	}
	resume()
	resume()
	for _, want := range []string{"a line", "a note", "copy  Load"} {
		if strings.Count(s.stderr.String(), want) != 1 {
			t.Errorf("%q is not there once in %q", want, s.stderr.String())
		}
	}
	p := newStage(t, Options{}, false, nil)
	p.Emit(engine.Event{Kind: engine.EventStepStarted, Step: "copy", Message: "Load"})
	resume = p.Suspend()
	p.stderr.Reset()
	p.clock.add(time.Minute)
	p.tick()
	if p.stderr.Len() != 0 {
		t.Errorf("while suspended: %q", p.stderr.String())
	}
	resume()
	p.tick()
	if p.stderr.Len() == 0 {
		t.Error("no progress after the question")
	}
}

func TestLoopTicksUntilClose(t *testing.T) {
	s := newStage(t, Options{}, false, nil)
	s.Emit(engine.Event{Kind: engine.EventStepStarted, Step: "copy", Message: "Load"})
	s.clock.add(time.Minute)
	for range 2 { // the second is taken only after the first was handled
		s.ticks <- s.clock.Now()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if want := "02:01:00 INFO copy: Load elapsed=1m00s\n"; strings.Count(s.stderr.String(), want) != 1 {
		t.Errorf("%q is not there once in\n%s", want, s.stderr.String())
	}
	select {
	case s.ticks <- s.clock.Now():
		t.Error("the loop runs after Close")
	default:
	}
}

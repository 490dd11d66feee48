package view

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/schematest"
)

func TestJSONHoldsBackAndFlushes(t *testing.T) {
	s := newStage(t, Options{Mode: JSON}, false, nil)
	s.Emit(engine.Event{Kind: engine.EventStepStarted, Step: "copy", Message: "Load"})
	for i := range int64(10) {
		s.Emit(engine.Event{Kind: engine.EventTable, Step: "copy", Object: "erp.a", Rows: i})
		s.Emit(engine.Event{Kind: engine.EventTable, Step: "copy", Object: "erp.b", Rows: i})
	}
	s.Emit(engine.Event{Kind: engine.EventStepDone, Step: "copy", Message: "Load"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range lines(t, s) {
		line := fmt.Sprint(l["type"])
		if l["object"] != nil {
			line += fmt.Sprintf(" %v %v", l["object"], l["rows"])
		}
		got = append(got, line)
	}
	want := []string{"version", "step_started", "table_progress erp.a 0", "table_progress erp.b 0", "table_progress erp.a 9", "table_progress erp.b 9", "step_done", "summary"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// lines decodes the JSON stream.
func lines(t *testing.T, s *stage) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, l := range strings.Split(strings.TrimSpace(s.stdout.String()), "\n") {
		m := map[string]any{}
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		out = append(out, m)
	}
	return out
}

func TestEveryLineFitsThePublishedSchema(t *testing.T) {
	s := newStage(t, Options{Mode: JSON}, false, nil)
	play(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all := lines(t, s)
	for _, status := range []Status{exampleStatus(), flippedStatus()} {
		if err := WriteStatusJSON(s.stdout, status, start); err != nil {
			t.Fatal(err)
		}
	}
	if err := WritePlanLine(s.stdout, examplePlan(7), start); err != nil {
		t.Fatal(err)
	}
	types, err := schematest.Lines(s.stdout.String())
	if err != nil {
		t.Error(err)
	}
	kinds := []engine.EventKind{
		engine.EventRunStarted, engine.EventStepStarted, engine.EventStepDone, engine.EventStepSkipped, engine.EventStepFailed, engine.EventProgress,
		engine.EventTable, engine.EventLag, engine.EventWaiting, engine.EventRetry, engine.EventDiagnosed, engine.EventNote, engine.EventApproval, engine.EventFreeze, engine.EventVerify, engine.EventRunEnded,
	}
	for _, k := range append(kinds, "version", "summary", "status", LinePlan) {
		if !slices.Contains(types, string(k)) {
			t.Errorf("no line of type %s was tested", k)
		}
	}
	if first, last := all[0], all[len(all)-1]; first["type"] != "version" || first["ui"] != "1.0" || first["pgrunbook"] != "1.0.0" || last["type"] != "summary" || last["exit_code"] != 16.0 {
		t.Errorf("first %v, last %v", first, last)
	}
}

// TestSchemaNamesEveryEventKind reads the constants from the engine's source, so that a new kind
// cannot be forgotten.
func TestSchemaNamesEveryEventKind(t *testing.T) {
	src, err := os.ReadFile("../../../../engine/event.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../../../docs/events.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range strings.Split(string(src), "\n") {
		_, rest, ok := strings.Cut(l, "EventKind = \"")
		if !ok {
			continue
		}
		n++
		if name, _, _ := strings.Cut(rest, `"`); !strings.Contains(string(doc), `"const": "`+name+`"`) {
			t.Errorf("the schema does not know %q", name)
		}
	}
	if n < 16 {
		t.Errorf("only %d kinds found", n)
	}
}

func TestCloseWithoutSummaryEndsTheStream(t *testing.T) {
	s := newStage(t, Options{Mode: JSON}, false, nil)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	all := lines(t, s)
	if last := all[len(all)-1]; len(all) != 2 || last["type"] != "summary" || last["exit_code"] != 1.0 {
		t.Errorf("lines %v", all)
	}
}

type brokenPipe struct{ err error }

func (b brokenPipe) Write([]byte) (int, error) { return 0, b.err }

func TestOutputThatCannotBeWrittenIsReportedAtTheEnd(t *testing.T) {
	broken := errors.New("broken pipe")
	v := New(Options{Mode: JSON, Stdout: brokenPipe{broken}, Stderr: &bytes.Buffer{}})
	v.Emit(engine.Event{Kind: engine.EventNote, Message: "x"})
	if err := v.Close(); !errors.Is(err, broken) {
		t.Errorf("Close gives %v", err)
	}
}

// What is held back, and what another event passes on its way, is said in the order of time.
func TestTimesNeverGoBack(t *testing.T) {
	for _, mode := range []Mode{JSON, Plain} {
		s := newStage(t, Options{Mode: mode}, false, nil)
		emit := func(e engine.Event) {
			e.At = s.clock.Now().Add(-e.Elapsed) // how long it was on its way
			s.Emit(e)
			s.clock.add(100 * time.Millisecond)
		}
		for range 3 {
			emit(engine.Event{Kind: engine.EventLag, Step: "freeze", Message: "behind"})
		}
		s.clock.add(10 * time.Second)
		emit(engine.Event{Kind: engine.EventFreeze, Step: "freeze", Mark: "flip"})
		emit(engine.Event{Kind: engine.EventNote, Step: "freeze", Message: "slow", Elapsed: 5 * time.Second})
		emit(engine.Event{Kind: engine.EventLag, Step: "freeze", Message: "behind"})
		emit(engine.Event{Kind: engine.EventLag, Step: "freeze", Message: "behind"})
		s.tick()
		emit(engine.Event{Kind: engine.EventStepDone, Step: "freeze"})
		s.Summary(Summary{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		out, last := regexp.MustCompile(`\d\d:\d\d:\d\d(\.\d+)?`).FindAllString(s.stdout.String()+s.stderr.String(), -1), ""
		if len(out) < 6 {
			t.Errorf("%s has only %d lines", mode, len(out))
		}
		for _, at := range out {
			if at < last {
				t.Errorf("%s: %s comes after %s:\n%s%s", mode, at, last, s.stdout.String(), s.stderr.String())
			}
			last = at
		}
	}
}

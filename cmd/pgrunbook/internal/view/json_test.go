package view

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pgrunbook/pgrunbook/engine"
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

func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	f, err := os.Open("../../../../docs/events.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	doc, err := jsonschema.UnmarshalJSON(f)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("events.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("events.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryLineFitsThePublishedSchema(t *testing.T) {
	s, sch := newStage(t, Options{Mode: JSON}, false, nil), schema(t)
	play(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := WriteStatusJSON(s.stdout, exampleStatus(), start); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	all := lines(t, s)
	for i, l := range strings.Split(strings.TrimSpace(s.stdout.String()), "\n") {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(l))
		if err != nil {
			t.Fatal(err)
		}
		if err := sch.Validate(v); err != nil {
			t.Errorf("%s\n%v", l, err)
		}
		seen[fmt.Sprint(all[i]["type"])] = true
		// A field that the schema does not know must not pass unseen.
		v.(map[string]any)["surprise"] = true
		if sch.Validate(v) == nil {
			t.Errorf("the schema accepts a field that it does not describe in %s", l)
		}
	}
	kinds := []engine.EventKind{
		engine.EventRunStarted, engine.EventStepStarted, engine.EventStepDone, engine.EventStepSkipped, engine.EventStepFailed, engine.EventProgress,
		engine.EventTable, engine.EventLag, engine.EventWaiting, engine.EventRetry, engine.EventDiagnosed, engine.EventNote, engine.EventApproval, engine.EventFreeze, engine.EventVerify, engine.EventRunEnded,
	}
	for _, k := range append(kinds, "version", "summary", "status") {
		if !seen[string(k)] {
			t.Errorf("no line of type %s was tested", k)
		}
	}
	if first, last := all[0], all[len(all)-2]; first["type"] != "version" || first["ui"] != "1.0" || first["pgrunbook"] != "1.0.0" || last["type"] != "summary" || last["exit_code"] != 16.0 {
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

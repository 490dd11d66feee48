package view

import (
	"encoding/json"
	"math"
	"slices"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// UIVersion is the version of the JSON stream: the major changes when a field goes or means
// something else, the minor when fields or types are added.
const UIVersion = "1.0"

// jsonEvery is the shortest time between two progress lines of one object.
const jsonEvery = time.Second

// envelope begins every line; docs/events.schema.json describes them.
type envelope struct {
	Level     string `json:"@level"`
	Message   string `json:"@message"`
	Module    string `json:"@module"`
	Timestamp string `json:"@timestamp"`
	Type      string `json:"type"`
}

type versionLine struct {
	envelope
	Pgrunbook string `json:"pgrunbook"`
	UI        string `json:"ui"`
}

// eventLine is an event; durations are in seconds.
type eventLine struct {
	envelope
	Run      string          `json:"run,omitempty"`
	Step     engine.StepID   `json:"step,omitempty"`
	Phase    engine.Phase    `json:"phase,omitempty"`
	Object   string          `json:"object,omitempty"`
	Rows     *int64          `json:"rows,omitempty"`
	RowsAll  int64           `json:"rows_all,omitempty"`
	Bytes    *int64          `json:"bytes,omitempty"`
	BytesAll int64           `json:"bytes_all,omitempty"`
	Done     *float64        `json:"percent_done,omitempty"` // 0 to 1
	Rate     float64         `json:"bytes_per_second,omitempty"`
	ETA      float64         `json:"seconds_remaining,omitempty"`
	Elapsed  *float64        `json:"elapsed_seconds,omitempty"`
	Lag      *float64        `json:"lag_seconds,omitempty"`
	Pending  *int64          `json:"pending,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	Blockers []string        `json:"blockers,omitempty"`
	Mark     string          `json:"mark,omitempty"`
	Finding  *engine.Finding `json:"finding,omitempty"`
	ExitCode *int            `json:"exit_code,omitempty"`
	Hint     string          `json:"hint,omitempty"`
	SQLState string          `json:"sqlstate,omitempty"`
}

type outcomeLine struct {
	ID      engine.StepID    `json:"id"`
	Phase   engine.Phase     `json:"phase"`
	State   engine.StepState `json:"state"`
	Skipped bool             `json:"skipped"`
	Elapsed float64          `json:"elapsed_seconds"`
}

type summaryLine struct {
	envelope
	Run      string        `json:"run,omitempty"`
	ExitCode int           `json:"exit_code"`
	Elapsed  float64       `json:"elapsed_seconds"`
	Steps    []outcomeLine `json:"steps"`
	Error    string        `json:"error,omitempty"`
	Hint     string        `json:"hint,omitempty"`
	Next     string        `json:"next,omitempty"`
}

// jsonView writes one line of JSON for each event to stdout.
type jsonView struct {
	o    Options
	run  string
	last map[string]time.Time    // of progress lines, of the running step
	held map[string]engine.Event // the newest that came too soon
	keys []string                // of held, in order
}

func newJSON(o Options) *jsonView {
	j := &jsonView{o: o}
	j.forget()
	return j
}

// begin writes the first line.
func (j *jsonView) begin() {
	j.line(versionLine{headOf("info", "pgrunbook "+j.o.Version, "version", j.o.Now()), j.o.Version, UIVersion})
}

func (j *jsonView) forget() {
	j.last, j.held, j.keys = map[string]time.Time{}, map[string]engine.Event{}, nil
}

func headOf(level, message, kind string, at time.Time) envelope {
	return envelope{Level: level, Message: message, Module: "pgrunbook", Timestamp: at.UTC().Format("2006-01-02T15:04:05.000000Z"), Type: kind}
}

func (j *jsonView) line(v any) {
	b, err := json.Marshal(v)
	if err != nil { // a float that JSON has no word for, from a broken clock
		b, _ = json.Marshal(headOf("error", "an event could not be written: "+err.Error(), string(engine.EventNote), j.o.Now()))
	}
	_, _ = j.o.Stdout.Write(append(b, '\n'))
}

// write passes log lines on; they are for people.
func (j *jsonView) write(p []byte) { _, _ = j.o.Stderr.Write(p) }

func (j *jsonView) event(e engine.Event, now time.Time) {
	if e.Run != "" {
		j.run = e.Run
	}
	switch e.Kind {
	case engine.EventProgress, engine.EventTable, engine.EventLag:
		key := string(e.Kind) + " " + string(e.Step) + " " + e.Object
		if at, ok := j.last[key]; ok && now.Sub(at) < jsonEvery {
			if _, held := j.held[key]; !held {
				j.keys = append(j.keys, key)
			}
			j.held[key] = e
			return
		}
		j.last[key] = now
		j.drop(key)
	case engine.EventStepDone, engine.EventStepFailed, engine.EventRunEnded:
		j.flush(e.At) // the last figures of a step are not lost
		j.forget()
	default:
	}
	j.line(j.encode(e))
}

func (j *jsonView) drop(key string) {
	if _, held := j.held[key]; held {
		delete(j.held, key)
		j.keys = slices.DeleteFunc(j.keys, func(k string) bool { return k == key })
	}
}

// late writes what was held back as of now: nothing newer is known, and the lines stay in the order of time.
func (j *jsonView) late(key string, now time.Time) {
	e := j.held[key]
	e.At = now
	j.line(j.encode(e))
}

func (j *jsonView) flush(now time.Time) {
	for _, k := range j.keys {
		j.late(k, now)
	}
	clear(j.held)
	j.keys = nil
}

func (j *jsonView) tick(now time.Time) {
	for _, k := range slices.Clone(j.keys) {
		if now.Sub(j.last[k]) >= jsonEvery {
			j.late(k, now)
			j.last[k] = now
			j.drop(k)
		}
	}
}

var levelNames = map[string]string{"ERROR": "error", "WARN": "warn", "INFO": "info", "DEBUG": "debug"}

func (j *jsonView) encode(e engine.Event) eventLine {
	l := eventLine{
		envelope: headOf(levelNames[levelOf(e).String()], e.Message, string(e.Kind), e.At),
		Run:      e.Run, Step: e.Step, Phase: e.Phase, Object: e.Object, RowsAll: e.RowsAll, BytesAll: e.BytesAll, Rate: e.Rate, ETA: seconds(e.ETA),
		Reason: e.Reason, Blockers: e.Blockers, Mark: e.Mark, Finding: e.Finding, Hint: e.Hint, SQLState: e.SQLState,
	}
	if l.Run == "" {
		l.Run = j.run
	}
	switch e.Kind {
	case engine.EventProgress, engine.EventTable:
		l.Rows, l.Bytes = &e.Rows, &e.Bytes
		a := amount{rows: e.Rows, rowsAll: e.RowsAll, bytes: e.Bytes, bytesAll: e.BytesAll}
		if share, ok := a.share(); ok {
			share = math.Round(share*1e4) / 1e4
			l.Done = &share
		}
	case engine.EventLag:
		lag := seconds(e.Lag)
		l.Lag, l.Pending = &lag, &e.Pending
	case engine.EventRunEnded:
		l.ExitCode = &e.ExitCode
	default:
	}
	if l.Rows == nil && e.Rows != 0 {
		l.Rows = &e.Rows
	}
	if l.Bytes == nil && e.Bytes != 0 {
		l.Bytes = &e.Bytes
	}
	if l.Pending == nil && e.Pending != 0 {
		l.Pending = &e.Pending
	}
	if l.Lag == nil && e.Lag != 0 {
		lag := seconds(e.Lag)
		l.Lag = &lag
	}
	if e.Elapsed != 0 || e.Kind == engine.EventStepDone || e.Kind == engine.EventStepFailed {
		elapsed := seconds(e.Elapsed)
		l.Elapsed = &elapsed
	}
	return l
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e6 }

func (j *jsonView) summary(s Summary, now time.Time) {
	j.flush(now)
	message, level := s.Message, "info"
	l := summaryLine{Run: j.run, ExitCode: s.ExitCode, Elapsed: seconds(s.Elapsed), Steps: []outcomeLine{}, Next: s.Next}
	if s.Err != nil {
		l.Error, l.Hint = s.Err.Error(), engine.HintOf(s.Err)
		level = "error"
		if message == "" {
			message = l.Error
		}
	}
	if message == "" {
		message = "done"
	}
	for _, o := range s.Outcomes {
		l.Steps = append(l.Steps, outcomeLine{ID: o.ID, Phase: o.Phase, State: o.State, Skipped: o.Skipped, Elapsed: seconds(o.Elapsed)})
	}
	l.envelope = headOf(level, message, "summary", now)
	j.line(l)
}

package view

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Kinds of lines beside the events: what a command prints as its result with --json.
const (
	LinePlan        = "plan"
	LineLeft        = "left"        // what the source still holds of a run that the target knows nothing of
	LineCertificate = "certificate" // of a freeze
	LineRehearsal   = "rehearsal"
	LineLoss        = "loss" // what a rollback without the target gives up
)

// WriteLine writes a result as one line of JSON: its fields, behind those that every line of the event
// stream begins with. docs/events.schema.json describes each kind.
func WriteLine(out io.Writer, kind, message string, result any, now time.Time) error {
	head, err := json.Marshal(headOf("info", message, kind, now))
	if err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	body, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	line := append(append(head[:len(head)-1], ','), append(body[1:], '\n')...) // two objects made one
	if _, err := out.Write(line); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// WritePlanLine writes the plan of WritePlanJSON as a line of the stream.
func WritePlanLine(out io.Writer, p *engine.Plan, now time.Time) error {
	var b bytes.Buffer
	if err := WritePlanJSON(&b, p); err != nil {
		return err
	}
	return WriteLine(out, LinePlan, "plan of "+p.Name+": "+Verdict(p), struct {
		Plan json.RawMessage `json:"plan"`
	}{b.Bytes()}, now)
}

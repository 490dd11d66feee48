package runbook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hcled"
)

// jsonReport is what `terraform validate -json` prints, so that editors and problem matchers
// that know it work here too.
type jsonReport struct {
	FormatVersion string           `json:"format_version"`
	Valid         bool             `json:"valid"`
	ErrorCount    int              `json:"error_count"`
	WarningCount  int              `json:"warning_count"`
	Diagnostics   []jsonDiagnostic `json:"diagnostics"`
}

type jsonDiagnostic struct {
	Severity string       `json:"severity"`
	Summary  string       `json:"summary"`
	Detail   string       `json:"detail"`
	Range    *jsonRange   `json:"range,omitempty"`
	Snippet  *jsonSnippet `json:"snippet,omitempty"`
}

type jsonRange struct {
	Filename string  `json:"filename"`
	Start    jsonPos `json:"start"`
	End      jsonPos `json:"end"`
}

type jsonPos struct {
	Line   int `json:"line"`
	Column int `json:"column"`
	Byte   int `json:"byte"`
}

// jsonSnippet quotes the whole lines of a range; the offsets are bytes into Code.
type jsonSnippet struct {
	Context              *string  `json:"context"`
	Code                 string   `json:"code"`
	StartLine            int      `json:"start_line"`
	HighlightStartOffset int      `json:"highlight_start_offset"`
	HighlightEndOffset   int      `json:"highlight_end_offset"`
	Values               []string `json:"values"`
}

// DiagnosticsJSON returns diagnostics of this runbook, or of its steps, as one JSON object in the
// shape of `terraform validate -json`, format version 1.0. Secrets are kept out as in
// WriteDiagnostics.
func (r *Runbook) DiagnosticsJSON(diags hcl.Diagnostics) ([]byte, error) {
	report := jsonReport{FormatVersion: "1.0", Diagnostics: []jsonDiagnostic{}}
	files := r.sources.printable()
	for _, d := range tidy(diags) {
		d = r.scrubbed(d)
		out := jsonDiagnostic{Severity: "warning", Summary: d.Summary, Detail: d.Detail}
		if d.Severity == hcl.DiagError {
			out.Severity = "error"
			report.ErrorCount++
		} else {
			report.WarningCount++
		}
		if d.Subject != nil {
			out.Range = &jsonRange{Filename: d.Subject.Filename, Start: jsonPos(d.Subject.Start), End: jsonPos(d.Subject.End)}
			out.Snippet = snippet(files[d.Subject.Filename], *d.Subject)
		}
		report.Diagnostics = append(report.Diagnostics, out)
	}
	report.Valid = report.ErrorCount == 0
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing diagnostics as JSON: %w", err)
	}
	return append(text, '\n'), nil
}

func snippet(file *hcl.File, r hcl.Range) *jsonSnippet {
	if file == nil || r.Start.Byte < 0 || r.Start.Byte > len(file.Bytes) {
		return nil
	}
	src := file.Bytes
	end := min(max(r.End.Byte, r.Start.Byte), len(src))
	from := bytes.LastIndexByte(src[:r.Start.Byte], '\n') + 1
	to := len(src)
	if i := bytes.IndexByte(src[end:], '\n'); i >= 0 {
		to = end + i
	}
	out := &jsonSnippet{
		Code:                 strings.TrimSuffix(string(src[from:to]), "\n"),
		StartLine:            r.Start.Line,
		HighlightStartOffset: r.Start.Byte - from,
		HighlightEndOffset:   end - from,
		Values:               []string{},
	}
	if context := hcled.ContextString(file, r.Start.Byte); context != "" {
		out.Context = &context
	}
	return out
}

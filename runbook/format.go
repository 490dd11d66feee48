package runbook

import (
	"bytes"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// Format returns the canonical text of a runbook in native syntax: indentation, aligned equals
// signs, one newline at the end. Text that does not parse is returned byte for byte with the
// diagnostics, whose ranges carry the file's name: formatting is defined for valid text only and
// would bend the rest further. Formatting twice changes nothing. The JSON twin is not formatted.
func Format(filename string, src []byte) ([]byte, hcl.Diagnostics) {
	if isJSON(filename) {
		return src, hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  "Not native syntax",
			Detail:   filename + " is JSON, which pgrunbook reads and does not format. Use a JSON formatter, or write native syntax in a .runbook.hcl file.",
		}}
	}
	if _, diags := hclsyntax.ParseConfig(src, filename, hcl.InitialPos); diags.HasErrors() {
		return src, tidy(diags)
	}
	out := src
	// One round can move a comment to where the next aligns it anew. Rounds end within a few.
	for range 4 {
		next := formatOnce(out)
		if bytes.Equal(next, out) {
			break
		}
		out = next
	}
	if _, diags := hclsyntax.ParseConfig(out, filename, hcl.InitialPos); diags.HasErrors() || !bytes.Equal(formatOnce(out), out) {
		// The writer can produce what the parser refuses (hcl#687); the text is then left alone.
		return src, nil
	}
	return out, nil
}

func formatOnce(src []byte) []byte {
	out := hclwrite.Format(src)
	out = bytes.TrimRight(out, " \t\r\n")
	if len(out) > 0 {
		out = append(out, '\n')
	}
	return out
}

package runbook

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzParse looks for text that makes the loader, its printers or the readers of its result
// panic.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/valid/*.hcl", "testdata/valid/*.json", "testdata/invalid/*.hcl", "testdata/invalid/*.json"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range names {
			src, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(src, isJSON(name), true)
			f.Add(src, isJSON(name), false)
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, src []byte, asJSON, validate bool) {
		name := filepath.Join(dir, "t.runbook.hcl")
		if asJSON {
			name = filepath.Join(dir, "t.runbook.json")
		}
		rb, diags := Parse(name, src, Options{Validate: validate, Getenv: noEnv, ToolVersion: "1.2.0"})
		if rb == nil {
			t.Fatal("no runbook")
		}
		var out bytes.Buffer
		if err := rb.WriteDiagnostics(&out, diags, 80, false); err != nil {
			t.Fatal(err)
		}
		if _, err := rb.DiagnosticsJSON(diags); err != nil {
			t.Fatal(err)
		}
		for _, h := range rb.Hooks {
			for _, step := range append(h.Before, h.After...) {
				b := DecodeBody(step)
				_, _, _, _ = b.String("message"), b.Strings("command"), b.SensitiveMap("env"), b.Duration("timeout", 1)
				_ = b.Done()
			}
		}
		_ = rb.Tables.Decide("erp", "orders")
		_, _ = rb.RuleFor("erp", "orders")
		if rb.Redact() == nil || rb.Digest == "" {
			t.Fatal("no copy or no digest")
		}
		_, _ = Format(name, src)
	})
}

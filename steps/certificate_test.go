package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// A certificate claims no comparison that was not made.
func TestCertificateSaysWhatWasCompared(t *testing.T) {
	for _, c := range []struct {
		to           engine.Side
		verify, want string
	}{
		{engine.Target, "", "; all other contents by the live verification"},
		{engine.Target, `verify { mode = "count" }`, "; all other tables by their number of rows"},
		{engine.Target, "verify { enabled = false }", "; no other contents"},
		{engine.Source, "", "; no other contents on the way back"},
	} {
		text := "runbook \"shop\" {}\nsource { url = \"postgresql://a/b\" }\ntarget { url = \"postgresql://c/d\" }\n" + c.verify
		rb, diags := runbook.Parse("shop.runbook.hcl", []byte(text), runbook.Options{})
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		f := &flipper{env: &Env{Runbook: rb}, to: c.to, reload: &reloader{}}
		if got := f.compared(); !strings.Contains(got, c.want) {
			t.Errorf("to the %s with %q: %q", c.to, c.verify, got)
		}
	}
}

package steps

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
)

func TestNotifyShapes(t *testing.T) {
	var bodies []map[string]any
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		m := map[string]any{}
		if err != nil || json.Unmarshal(b, &m) != nil {
			t.Errorf("body %s: %v", b, err)
		}
		delete(m, "at")
		bodies = append(bodies, m)
	}))
	defer srv.Close()
	for _, shape := range []string{"slack", "webhook"} {
		s := oneStep(t, &Env{}, Before, t.TempDir(), "step \"notify\" \"n\" {\n url = \""+srv.URL+"\"\n shape = \""+shape+"\"\n message = \"moved\"\n }", nil)
		if err := apply(t, s, &paper{}); err != nil {
			t.Fatal(err)
		}
	}
	want := []map[string]any{{"text": "moved"}, {"runbook": "test", "step": "copy.before.notify.n", "phase": "copy", "message": "moved"}}
	if d := cmp.Diff(want, bodies); d != "" {
		t.Error(d)
	}
}

func TestNotifyStopsTheRunOnlyWhenRequired(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer srv.Close()
	build := func(required string) engine.Step {
		return oneStep(t, &Env{}, Before, t.TempDir(), "step \"notify\" \"n\" {\n url = \""+srv.URL+"\"\n message = \"m\"\n timeout = \"1s\"\n required = "+required+"\n }", nil)
	}
	cp := &paper{}
	if err := apply(t, build("false"), cp); err != nil {
		t.Error(err)
	}
	if !strings.Contains(cp.text(), "403; the run goes on") {
		t.Errorf("events:\n%s", cp.text())
	}
	if err := apply(t, build("true"), &paper{}); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("error is %v", err)
	}
}

package steps

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
)

func writeFile(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHTTPAsksUntilTheStatusIsRight(t *testing.T) {
	var asked atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead {
			t.Errorf("method is %s", r.Method)
		}
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer srv.Close()
	s := oneStep(t, &Env{}, Before, t.TempDir(), "step \"http\" \"x\" {\n url = \""+srv.URL+"\"\n method = \"HEAD\"\n status = 204\n retries = 5\n interval = \"1ms\"\n }", nil)
	cp := &paper{}
	if err := apply(t, s, cp); err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 3 || strings.Count(cp.text(), "it answered 503") != 4 {
		t.Errorf("asked %d times, events:\n%s", asked.Load(), cp.text())
	}
}

func TestHTTPGivesUpWithoutShowingTheAddress(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }))
	s := oneStep(t, &Env{}, Before, t.TempDir(), "step \"http\" \"x\" {\n url = \""+srv.URL+"/${var.secret}\"\n retries = 1\n interval = \"1ms\"\n }", map[string]string{"SECRET": "hunter22"})
	err := apply(t, s, &paper{})
	if err == nil || !strings.Contains(err.Error(), "302") || strings.Contains(err.Error(), "hunter22") {
		t.Errorf("error is %v", err)
	}
	srv.Close()
	if err := apply(t, s, &paper{}); err == nil || strings.Contains(err.Error(), "hunter22") {
		t.Errorf("error is %v", err)
	}
}

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

func TestWaitGoesOnWhereAnEarlierProcessWas(t *testing.T) {
	s := oneStep(t, &Env{}, Before, t.TempDir(), "step \"wait\" \"w\" { duration = \"1h\" }", nil)
	started, err := json.Marshal(waitStarted{At: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(t, s, &paper{cursor: started}); err != nil {
		t.Error(err)
	}
	short := oneStep(t, &Env{}, Before, t.TempDir(), "step \"wait\" \"w\" { duration = \"20ms\" }", nil)
	cp := &paper{}
	if err := apply(t, short, cp); err != nil || cp.cursor == nil {
		t.Errorf("error %v, cursor %s", err, cp.cursor)
	}
}

func TestWaitForSQL(t *testing.T) {
	server, url := database(t, "source")
	query(t, url, "CREATE TABLE public.queue (n int); INSERT INTO public.queue VALUES (1)")
	s := oneStep(t, &Env{Source: server}, Before, t.TempDir(), "step \"wait\" \"w\" {\n on = \"source\"\n sql = \"SELECT count(*) = 0 FROM queue\"\n interval = \"10ms\"\n }", nil)
	done := make(chan error, 1)
	cp := &paper{}
	go func() { done <- s.Apply(t.Context(), engine.StepPlan{}, cp) }()
	for !strings.Contains(cp.text(), "waiting for") {
		select {
		case err := <-done:
			t.Fatalf("it ended early: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	query(t, url, "DELETE FROM public.queue")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	never := oneStep(t, &Env{Source: server}, Before, t.TempDir(), "step \"wait\" \"w\" {\n on = \"source\"\n sql = \"SELECT false\"\n timeout = \"100ms\"\n interval = \"10ms\"\n }", nil)
	if err := apply(t, never, &paper{}); err == nil || !strings.Contains(err.Error(), "not true within 100ms") {
		t.Errorf("error is %v", err)
	}
}

func TestApproveAsks(t *testing.T) {
	s := oneStep(t, &Env{}, Before, t.TempDir(), "step \"approve\" \"go\" {\n message = \"Batch jobs stopped?\"\n expires = \"4h\"\n }", nil)
	want := engine.ApprovalRequest{Name: "go", Message: "Batch jobs stopped?", Expires: 4 * time.Hour}
	if d := cmp.Diff(want, s.(engine.Approver).Approval()); d != "" {
		t.Error(d)
	}
	p, err := s.Plan(t.Context())
	if err != nil || !strings.Contains(p.Actions[0].SQL, "pgrunbook approve go") {
		t.Errorf("plan %+v, %v", p, err)
	}
}

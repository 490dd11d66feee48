package steps

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
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

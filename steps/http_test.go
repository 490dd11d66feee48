package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// balancer is the API of a load balancer: it keeps what it was told.
type balancer struct {
	*httptest.Server
	told chan string
	code atomic.Int64
}

func newBalancer(t *testing.T) *balancer {
	b := &balancer{told: make(chan string, 100)}
	b.code.Store(http.StatusOK)
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		b.told <- fmt.Sprintf("%s %s [%s] %s", r.Method, r.URL.Path, r.Header.Get("Authorization"), body)
		w.WriteHeader(int(b.code.Load()))
	}))
	t.Cleanup(b.Close)
	return b
}

// heard gives what it was told since it was last asked.
func (b *balancer) heard() (out []string) {
	for {
		select {
		case line := <-b.told:
			out = append(out, line)
		default:
			return out
		}
	}
}

func (b *balancer) step(t *testing.T, more string) engine.Step {
	return oneStep(t, &Env{}, Switch, t.TempDir(), `step "http" "lb" {
  url     = "`+b.URL+`/pools/shop"
  method  = "PUT"
  headers = { Authorization = "Bearer ${var.secret}" }
  body    = jsonencode({ member = "target" })
  timeout = "2s"
  `+more+`
}`, map[string]string{"SECRET": "hunter22"})
}

func TestHTTPInSwitchIsUndone(t *testing.T) {
	b := newBalancer(t)
	s := b.step(t, "undo {\n method = \"POST\"\n body = jsonencode({ member = \"source\", was = var.secret })\n }")
	p, err := s.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []engine.Action{{On: engine.Runner, SQL: "PUT " + b.URL + "/pools/shop\n{\"member\":\"target\"}", Reverse: "POST " + b.URL + "/pools/shop\n(sensitive)"}}
	if diff := cmp.Diff(want, p.Actions); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	steps := switchSteps(&Env{}, []engine.Step{s})
	if len(steps) != 1 || steps[0].Name != "http lb: PUT "+b.URL+"/pools/shop" || steps[0].Timeout != 2*time.Second {
		t.Fatalf("the freeze has %+v", steps)
	}
	back := backSteps(steps)[0]
	for _, do := range []func(context.Context) error{steps[0].Do, steps[0].Undo, back.Do, back.Undo} {
		if err := do(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	there, home := `PUT /pools/shop [Bearer hunter22] {"member":"target"}`, `POST /pools/shop [Bearer hunter22] {"member":"source","was":"hunter22"}`
	if diff := cmp.Diff([]string{there, home, home, there}, b.heard()); diff != "" {
		t.Errorf("the API was told (-want +got):\n%s", diff)
	}
}

// TestHTTPInSwitchKeepsToItsTime: writes wait for it, so its timeout is that of all tries, and none is waited for
// that would begin too late.
func TestHTTPInSwitchKeepsToItsTime(t *testing.T) {
	b := newBalancer(t)
	b.code.Store(http.StatusBadGateway)
	s := b.step(t, "retries = 1000\n interval = \"1h\"\n undo {\n method = \"POST\"\n }")
	for name, do := range map[string]func() error{
		"PUT":  func() error { return apply(t, s, &paper{}) },
		"POST": func() error { return s.(engine.Undoer).Undo(t.Context(), &paper{}) },
	} {
		err := do()
		if err == nil || !strings.Contains(err.Error(), "it answered 502") {
			t.Errorf("%s: error is %v", name, err)
		}
		if told := b.heard(); len(told) != 1 || !strings.HasPrefix(told[0], name+" ") {
			t.Errorf("%s: within 2s, every hour, it was asked %q", name, told)
		}
	}

	hangs, end := httptest.NewUnstartedServer(nil), make(chan struct{})
	hangs.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end })
	hangs.Start()
	t.Cleanup(hangs.Close)
	t.Cleanup(func() { close(end) })
	h := oneStep(t, &Env{}, Switch, t.TempDir(), "step \"http\" \"x\" {\n url = \""+hangs.URL+"\"\n timeout = \"50ms\"\n retries = 1000\n interval = \"1ms\"\n undo {\n method = \"PUT\"\n }\n }", nil)
	if err := apply(t, h, &paper{}); err == nil || !strings.Contains(err.Error(), "it took longer than its timeout of 50ms") {
		t.Errorf("error is %v", err)
	}
}

// TestHTTPHidesSecrets: headers and bodies hold credentials, wherever they are told of.
func TestHTTPHidesSecrets(t *testing.T) {
	b := newBalancer(t)
	b.code.Store(http.StatusForbidden)
	s := b.step(t, "retries = 1\n interval = \"1ms\"\n undo {\n url = \""+b.URL+"/${var.secret}\"\n headers = { Authorization = var.secret }\n }")
	p, err := s.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cp := &paper{}
	failed, back := apply(t, s, cp), s.(engine.Undoer).Undo(t.Context(), cp)
	if failed == nil || back == nil || len(b.heard()) != 4 {
		t.Fatalf("apply: %v, undo: %v", failed, back)
	}
	step := s.(*httpStep)
	for _, said := range []string{string(text), cp.text(), failed.Error(), back.Error(), engine.HintOf(failed), step.command(), step.inputs} {
		if strings.Contains(said, "hunter22") {
			t.Errorf("the secret is in %s", said)
		}
	}
}

func TestHTTPFingerprintCoversUndo(t *testing.T) {
	b := newBalancer(t)
	seen := map[string]string{}
	for _, more := range []string{
		"undo {\n method = \"POST\"\n }", "undo {\n method = \"DELETE\"\n }", "undo {\n method = \"POST\"\n body = \"\"\n }", "undo {\n method = \"POST\"\n status = 201\n }",
		"undo {\n method = \"POST\"\n url = \"http://other/\"\n }", "undo {\n method = \"POST\"\n headers = { a = \"b\" }\n }",
	} {
		f := b.step(t, more).Fingerprint()
		if other, ok := seen[f]; ok {
			t.Errorf("the fingerprint does not tell %s from %s", more, other)
		}
		seen[f] = more
	}
}

// TestHTTPBrief: the guardian, which has the brief alone, asks what the runner would have asked.
func TestHTTPBrief(t *testing.T) {
	b := newBalancer(t)
	env := &Env{}
	s := oneStep(t, env, Switch, t.TempDir(), `step "http" "lb" {
  url      = "`+b.URL+`/${var.secret}"
  method   = "PUT"
  headers  = { Authorization = var.secret }
  body     = "target"
  status   = 204
  retries  = 2
  interval = "1ms"
  timeout  = "2s"
  undo {
    url    = "`+b.URL+`/back"
    body   = "source"
    status = 200
  }
}`, map[string]string{"SECRET": "hunter22"})
	text, err := json.Marshal(briefed(env))
	if err != nil {
		t.Fatal(err)
	}
	var read []switchBrief
	if err := json.Unmarshal(text, &read); err != nil || len(read) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	again := read[0].step(&Env{}, NewRedactor([]string{"hunter22"}))
	if s.(switchable).command() != again.(switchable).command() || again.(switchable).limit() != 2*time.Second || again.ID() != s.ID() {
		t.Errorf("the guardian has %s, %s", again.ID(), again.(switchable).command())
	}
	b.code.Store(http.StatusNoContent)
	if err := again.Apply(t.Context(), engine.StepPlan{}, &paper{}); err != nil {
		t.Error(err)
	}
	if err := again.(engine.Undoer).Undo(t.Context(), &paper{}); err == nil || !strings.Contains(err.Error(), "it answered 204, expected is 200") {
		t.Errorf("undo: %v", err)
	}
	home := "PUT /back [hunter22] source"
	if diff := cmp.Diff([]string{"PUT /hunter22 [hunter22] target", home, home, home}, b.heard()); diff != "" {
		t.Errorf("the guardian asked (-want +got):\n%s", diff)
	}
}

// TestHTTPSendsNothingAfterAStandstill: a process that stood still for as long as the guardian waits finds its switch
// undone when it wakes up.
func TestHTTPSendsNothingAfterAStandstill(t *testing.T) {
	b := newBalancer(t)
	f := newFence()
	defer f.close()
	ask := func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, b.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		_, err = send(f.transport, req)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	f.begun = f.begun.Add(-time.Hour) // no beat for an hour
	for range 2 {
		if err := ask(); !errors.Is(err, errStoodStill) {
			t.Errorf("error is %v", err)
		}
	}
	if told := b.heard(); len(told) != 1 {
		t.Errorf("it was asked %q", told)
	}
}

// TestHTTPSwitchThereAndBack: what a dead runner asked for is taken back by whatever command comes next; a freeze asks
// for the one, and a rollback for the other.
func TestHTTPSwitchThereAndBack(t *testing.T) {
	b := newBalancer(t)
	r := newRig(t, fmt.Sprintf(`cutover {
  max_write_block = "30s"
  switch {
    step "http" "lb" {
      url     = "%[1]s/pool"
      method  = "PUT"
      body    = "target"
      timeout = "5s"
      undo { body = "source" }
    }
  }
}`, b.URL))
	told := func(when, want string) {
		t.Helper()
		if diff := cmp.Diff([]string{"PUT /pool [] " + want}, b.heard()); diff != "" {
			t.Errorf("%s the API was told (-want +got):\n%s", when, diff)
		}
	}
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	there, err := freezeFrom(r.env, engine.Source)
	r.must(err)
	r.diesIn(there)
	r.env.Journal.Close(t.Context())
	r.open()
	told("after a death", "source")
	there, err = freezeFrom(r.env, engine.Source)
	r.must(err)
	r.must(r.walk(t.Context(), there))
	told("by the freeze", "target")
	back, err := freezeFrom(r.env, engine.Target)
	r.must(err)
	r.must(r.walk(t.Context(), back))
	told("by the rollback", "source")
}

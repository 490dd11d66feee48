package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

func TestMain(m *testing.M) { testpg.Main(m) }

// sheet is a runbook around some text: two servers and what a test is about.
func sheet(body string) string {
	return `runbook "test" {}
source { url = "postgresql://a@source.example/db" }
target { url = "postgresql://a@target.example/db" }
` + body
}

// parsed reads a runbook of a test; env gives the environment.
func parsed(t *testing.T, dir, text string, env map[string]string) *runbook.Runbook {
	t.Helper()
	rb, diags := runbook.Parse(filepath.Join(dir, "t.runbook.hcl"), []byte(text), runbook.Options{
		Getenv: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	})
	if diags.HasErrors() {
		t.Fatalf("parsing: %s", printed(t, rb, diags))
	}
	return rb
}

func printed(t *testing.T, rb *runbook.Runbook, diags hcl.Diagnostics) string {
	t.Helper()
	var b bytes.Buffer
	if err := rb.WriteDiagnostics(&b, diags, 0, false); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// oneStep decodes the single step of copy { before { ... } }, or with the other slot, of
// cutover { switch { ... } }.
func oneStep(t *testing.T, env *Env, slot Slot, dir, block string, vars map[string]string) engine.Step {
	t.Helper()
	phase, outer := engine.PhaseCopy, "copy { before {\n%s\n} }"
	if slot == Switch {
		phase, outer = engine.PhaseCutover, "cutover { \nswitch {\n%s\n} \n}"
	}
	text := `variable "secret" {
  type      = string
  sensitive = true
  default   = env("SECRET")
}
` + fmt.Sprintf(outer, block)
	if vars == nil {
		vars = map[string]string{"SECRET": "unused-secret"}
	}
	rb := parsed(t, dir, sheet(strings.NewReplacer("copy { before {", "copy {\n before {", "} }", "}\n}").Replace(text)), vars)
	env.Runbook = rb
	blocks := rb.Hooks["copy"].Before
	if slot == Switch {
		blocks = rb.Cutover.Switch
	}
	steps, diags := people(env, Place{phase, slot}, blocks)
	if diags.HasErrors() {
		t.Fatalf("decoding: %s", printed(t, rb, diags))
	}
	if len(steps) != 1 {
		t.Fatalf("%d steps, want 1", len(steps))
	}
	return steps[0]
}

// paper is a checkpoint that keeps its cursor in a table, where a transaction is given, and its
// events in memory.
type paper struct {
	mu     sync.Mutex
	url    string
	cursor []byte
	events []engine.Event
}

func (p *paper) Load(ctx context.Context, into any) (bool, error) {
	if p.url == "" {
		if p.cursor == nil {
			return false, nil
		}
		return true, json.Unmarshal(p.cursor, into)
	}
	conn, err := pgx.Connect(ctx, p.url)
	if err != nil {
		return false, err
	}
	defer conn.Close(ctx)
	var b []byte
	if err := conn.QueryRow(ctx, "SELECT cursor FROM public.paper ORDER BY n DESC LIMIT 1").Scan(&b); errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, json.Unmarshal(b, into)
}

func (p *paper) Save(ctx context.Context, tx pgx.Tx, cursor any) error {
	b, err := json.Marshal(cursor)
	if err != nil {
		return err
	}
	if tx == nil {
		p.cursor = b
		return nil
	}
	_, err = tx.Exec(ctx, "INSERT INTO public.paper (cursor) VALUES ($1)", string(b))
	return err
}

func (p *paper) Emit(e engine.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

func (p *paper) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, e := range p.events {
		fmt.Fprintln(&b, e.Kind, e.Object, e.Message, e.Reason)
	}
	return b.String()
}

func apply(t *testing.T, s engine.Step, cp engine.Checkpoint) error {
	t.Helper()
	p, err := s.Plan(t.Context())
	if err != nil {
		t.Fatalf("planning: %v", err)
	}
	return s.Apply(t.Context(), p, cp)
}

// database gives a fresh database and a server for one side.
func database(t *testing.T, side string) (*pg.Server, string) {
	t.Helper()
	_, major, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	url := testpg.NewDB(t, testpg.Shared(t, major))
	s, err := pg.New(pg.Config{Side: side, URL: url})
	if err != nil {
		t.Fatal(err)
	}
	query(t, url, "CREATE TABLE public.paper (n bigserial, cursor jsonb)")
	return s, url
}

// query runs one statement and gives its first value as text.
func query(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := testpg.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	first, err := simpleQuery(t.Context(), conn.Conn, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return first
}

func writeScript(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	cases := []struct{ name, body, want string }{
		{"unknown kind", "copy {\n before {\n  step \"aprove\" \"x\" {}\n }\n}", `Did you mean "approve"?`},
		{"unknown argument", "copy {\n after {\n  step \"approve\" \"x\" {\n   mesage = \"m\"\n  }\n }\n}", `message`},
		{"finish is checked", "finish {\n after {\n  step \"sql\" \"x\" { on = \"target\" }\n }\n}", "Which statement?"},
		{"rollback is checked", "rollback {\n before {\n  step \"wait\" \"x\" {}\n }\n}", "Wait for what?"},
		{"no message in switch", "cutover {\n switch {\n  step \"notify\" \"x\" {\n url = \"http://h/\"\n message = \"m\"\n }\n }\n}", "only exec, http and sql can"},
		{"the same request undoes nothing", httpSwitch("undo {\n status = 201\n }"), "Nothing to undo"},
		{"undo has no tries of its own", httpSwitch("undo {\n method = \"PUT\"\n retries = 1\n }"), `"retries" is no argument of undo of step "http"`},
		{"undo of http is a block", httpSwitch("undo = { method = \"PUT\" }"), "Write it without the equals sign: undo { ... }"},
		{"one undo", httpSwitch("undo {\n method = \"PUT\"\n }\n undo {\n method = \"PUT\"\n }"), "has one undo block"},
		{"undo has no name", httpSwitch("undo \"x\" {\n method = \"PUT\"\n }"), "undo has no name"},
		{"undo of exec is none", "copy {\n before {\n  step \"exec\" \"x\" {\n command = [\"true\"]\n undo {}\n }\n }\n}", "Write it with an equals sign: undo = ..."},
		{"header's name", httpSwitch("headers = { \"a b\" = \"x\" }\n undo {\n method = \"PUT\"\n }"), "Bad name of a header"},
		{"header's value", httpSwitch("headers = { a = \"x\\n\" }\n undo {\n method = \"PUT\"\n }"), "Bad value of a header"},
		{"nobody is asked in switch", "cutover {\n switch {\n  step \"approve\" \"x\" { message = \"m\" }\n }\n}", "cannot stand in switch"},
		{"no sleep in switch", "cutover {\n switch {\n  step \"wait\" \"x\" { duration = \"1s\" }\n }\n}", "cannot stand in switch"},
		{"same name twice", "copy {\n before {\n  step \"wait\" \"x\" { duration = \"1s\" }\n  step \"wait\" \"x\" { duration = \"1s\" }\n }\n}", "Duplicate step"},
		{"approval named twice", "copy {\n before {\n  step \"approve\" \"x\" { message = \"m\" }\n }\n}\nverify {\n before {\n  step \"approve\" \"x\" { message = \"m\" }\n }\n}", "Two steps"},
		{"our environment", "copy {\n before {\n  step \"exec\" \"x\" {\n command = [\"true\"]\n env = { PGRUNBOOK_RUN = \"1\" }\n }\n }\n}", "cannot be set here"},
		{"no shell", "copy {\n before {\n  step \"exec\" \"x\" { command = \"ls -l\" }\n }\n}", "must be a list of text"},
		{"no address", "copy {\n before {\n  step \"http\" \"x\" { url = \"shop.example.com\" }\n }\n}", "Bad address"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			rb, diags := runbook.Parse("t.runbook.hcl", []byte(sheet(c.body)), runbook.Options{})
			diags = append(diags, Check(rb)...)
			if got := printed(t, rb, diags); !diags.HasErrors() || !strings.Contains(got, c.want) {
				t.Errorf("got %s\nwant an error with %q", got, c.want)
			}
			if strings.Contains(c.name, "twice") && len(diags.Errs()) != 1 {
				t.Errorf("%d mistakes are reported for one:\n%s", len(diags.Errs()), printed(t, rb, diags))
			}
		})
	}
}

// httpSwitch is a cutover that asks a load balancer's API.
func httpSwitch(more string) string {
	return "cutover {\n switch {\n  step \"http\" \"x\" {\n url = \"http://h/\"\n timeout = \"1s\"\n " + more + "\n }\n }\n}"
}

func TestCheckAcceptsTheWholeWalk(t *testing.T) {
	rb := parsed(t, t.TempDir(), sheet(`
cutover {
  max_write_block = "2s"
  before {
    step "approve" "go" {
      message = "Batch jobs stopped?"
      expires = "4h"
    }
  }
  switch {
    step "exec" "dns" {
      command = ["./dns.sh", "rds"]
      undo    = ["./dns.sh", "onprem"]
      timeout = "1s"
    }
    step "sql" "endpoint" {
      on        = "target"
      statement = "UPDATE infra.endpoint SET host = 'new'"
      undo      = "UPDATE infra.endpoint SET host = 'old'"
      timeout   = "200ms"
    }
    step "http" "lb" {
      url     = "https://lb.example.com/pools/shop"
      method  = "PATCH"
      body    = jsonencode({ member = "rds" })
      timeout = "500ms"
      undo { body = jsonencode({ member = "onprem" }) }
    }
  }
  after {
    step "http" "health" {
      url     = "https://shop.example.com/healthz"
      retries = 30
    }
    step "notify" "done" {
      url     = "https://hooks.example.com/x"
      shape   = "slack"
      message = "moved"
    }
  }
}
`), nil)
	if diags := Check(rb); len(diags) > 0 {
		t.Errorf("Check complains: %s", printed(t, rb, diags))
	}
}

func TestFingerprintHidesSecretsAndSeesChanges(t *testing.T) {
	build := func(url, secret string) engine.Step {
		return oneStep(t, &Env{}, Before, t.TempDir(), `step "http" "x" { url = "`+url+`${var.secret}" }`, map[string]string{"SECRET": secret})
	}
	a, b, c := build("https://h/", "hunter22"), build("https://h/", "other-secret"), build("https://other/", "hunter22")
	if a.Fingerprint() != b.Fingerprint() {
		t.Error("a sensitive value changes the fingerprint")
	}
	p, err := a.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "hunter22") {
		t.Errorf("the plan holds the secret: %s", text)
	}
	plain := oneStep(t, &Env{}, Before, t.TempDir(), `step "http" "x" { url = "https://h/" }`, nil)
	other := oneStep(t, &Env{}, Before, t.TempDir(), `step "http" "x" { url = "https://other/" }`, nil)
	if plain.Fingerprint() == other.Fingerprint() || c.ID() != "copy.before.http.x" {
		t.Errorf("fingerprint does not see the url, or the id %s is wrong", c.ID())
	}
}

func TestRedactorKnowsTheFormsOfASecret(t *testing.T) {
	secret := `p"a\s<s&w/ö rd`
	r := NewRedactor([]string{secret, "ab"})
	quoted, err := json.Marshal(map[string]string{"k": secret})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{secret, string(quoted), strings.ReplaceAll(string(quoted), "/", `\/`), `{"k":"p\"a\\s<s&w\/ö rd"}`, fmt.Sprintf("%q", secret), "postgresql://u:p%22a%5Cs%3Cs&w%2F%C3%B6%20rd@h/db"} {
		if got := r.String(text); !strings.Contains(got, hidden) {
			t.Errorf("%s is not masked: %s", text, got)
		}
	}
	if got := r.String(`tab "ab"`); got != `tab "(sensitive)"` {
		t.Errorf("short secret: %s", got)
	}
	var b bytes.Buffer
	if n, err := r.Writer(&b).Write([]byte(secret)); err != nil || n != len(secret) || b.String() != hidden {
		t.Errorf("writer: %d %v %s", n, err, b.String())
	}
}

// Of text that was cut, the end may be the beginning of a secret.
func TestRedactorMasksWhatACutLeaves(t *testing.T) {
	r := NewRedactor([]string{"hunter22", "hunter22/hunters"})
	for text, want := range map[string]string{
		"x hunter2": "x (sensitive)", "x h": "x (sensitive)", "x hunter22": "x (sensitive)", "x hunter22/hunt": "x (sensitive)/(sensitive)", "x y": "x y", "": "",
		"hunter22 hunter22 hu": "(sensitive) (sensitive) (sensitive)",
	} {
		if got := r.Cut(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

// Commands print a secret of several lines as lines, and each is an event of its own.
func TestRedactorKnowsTheLinesOfASecret(t *testing.T) {
	r := NewRedactor([]string{"-----BEGIN KEY-----\nMIIEvQIBADANBgkq\n  c2Vjb25kIGxpbmU=\r\n}\n"})
	for _, line := range []string{"MIIEvQIBADANBgkq", "+ c2Vjb25kIGxpbmU=", "a MIIEvQIBADANBgkq b"} {
		if got := r.String(line); !strings.Contains(got, hidden) || strings.Contains(got, "MII") || strings.Contains(got, "c2V") {
			t.Errorf("%s is not masked: %s", line, got)
		}
	}
	if got := r.String("{ x }"); got != "{ x }" {
		t.Errorf("a line of the secret that may stand anywhere: %s", got)
	}
}

package runbook

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// stepOf parses one step of kind "k" with the given body.
func stepOf(t *testing.T, body string) StepBlock {
	t.Helper()
	rb, diags := Parse("t.hcl", []byte(prelude+"variable \"v\" { default = \"x\" }\ncopy {\n  after {\n    step \"k\" \"n\" {\n"+body+"\n    }\n  }\n}\n"), Options{Getenv: noEnv})
	if diags.HasErrors() {
		t.Fatal(printed(t, rb, diags))
	}
	return rb.Hooks["copy"].After[0]
}

func TestBodyGetters(t *testing.T) {
	b := DecodeBody(stepOf(t, `
      s = "a ${var.v}"
      n = 5
      b = false
      l = ["a", 1]
      e = []
      m = { k = "v", n = 2 }
      d = "1m"
      z = "0s"
      size = "1KiB"
      word = "two"
      null = null
`))
	type all struct {
		S, Missing, Word, DefaultWord string
		N, DefaultN, Size             int64
		B, DefaultB                   bool
		L, E, NoList                  []string
		M                             map[string]string
		D, Z, DefaultD                time.Duration
		Has, HasNull, KnownNull       bool
	}
	got := all{
		S: b.String("s"), Missing: b.String("missing"), Word: b.Enum("word", "one", "one", "two"), DefaultWord: b.Enum("word2", "one", "one", "two"),
		N: b.Int("n", 1, 1), DefaultN: b.Int("n2", 7, 1), Size: b.Size("size", 1),
		B: b.Bool("b", true), DefaultB: b.Bool("b2", true),
		L: b.Strings("l"), E: b.Strings("e"), NoList: b.Strings("l2"), M: b.Map("m"),
		D: b.Duration("d", 1), Z: b.DurationOrZero("z", 5), DefaultD: b.Duration("d2", time.Hour),
		Has: b.Has("s"), HasNull: b.Has("null"), KnownNull: b.Known("null"),
	}
	want := all{
		S: "a x", Word: "two", DefaultWord: "one", N: 5, DefaultN: 7, Size: 1024, DefaultB: true,
		L: []string{"a", "1"}, E: []string{}, M: map[string]string{"k": "v", "n": "2"},
		D: time.Minute, DefaultD: time.Hour, Has: true, HasNull: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	if diags := b.Done(); len(diags) > 0 {
		t.Errorf("mistakes: %v", diags)
	}
}

func TestBodyMistakes(t *testing.T) {
	b := DecodeBody(stepOf(t, `
      mesage = "x"
      n      = -1
      word   = "twoo"
      d      = "5 minutes"
      l      = [null]
      own    = "x"
      env {
        A = "b"
      }
      other {}
`))
	_, _ = b.String("message"), b.SensitiveMap("env")
	_, _, _ = b.Int("n", 0, 0), b.Enum("word", "one", "one", "two"), b.Duration("d", time.Second)
	_ = b.Strings("l")
	b.Require("message", "n")
	b.Errorf("own", "Own rule", "%q does not fit.", b.String("own"))
	var got []string
	for _, d := range tidy(b.Done()) {
		got = append(got, d.Summary+": "+d.Detail)
	}
	want := []string{
		`Missing argument: "message" is needed here. Add message = ...`,
		`Unknown argument: "mesage" is no argument of step "k". Did you mean "message"?`,
		`Number too small: n is -1 and must be at least 0.`,
		`Unknown word: "twoo" is no value of word. Did you mean "two"? Known are: "one", "two".`,
		`Bad duration: "5 minutes" is no duration; write a number and a unit, such as "500ms", "2s", "5m", "1h30m" or "3d".`,
		`Empty list element: An element of l is null. Remove it or write text.`,
		`Own rule: "x" does not fit.`,
		`Unknown block: "env" is an argument. Write it with an equals sign: env = ...`,
		`Unknown block: "other" is no block of step "k". It takes the arguments message, env, n, word, d, l, own.`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mistakes (-want +got):\n%s", diff)
	}
}

func TestBodyReadFile(t *testing.T) {
	text := prelude + "copy {\n  after {\n    step \"sql\" \"x\" { file = \"x.sql\" }\n  }\n}\n"
	rb, diags := loadWith(t, map[string]string{"t.hcl": text, "x.sql": "SELECT 1", "y.sql": "SELECT 2"}, Options{})
	if diags.HasErrors() || string(rb.Files["x.sql"]) != "SELECT 1" {
		t.Fatalf("file is not pinned: %v", diags)
	}
	step, digest := rb.Hooks["copy"].After[0], rb.Digest
	if data, err := step.ReadFile("./x.sql"); err != nil || string(data) != "SELECT 1" || rb.Digest != digest {
		t.Errorf("x.sql: %q %v", data, err)
	}
	if data, err := step.ReadFile("y.sql"); err != nil || string(data) != "SELECT 2" || rb.Digest == digest {
		t.Errorf("y.sql is not pinned: %q %v", data, err)
	}
	if _, err := step.ReadFile("../x.sql"); err == nil || !strings.Contains(err.Error(), "beside the runbook") {
		t.Errorf("a file outside the folder: %v", err)
	}
	if _, err := step.ReadFile("none.sql"); err == nil {
		t.Error("a missing file is read")
	}
}

func TestSuggestKind(t *testing.T) {
	known := []string{"approve", "exec", "sql", "http", "wait", "notify"}
	for got, want := range map[string]string{
		"aprove": "approve", "exce": "exec", "EXEC": "exec", "sqll": "sql", "https": "http", "ssh": "", "email": "", "x": "", "": "",
	} {
		if s := SuggestKind(got, known); s != want {
			t.Errorf("SuggestKind(%q) is %q, want %q", got, s, want)
		}
	}
}

// TestBodyBlock: a block in a step's body reads alike in both forms of the language, and its secrets are kept.
func TestBodyBlock(t *testing.T) {
	t.Chdir("testdata/valid")
	for _, name := range []string{"switch.runbook.hcl", "switch.runbook.json"} {
		rb, diags := Load(name, Options{Getenv: envOf(map[string]string{"LB_TOKEN": "hunter2-token"})})
		if diags.HasErrors() {
			t.Fatal(printed(t, rb, diags))
		}
		b := DecodeBody(rb.Cutover.Switch[0])
		_, _, _, _ = b.String("url"), b.String("method"), b.SensitiveMap("headers"), b.Duration("timeout", 0)
		if got := b.String("body"); got != `{"member":"new"}` {
			t.Errorf("%s: body is %s", name, got)
		}
		undo := b.Block("undo")
		if undo == nil || undo.String("body") != `{"member":"old"}` || undo.Has("url") || b.Block("other") != nil {
			t.Errorf("%s: undo is %+v", name, undo)
		}
		if diags := b.Done(); len(diags) > 0 {
			t.Errorf("%s: mistakes: %v", name, diags)
		}
	}
	rb, diags := Parse("t.hcl", []byte(prelude+`variable "v" {
  sensitive = true
  default   = env("V")
}
copy {
  after {
    step "k" "s" {
      inner {
        own { a = "x-${var.v}" }
      }
    }
  }
}
`), Options{Getenv: envOf(map[string]string{"V": "hunter2"})})
	if diags.HasErrors() || rb.secrets.clean("x-hunter2") != hidden {
		t.Errorf("a secret made in a block is printed as %s: %v", rb.secrets.clean("x-hunter2"), diags)
	}
	b := DecodeBody(rb.Hooks["copy"].After[0])
	if b.Block("inner"); len(b.Done()) != 1 {
		t.Errorf("the unknown block in a block: %v", b.Done())
	}
	empty, diags := Parse("t.runbook.json", []byte(`{"runbook": {"x": {}}, "source": {"service": "a"}, "target": {"service": "b"}, "copy": {"after": {"step": {"k": {"s": {"undo": [], "more": "x"}}}}}}`), Options{})
	if diags.HasErrors() {
		t.Fatal(printed(t, empty, diags))
	}
	b = DecodeBody(empty.Hooks["copy"].After[0])
	if b.Block("undo") != nil || b.Block("more") != nil || len(b.Done()) < 2 {
		t.Errorf("blocks that hold nothing: %v", b.Done())
	}
}

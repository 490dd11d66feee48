package runbook

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"pgregory.net/rapid"
)

func TestFormat(t *testing.T) {
	src := "copy{\nworkers=2 # two\n    chunk   = \"1MiB\"\n\n\n}\n\n\n"
	want := "copy {\n  workers = 2 # two\n  chunk   = \"1MiB\"\n\n\n}\n"
	got, diags := Format("t.hcl", []byte(src))
	if string(got) != want || len(diags) > 0 {
		t.Errorf("formatted %q %v", got, diags)
	}
	for _, broken := range []string{"copy {\n  workers=2\n", "a = = 1\n", "copy\n{\n}\n", "\xff = 1\n", "a = \"${\"\n"} {
		got, diags := Format("t.hcl", []byte(broken))
		if string(got) != broken || !diags.HasErrors() {
			t.Errorf("broken text became %q %v", got, diags)
		}
	}
	if got, diags := Format("t.hcl", nil); len(got) > 0 || len(diags) > 0 {
		t.Errorf("an empty file became %q %v", got, diags)
	}
	if _, diags := Format("t.runbook.json", []byte("{}")); !diags.HasErrors() {
		t.Error("JSON is formatted")
	}
}

// TestFormatPrints shows what fmt prints for a broken file, without its password.
func TestFormatPrints(t *testing.T) {
	src := []byte("source { url = \"postgresql://app:hunter2@old/erp }\n")
	_, diags := Format("t.hcl", src)
	var b bytes.Buffer
	if err := WriteDiagnostics(&b, diags, map[string][]byte{"t.hcl": src}, 0, false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "t.hcl line 1") || strings.Contains(b.String(), secretWord) {
		t.Errorf("%s", b.String())
	}
}

// TestFormatExamples keeps the valid files canonical.
func TestFormatExamples(t *testing.T) {
	t.Chdir("testdata/valid")
	for _, name := range runbooksHere(t) {
		if isJSON(name) {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, diags := Format(name, src); !bytes.Equal(got, src) || len(diags) > 0 {
			t.Errorf("%s is not canonical: %v\n%s", name, diags, got)
		}
	}
}

// sourceText draws text that is close to the language, valid or not.
func sourceText() *rapid.Generator[string] {
	piece := rapid.SampledFrom([]string{
		"copy {", "}", "\n", "\n\n", " ", "\t", "a", "b2", "=", " = ", "1", "\"x\"", "\"${var.a}\"", "[", "]", "{", "}", ",", "# c\n", "// d\n",
		"/* e */", "<<EOT\n  t\nEOT\n", "<<-EOT\n  t\n  EOT\n", "step \"a\" \"b\" {", "(", ")", "? 1 : 2", "a = 1\n", "bb = [1, 2]\n", "c = {\n", ".", "\r\n",
		"x {}\n", "y { a = 1 }\n", "-", "!", "for", "in", ":", "=>", "...", "é",
	})
	return rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(piece, 0, 40).Draw(t, "pieces"), "")
	})
}

func TestFormatProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := []byte(sourceText().Draw(t, "src"))
		once, diags := Format("t.hcl", src)
		_, parse := hclsyntax.ParseConfig(src, "t.hcl", hcl.InitialPos)
		if parse.HasErrors() != diags.HasErrors() {
			t.Fatalf("Format and the parser disagree on %q", src)
		}
		if diags.HasErrors() {
			if !bytes.Equal(once, src) {
				t.Fatalf("broken text changed: %q to %q", src, once)
			}
			return
		}
		twice, diags := Format("t.hcl", once)
		if diags.HasErrors() || !bytes.Equal(once, twice) {
			t.Fatalf("formatting twice differs:\n%q\n%q\n%q\n%v", src, once, twice, diags)
		}
	})
}

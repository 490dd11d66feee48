package runbook

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
)

// sources are the files that diagnostics quote, by the name in their ranges. Quoted bytes are
// masked; ranges stay valid because masks keep every length until they are printed.
type sources struct {
	files   map[string]*hcl.File
	masks   map[string][]hcl.Range
	secrets *secretSet
}

func newSources() *sources {
	return &sources{files: map[string]*hcl.File{}, masks: map[string][]hcl.Range{}, secrets: &secretSet{}}
}

func (s *sources) add(name string, file *hcl.File) { s.files[name] = file }

// slice returns the text of a range, or nil.
func (s *sources) slice(r *hcl.Range) []byte {
	if r == nil || s.files[r.Filename] == nil || !r.CanSliceBytes(s.files[r.Filename].Bytes) {
		return nil
	}
	return r.SliceBytes(s.files[r.Filename].Bytes)
}

// hide keeps a range out of every excerpt: a literal secret stands there.
func (s *sources) hide(r hcl.Range) { s.masks[r.Filename] = append(s.masks[r.Filename], r) }

// printable returns the files with every secret blotted out.
func (s *sources) printable() map[string]*hcl.File {
	out := make(map[string]*hcl.File, len(s.files))
	for name, f := range s.files {
		out[name] = &hcl.File{Bytes: s.masked(name), Nav: f.Nav}
	}
	return out
}

func (s *sources) masked(name string) []byte {
	masked := maskSource(s.files[name].Bytes, s.masks[name])
	for _, secret := range s.secrets.values {
		if len(secret) < 4 {
			continue
		}
		for from := 0; ; {
			i := bytes.Index(masked[from:], []byte(secret))
			if i < 0 {
				break
			}
			from += i + len(secret)
			blot(masked[from-len(secret) : from])
		}
	}
	return masked
}

// WriteDiagnostics prints diagnostics of this runbook, or of its steps, for people: severity,
// place, source excerpt, cause and fix, in the order of the file and each once. Width 0 does not
// wrap. No secret is printed, neither in text nor in an excerpt.
func (r *Runbook) WriteDiagnostics(w io.Writer, diags hcl.Diagnostics, width int, color bool) error {
	var text bytes.Buffer
	out := hcl.NewDiagnosticTextWriter(&text, r.sources.printable(), uint(max(width, 0)), color)
	for _, d := range tidy(diags) {
		if err := out.WriteDiagnostic(r.scrubbed(d)); err != nil {
			return fmt.Errorf("printing diagnostics: %w", err)
		}
	}
	if _, err := io.WriteString(w, collapse(text.String())); err != nil {
		return fmt.Errorf("printing diagnostics: %w", err)
	}
	return nil
}

// WriteDiagnostics prints diagnostics without a Runbook, such as those of Format, with excerpts
// from files by name. What looks like a password in them is masked.
func WriteDiagnostics(w io.Writer, diags hcl.Diagnostics, files map[string][]byte, width int, color bool) error {
	r := &Runbook{sources: newSources(), secrets: &secretSet{}}
	for name, src := range files {
		r.sources.add(name, &hcl.File{Bytes: src})
	}
	return r.WriteDiagnostics(w, diags, width, color)
}

func (r *Runbook) scrubbed(d *hcl.Diagnostic) *hcl.Diagnostic {
	c := *d
	r.secrets.scrub(&c)
	return &c
}

// tidy sorts diagnostics by their place (those without one come first) and drops repetitions: an expression that two readers
// evaluate complains twice.
func tidy(diags hcl.Diagnostics) hcl.Diagnostics {
	out := slices.Clone(diags)
	slices.SortStableFunc(out, func(a, b *hcl.Diagnostic) int {
		switch {
		case a.Subject == nil && b.Subject == nil:
			return 0
		case a.Subject == nil:
			return -1
		case b.Subject == nil:
			return 1
		}
		if c := strings.Compare(a.Subject.Filename, b.Subject.Filename); c != 0 {
			return c
		}
		return a.Subject.Start.Byte - b.Subject.Start.Byte
	})
	seen := map[string]bool{}
	return slices.DeleteFunc(out, func(d *hcl.Diagnostic) bool {
		key := fmt.Sprintf("%d\x00%s\x00%s\x00%v", d.Severity, d.Summary, d.Detail, d.Subject)
		again := seen[key]
		seen[key] = true
		return again
	})
}

// SuggestKind returns the known word that is nearest to got, or "" when none is near enough to
// be a slip of the finger.
func SuggestKind(got string, known []string) string {
	best, bestDistance := "", 3
	for _, word := range known {
		a, b := strings.ToLower(got), strings.ToLower(word)
		d := levenshtein.Distance(a, b, nil)
		if d == 2 && sameLetters(a, b) {
			d = 1 // two letters changed places
		}
		// Two changes make any short word into any other: ssh is no slip for sql.
		if d < bestDistance && (d < 2 || utf8.RuneCountInString(word) > 3) {
			best, bestDistance = word, d
		}
	}
	return best
}

func sameLetters(a, b string) bool {
	x, y := []rune(a), []rune(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// didYouMean returns a sentence with the nearest word, if there is one, and with all of them.
func didYouMean(got string, known []string) string {
	all := fmt.Sprintf("Known are: %s.", quoteAll(known))
	if len(known) == 0 {
		all = "It declares none."
	}
	if s := SuggestKind(got, known); s != "" && s != got {
		return fmt.Sprintf("Did you mean %q? %s", s, all)
	}
	return all
}

func quoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(quoted, ", ")
}

func capitalize(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 || strings.ContainsAny(strings.SplitN(s, " ", 2)[0], "/.:_") {
		return s
	}
	return string(unicode.ToUpper(r)) + s[n:]
}

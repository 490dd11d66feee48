package runbook

import (
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// hidden stands in every output where a secret stood.
const hidden = "(sensitive)"

// mark is the cty mark of a sensitive value. Marks travel through expressions, so what is
// computed from a sensitive value is sensitive.
type mark string

const sensitive mark = "sensitive"

// secretSet collects the secret strings of one runbook.
type secretSet struct{ values []string }

// add notes one secret, and when it is a connection string the password in it. A password is
// noted as written and decoded: servers and drivers print either.
func (s *secretSet) add(value string) {
	s.insert(value)
	if pw, raw := connPassword(value); pw != "" {
		s.insert(pw)
		s.insert(raw)
	}
}

func (s *secretSet) insert(value string) {
	if strings.TrimSpace(value) == "" || slices.Contains(s.values, value) {
		return
	}
	s.values = append(s.values, value)
	// Longest first, so that a whole URL is replaced before the password inside it.
	slices.SortStableFunc(s.values, func(a, b string) int { return len(b) - len(a) })
}

// addValue notes every string inside v, which is sensitive as a whole.
func (s *secretSet) addValue(v cty.Value) {
	v, _ = v.UnmarkDeep()
	for _, text := range texts(v) {
		s.add(text)
	}
}

// addMarked notes every string inside v that carries the mark.
func (s *secretSet) addMarked(v cty.Value) {
	if !v.ContainsMarked() {
		return
	}
	_ = cty.Walk(v, func(_ cty.Path, part cty.Value) (bool, error) {
		if part.IsMarked() {
			s.addValue(part)
			return false, nil
		}
		return true, nil
	})
}

// clean replaces every secret in text. A secret of up to three bytes is replaced only in
// quotes: it may be a part of any word.
func (s *secretSet) clean(text string) string {
	for _, v := range s.values {
		if len(v) < 4 {
			text = strings.ReplaceAll(text, `"`+v+`"`, `"`+hidden+`"`)
			continue
		}
		text = strings.ReplaceAll(text, v, hidden)
	}
	return text
}

// scrub takes secrets out of what a diagnostic would print beside the source excerpt.
func (s *secretSet) scrub(d *hcl.Diagnostic) {
	d.Summary, d.Detail = maskText(s.clean(d.Summary)), maskText(s.clean(d.Detail))
	if d.Expression == nil || d.EvalContext == nil {
		return
	}
	// The printer shows the values of the names that an expression uses.
	for _, traversal := range d.Expression.Variables() {
		v, diags := traversal.TraverseAbs(d.EvalContext)
		if diags.HasErrors() || s.in(v) {
			d.Expression, d.EvalContext = nil, nil
			return
		}
	}
}

// in reports whether v is, or holds, a secret.
func (s *secretSet) in(v cty.Value) bool {
	if v.ContainsMarked() {
		return true
	}
	return slices.ContainsFunc(texts(v), s.inString)
}

func (s *secretSet) inString(text string) bool {
	if pw, _ := connPassword(text); pw != "" {
		return true
	}
	return s.clean(text) != text
}

// Secrets returns every string of the runbook that must not be printed: the values of sensitive
// variables, what steps compute from them, and the passwords in connection strings, longest
// first. It is for the layer that writes logs and events.
func (r *Runbook) Secrets() []string { return slices.Clone(r.secrets.values) }

// Redact returns a copy without secrets and without the means to compute them, the bodies of
// steps included, for plans.
// Connection strings that came from sensitive values are replaced as a whole.
func (r *Runbook) Redact() *Runbook {
	c := *r
	c.eval, c.sources = nil, nil
	c.Source, c.Target = r.redactServer(r.Source), r.redactServer(r.Target)
	c.Cutover.ClosedMessage = r.secrets.clean(r.Cutover.ClosedMessage)
	c.Cutover.Poolers = slices.Clone(r.Cutover.Poolers)
	for i := range c.Cutover.Poolers {
		p := &c.Cutover.Poolers[i]
		p.Admin = r.redact(p.Admin)
		p.Connect = r.redact(p.Connect)
	}
	c.Cutover.Switch = redactSteps(r.Cutover.Switch)
	c.Hooks = make(map[string]Hooks, len(r.Hooks))
	for phase, h := range r.Hooks {
		c.Hooks[phase] = Hooks{Before: redactSteps(h.Before), After: redactSteps(h.After)}
	}
	c.secrets = &secretSet{}
	return &c
}

func (r *Runbook) redactServer(s Server) Server {
	s.URL = r.redact(s.URL)
	s.PasswordCommand = slices.Clone(s.PasswordCommand)
	return s
}

func (r *Runbook) redact(text string) string {
	if r.secrets.inString(text) {
		return hidden
	}
	return text
}

func redactSteps(steps []StepBlock) []StepBlock {
	out := slices.Clone(steps)
	for i := range out {
		out[i].Body, out[i].Eval, out[i].files, out[i].secrets = nil, nil, nil, nil
	}
	return out
}

// Passwords as they stand in source text, for excerpts: user:password@ and password=.
// After the colon everything up to the end of the string is covered, since an unescaped
// password may hold any character.
var (
	sourceURL    = regexp.MustCompile(`://[^:@/?"\s]*:([^"\n]*)@`)
	sourceOption = regexp.MustCompile(`(?i)password(?:=|\s*=\s*")(?:'((?:[^'\\\n]|\\.)*)'?|([^\s"'&]+))`)
)

// maskText blots out what looks like a password in a message: a function may repeat its argument.
func maskText(text string) string { return collapse(string(maskSource([]byte(text), nil))) }

// maskSource blots out, byte for byte so that ranges keep their meaning, whatever looks like a
// password and the ranges that are known to hold one.
func maskSource(src []byte, ranges []hcl.Range) []byte {
	out := slices.Clone(src)
	for _, re := range []*regexp.Regexp{sourceURL, sourceOption} {
		for _, m := range re.FindAllSubmatchIndex(src, -1) {
			for g := 2; g+1 < len(m); g += 2 {
				if m[g] >= 0 {
					blot(out[m[g]:m[g+1]])
				}
			}
		}
	}
	for _, r := range ranges {
		if r.Start.Byte >= 0 && r.Start.Byte <= r.End.Byte && r.End.Byte <= len(out) {
			blot(out[r.Start.Byte:r.End.Byte])
		}
	}
	return out
}

func blot(text []byte) {
	for i, c := range text {
		switch c {
		case '"', '\n', '\r':
		default:
			text[i] = blotted
		}
	}
}

// blotted stands for each byte of a secret until the text is printed: ranges keep their meaning.
const blotted = '\x01'

var blottedRun = regexp.MustCompile(`\x01+(?:"+\x01+)*`)

// collapse gives every mask the same length, so that none tells that of its secret.
func collapse(text string) string { return blottedRun.ReplaceAllString(text, "********") }

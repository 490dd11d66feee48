package runbook

import (
	"regexp"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// override is the connection string that takes the place of a side's own.
func (l *loader) override(side string) string {
	if side == "source" {
		return l.opts.SourceURL
	}
	return l.opts.TargetURL
}

// overridden puts that connection string into a server's settings. A command for the password is for the
// way that the runbook knows.
func (l *loader) overridden(s Server, url string) Server {
	s.URL, s.URLKnown, s.Service, s.InheritEnv = url, true, "", false
	if pw, raw := connPassword(url); pw != "" {
		l.rb.secrets.insert(pw)
		l.rb.secrets.insert(raw)
		s.PasswordCommand = nil
	}
	return s
}

var (
	variableUse = regexp.MustCompile(`\bvar\.([A-Za-z_][\w-]*)`)
	otherUse    = regexp.MustCompile(`\bvar\b(?:[^.]|\.[^A-Za-z_]|$)`)
)

// spared gives the variables that nothing reads but a url that another one takes the place of. It looks
// at the text, so that it rather spares too little.
func (l *loader) spared(content *hcl.BodyContent) map[string]bool {
	urls := map[string]int{}
	for _, side := range []string{"source", "target"} {
		for _, block := range content.Blocks.OfType(side) {
			attrs, _ := block.Body.JustAttributes()
			if attr := attrs["url"]; attr != nil && l.override(side) != "" {
				at := attr.Expr.Range()
				count(urls, l.code(at.SliceBytes(l.rb.Text)))
			}
		}
	}
	if len(urls) == 0 {
		return nil
	}
	all, text := map[string]int{}, l.code(l.rb.Text)
	if otherUse.MatchString(text) {
		return nil
	}
	count(all, text)
	out := map[string]bool{}
	for name, n := range urls {
		out[name] = all[name] == n
	}
	return out
}

func count(uses map[string]int, text string) {
	for _, m := range variableUse.FindAllStringSubmatch(text, -1) {
		uses[m[1]]++
	}
}

// code is a text without its comments.
func (l *loader) code(src []byte) string {
	if isJSON(l.rb.Path) {
		return string(src)
	}
	tokens, _ := hclsyntax.LexConfig(src, l.rb.Path, hcl.InitialPos)
	out := make([]byte, 0, len(src))
	last := 0
	for _, t := range tokens {
		if t.Type == hclsyntax.TokenComment {
			out = append(append(out, src[last:t.Range.Start.Byte]...), '\n')
			last = t.Range.End.Byte
		}
	}
	return string(append(out, src[last:]...))
}

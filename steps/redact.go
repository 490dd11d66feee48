package steps

import (
	"encoding/json"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// hidden stands in every output where a secret stood.
const hidden = "(sensitive)"

// Redactor masks secrets in text: as they are, and as JSON, Go quotes and URLs write them.
type Redactor struct {
	replacer *strings.Replacer
	forms    []string // the longest first
}

// secretLine is the shortest line of a secret of several that is masked by itself: a key in a file's form, a
// service account's JSON. Shorter ones, such as a brace, may stand anywhere.
const secretLine = 8

// NewRedactor makes one for a set of secrets. A secret of up to three bytes is masked only in
// quotes: it may be a part of any word. One of several lines is masked line by line too, as commands print it.
func NewRedactor(secrets []string) *Redactor {
	var forms []string
	add := func(s string) {
		if s != "" && !slices.Contains(forms, s) {
			forms = append(forms, s)
		}
	}
	for _, s := range secrets {
		if strings.TrimSpace(s) == "" {
			continue
		}
		if len(s) < 4 {
			add(`"` + s + `"`)
			continue
		}
		add(s)
		for line := range strings.Lines(s) {
			if line = strings.TrimSpace(line); len(line) >= secretLine {
				add(line)
			}
		}
		quoted := []string{unquoted(strconv.Quote(s))}
		if b, err := json.Marshal(s); err == nil {
			quoted = append(quoted, unquoted(string(b)))
		}
		for _, q := range quoted {
			add(q)
			add(strings.ReplaceAll(q, "/", `\/`)) // PHP's JSON, among others
		}
		add(url.QueryEscape(s))
		add(url.PathEscape(s))
		if u := url.UserPassword("u", s).String(); len(u) > 2 {
			add(u[2:])
		}
	}
	// Longest first: a whole URL goes before the password inside it.
	slices.SortStableFunc(forms, func(a, b string) int { return len(b) - len(a) })
	r := &Redactor{forms: forms}
	pairs := make([]string, 0, 2*len(forms))
	for _, f := range forms {
		mask := hidden
		if strings.HasPrefix(f, `"`) && len(f) < 6 {
			mask = `"` + hidden + `"`
		}
		pairs = append(pairs, f, mask)
	}
	r.replacer = strings.NewReplacer(pairs...)
	return r
}

func unquoted(s string) string { return s[1 : len(s)-1] }

// String masks text.
func (r *Redactor) String(text string) string {
	if r == nil {
		return text
	}
	return r.replacer.Replace(text)
}

// Cut masks text that was cut at its end, where a secret may have been parted: the beginning of one is masked as well.
func (r *Redactor) Cut(text string) string {
	if r == nil {
		return text
	}
	text = r.String(text)
	parted := 0
	for _, f := range r.forms {
		for n := min(len(f)-1, len(text)); n > parted; n-- {
			if strings.HasSuffix(text, f[:n]) {
				parted = n
			}
		}
	}
	if parted > 0 {
		text = text[:len(text)-parted] + hidden
	}
	return text
}

// Writer masks what is written to w. Each Write is masked on its own, so a secret must not be
// split over two; loggers and encoders write whole lines.
func (r *Redactor) Writer(w io.Writer) io.Writer { return redactWriter{r: r, w: w} }

type redactWriter struct {
	r *Redactor
	w io.Writer
}

// Write reports len(p) on success, whatever the masked text's length.
func (w redactWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.w, w.r.String(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// keywordPassword finds passwords in a keyword=value connection string.
var keywordPassword = regexp.MustCompile(`(?i)(?:^|[\s?&])(?:ssl)?password\s*=\s*(?:'((?:[^'\\]|\\.)*)'|([^\s&]+))`)

// Passwords finds what must not be shown of a connection string of either form: each password as
// it is written and as it is meant.
func Passwords(conn string) []string {
	var out []string
	if u, err := url.Parse(conn); err == nil && u.User != nil {
		if pw, ok := u.User.Password(); ok && pw != "" {
			out = append(out, pw)
		}
	}
	if _, rest, ok := strings.Cut(conn, "://"); ok {
		if i := strings.LastIndex(rest, "@"); i >= 0 {
			if _, pw, ok := strings.Cut(rest[:i], ":"); ok && pw != "" {
				out = append(out, pw)
			}
		}
	}
	for _, m := range keywordPassword.FindAllStringSubmatch(conn, -1) {
		out = append(out, m[1]+m[2])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

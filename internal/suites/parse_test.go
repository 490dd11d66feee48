package suites_test

import (
	"regexp"
	"strings"
	"testing"
)

// spec is a file of src/test/isolation/specs, taken apart as far as we need (its README says how
// they are written).
type spec struct {
	setup, teardown []string // SQL, one message each
	rest            string   // from the first session on
}

// parseSpec reads a spec: blocks of setup and teardown come first, in braces that SQL in them never holds.
func parseSpec(text string) spec {
	var s spec
	word := ""
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '#':
			i += strings.IndexByte(text[i:]+"\n", '\n')
			word = ""
		case c == '{':
			end := i + strings.IndexByte(text[i:], '}')
			body := text[i+1 : end]
			if word == "setup" {
				s.setup = append(s.setup, body)
			} else {
				s.teardown = append(s.teardown, body)
			}
			i, word = end, ""
		case c >= 'a' && c <= 'z':
			word += string(c)
			if word == "session" {
				s.rest = text[i+1-len(word):]
				return s
			}
		case word != "setup" && word != "teardown":
			word = ""
		}
	}
	return s
}

var dollar = regexp.MustCompile(`^\$[A-Za-z_0-9]*\$`)

// split cuts SQL into statements.
func split(text string) []string {
	var out []string
	begin := 0
	add := func(end int) {
		if s := strings.TrimSpace(text[begin:end]); s != "" {
			out = append(out, s)
		}
		begin = end + 1
	}
	skip := func(i int, to string) int { // to the end of what is quoted
		if n := strings.Index(text[i:], to); n >= 0 {
			return i + n + len(to) - 1
		}
		return len(text)
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\'' || c == '"':
			i = skip(i+1, string(c))
		case strings.HasPrefix(text[i:], "--"):
			i = skip(i, "\n")
		case strings.HasPrefix(text[i:], "/*"):
			i = skip(i, "*/")
		case c == '$' && dollar.MatchString(text[i:]):
			tag := dollar.FindString(text[i:])
			i = skip(i+len(tag), tag)
		case c == ';':
			add(i)
		}
	}
	if begin < len(text) {
		add(len(text))
	}
	return out
}

var (
	comment = regexp.MustCompile(`(?m)--.*$|/\*(?s:.*?)\*/`)
	rowsOf  = regexp.MustCompile(`(?i)^\s*(INSERT|UPDATE|DELETE|WITH|SELECT)\b`)
)

// fills are the statements of setup that only make rows.
func (s spec) fills() []string {
	var out []string
	for _, block := range s.setup {
		for _, sql := range split(block) {
			if rowsOf.MatchString(comment.ReplaceAllString(sql, "")) {
				out = append(out, sql)
			}
		}
	}
	return out
}

func TestParseSpec(t *testing.T) {
	s := parseSpec("# a setup { } of words\nsetup\n{\n CREATE TABLE a (i int); INSERT INTO a VALUES (1); -- x;\n INSERT INTO a SELECT ';' || $$;$$;\n}\nsetup { VACUUM a; }\nteardown { DROP TABLE a; }\n\nsession s1\nsetup { BEGIN; }\nstep x { COMMIT; }\n")
	if len(s.setup) != 2 || len(s.teardown) != 1 || !strings.HasPrefix(s.rest, "session s1\nsetup { BEGIN; }") {
		t.Fatalf("%q", s)
	}
	if f := s.fills(); len(f) != 2 || f[0] != "INSERT INTO a VALUES (1)" || !strings.HasSuffix(f[1], "INSERT INTO a SELECT ';' || $$;$$") {
		t.Errorf("%q", f)
	}
	if got := split("a 'it''s;' ; b /* ; */; c"); len(got) != 3 {
		t.Errorf("%q", got)
	}
}

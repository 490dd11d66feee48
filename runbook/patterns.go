package runbook

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// compiled is a pattern taken apart. Names are compared by regular expressions as psql does
// (PostgreSQL docs, psql, "Patterns").
type compiled struct {
	schema, table *regexp.Regexp
	exact         bool
	canonical     string // equal for patterns that mean the same
}

var patternCache sync.Map // text to *compiled; patterns are matched against every table

// Match reports whether the pattern covers a table. Names are as in the catalog: no quotes,
// no folding. A malformed pattern and the schemas of PostgreSQL and of pgrunbook match nothing.
func (p Pattern) Match(schema, table string) bool {
	if systemSchema(schema) {
		return false
	}
	c, err := p.compile()
	return err == nil && c.schema.MatchString(schema) && c.table.MatchString(table)
}

// Exact reports whether the pattern names one table: no wildcard outside quotes.
func (p Pattern) Exact() bool {
	c, err := p.compile()
	return err == nil && c.exact
}

func systemSchema(name string) bool {
	return strings.HasPrefix(name, "pg_") || name == "information_schema" || name == "pgrunbook"
}

func (p Pattern) compile() (*compiled, error) {
	if c, ok := patternCache.Load(p.Text); ok {
		return c.(*compiled), nil //nolint:forcetypeassert // the only type stored
	}
	c, err := compilePattern(p.Text)
	if err != nil {
		return nil, err
	}
	patternCache.Store(p.Text, c)
	return c, nil
}

func compilePattern(text string) (*compiled, error) {
	parts, err := splitPattern(text)
	if err != nil {
		return nil, err
	}
	if len(parts) == 1 {
		return nil, fmt.Errorf("%q names no schema; write %q", text, "public."+text)
	}
	if len(parts) > 2 {
		return nil, fmt.Errorf("%q has more than a schema and a table; write \"schema.table\", and put a name that holds a dot in double quotes", text)
	}
	c := &compiled{exact: parts[0].exact && parts[1].exact, canonical: parts[0].expr + "." + parts[1].expr}
	for i, part := range parts {
		if part.expr == "" {
			return nil, fmt.Errorf("%q has an empty name; write \"schema.table\", or * for any name", text)
		}
		re, err := regexp.Compile("(?s)^(?:" + part.expr + ")$") // a name may hold a newline, and * covers it as in psql
		if err != nil {
			return nil, fmt.Errorf("%q is no pattern: brackets and the like stand for regular expressions as in psql; put a name that holds them in double quotes", text)
		}
		if i == 0 {
			c.schema = re
		} else {
			c.table = re
		}
	}
	if parts[0].exact && systemSchema(parts[0].plain) {
		return nil, fmt.Errorf("schema %s is never carried: the target has its own; remove %q", parts[0].plain, text)
	}
	return c, nil
}

// patternPart is the schema or the table of a pattern.
type patternPart struct {
	expr  string // regular expression
	plain string // the name, when exact
	exact bool
}

// splitPattern translates as psql's processSQLNamePattern does: outside double quotes letters
// fold to lower case, * is any text, ? any character, $ itself, and other special characters
// are those of regular expressions; inside quotes everything is itself, and "" is a quote.
func splitPattern(text string) ([]patternPart, error) {
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("an empty pattern covers nothing; write \"schema.table\"")
	}
	parts := []patternPart{{exact: true}}
	quoted := false
	runes := []rune(text)
	for i := 0; i < len(runes); i++ {
		p, r := &parts[len(parts)-1], runes[i]
		switch {
		case r == '"' && quoted && i+1 < len(runes) && runes[i+1] == '"':
			i++
			p.literal('"')
		case r == '"':
			quoted = !quoted
		case quoted:
			p.literal(r)
		case r == '.':
			parts = append(parts, patternPart{exact: true})
		case r == '*':
			p.expr, p.exact = p.expr+".*", false
		case r == '?':
			p.expr, p.exact = p.expr+".", false
		case strings.ContainsRune(`[]()|+^{}\`, r):
			p.expr, p.exact = p.expr+string(r), false
		case r == ' ' || r == '\t' || r == '\n':
			return nil, fmt.Errorf("%q holds a space; put a name with a space in double quotes", text)
		default:
			p.literal([]rune(strings.ToLower(string(r)))[0])
		}
	}
	if quoted {
		return nil, fmt.Errorf("%q has an opening double quote without a closing one", text)
	}
	return parts, nil
}

func (p *patternPart) literal(r rune) {
	p.expr += regexp.QuoteMeta(string(r))
	p.plain += string(r)
}

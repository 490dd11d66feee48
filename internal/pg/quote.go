package pg

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Literal quotes a string for utility statements, which take no parameters
// (https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-STRINGS).
func Literal(s string) string {
	if strings.Contains(s, `\`) {
		return `E'` + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `'`, `''`) + `'`
	}
	return `'` + strings.ReplaceAll(s, `'`, `''`) + `'`
}

// Name quotes schema and object.
func Name(schema, object string) string {
	return pgx.Identifier{schema, object}.Sanitize()
}

// ParseIdentifier splits "schema.object", where double quotes make a part literal.
func ParseIdentifier(s string) (pgx.Identifier, error) {
	var parts pgx.Identifier
	for rest := s; ; {
		part, after, err := cutIdentifier(rest)
		if err != nil || part == "" {
			return nil, fmt.Errorf("%q is not a name of the form schema.object", s)
		}
		parts = append(parts, part)
		if after == "" {
			return parts, nil
		}
		if after[0] != '.' {
			return nil, fmt.Errorf("%q is not a name of the form schema.object", s)
		}
		rest = after[1:]
	}
}

func cutIdentifier(s string) (part, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		if i := strings.IndexByte(s, '.'); i >= 0 {
			return strings.ToLower(s[:i]), s[i:], nil
		}
		return strings.ToLower(s), "", nil
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), s[i+1:], nil
	}
	return "", "", fmt.Errorf("unfinished quotes")
}

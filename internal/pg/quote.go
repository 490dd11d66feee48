package pg

import (
	"fmt"
	"slices"
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

// Display writes schema and object for a person, with quotes where SQL and table patterns need them. After a dot a
// keyword needs none.
func Display(schema, object string) string {
	if slices.Contains(noSchema, schema) {
		return `"` + schema + `".` + display(object)
	}
	return display(schema) + "." + display(object)
}

func display(name string) string {
	for i, c := range name {
		if c >= 'a' && c <= 'z' || c == '_' || i > 0 && c >= '0' && c <= '9' {
			continue
		}
		return pgx.Identifier{name}.Sanitize()
	}
	return name
}

// noSchema are the key words that no schema is called without quotes: the reserved ones, and those of functions and types
// (https://www.postgresql.org/docs/current/sql-keywords-appendix.html).
var noSchema = strings.Fields(`
	all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation column
	concurrently constraint create cross current_catalog current_date current_role current_schema current_time
	current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze from
	full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit localtime
	localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references returning right
	select session_user similar some symmetric system_user table tablesample then to trailing true union unique user using
	variadic verbose when where window with`)

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

package testpg

import (
	"context"
	"regexp"
	"strings"
)

var (
	// our definitions are in the program's schema, which is left out, and triggers of these names.
	our = regexp.MustCompile(`(?m)^(-- Name: .*pgrunbook_(gate|capture).*|CREATE TRIGGER "?!?pgrunbook_.*|ALTER TABLE .* ENABLE ALWAYS TRIGGER "?!?pgrunbook_.*|-- Name: EXTENSION.*|--)$\n?`)
	// notNull are constraints that have names since 18, where a child states what it inherits.
	notNull = regexp.MustCompile(`(?m)^    CONSTRAINT \S+ NOT NULL \S+?,?\n`)
	// inherited are such names in a column's own line: a partition that was made as one has its parent's.
	inherited = regexp.MustCompile(`(?m)^(    .+) CONSTRAINT \S+ NOT NULL`)
	// lastColumn is what a line that went leaves on the one before it.
	lastColumn = regexp.MustCompile(`,\n`)
	emptyLines = regexp.MustCompile(`\n\n+`)
	views      = regexp.MustCompile(`(?ms)^CREATE (MATERIALIZED )?VIEW .*?;$`)
	// qualified are columns of a view; since 16 those of the only table that it reads are not.
	qualified = regexp.MustCompile(`\b[a-z_][a-z0-9_]*\.`)
	reads     = regexp.MustCompile(`^(CREATE|\s*FROM|.* JOIN) `)
)

// Definitions is a SchemaDump of what belongs to the application, in a form that compares between a
// source and its target of another major in the middle of a migration: without the program's schema
// and triggers, without other schemas that a test names, and without what a newer major only writes
// in another way.
func Definitions(ctx context.Context, url string, apart ...string) (string, error) {
	text, err := SchemaDump(ctx, url, append([]string{"pgrunbook"}, apart...)...)
	if err != nil {
		return "", err
	}
	text = notNull.ReplaceAllString(our.ReplaceAllString(text, ""), "")
	text = inherited.ReplaceAllString(text, "$1 NOT NULL")
	text = lastColumn.ReplaceAllString(text, "\n")
	text = views.ReplaceAllStringFunc(text, unqualified)
	return emptyLines.ReplaceAllString(text, "\n"), nil
}

// unqualified leaves the names of tables as they are where a view reads them.
func unqualified(view string) string {
	lines := strings.SplitAfter(view, "\n")
	for i, line := range lines {
		if !reads.MatchString(line) {
			lines[i] = qualified.ReplaceAllString(line, "")
		}
	}
	return strings.Join(lines, "")
}

// mostLines are shown of two texts that differ.
const mostLines = 30

// DefinitionsApart shows how the definitions of two databases differ, other schemas that a test names left out; "" where
// they are equal.
func DefinitionsApart(ctx context.Context, left, right string, apart ...string) (string, error) {
	var texts [2]string
	for i, url := range []string{left, right} {
		var err error
		if texts[i], err = Definitions(ctx, url, apart...); err != nil {
			return "", err
		}
	}
	return LinesApart(texts[0], texts[1]), nil
}

// LinesApart shows lines of one text that are not in the other, wherever they stand; "" where the texts are equal.
func LinesApart(a, b string) string {
	if a == b {
		return ""
	}
	var out []string
	minus := func(sign, x, y string) {
		have := map[string]int{}
		for l := range strings.Lines(y) {
			have[l]++
		}
		for l := range strings.Lines(x) {
			if have[l]--; have[l] < 0 && len(out) < mostLines {
				out = append(out, sign+" "+strings.TrimRight(l, "\n"))
			}
		}
	}
	minus("-", a, b)
	minus("+", b, a)
	if out == nil {
		return "the same lines, in another order"
	}
	return strings.Join(out, "\n")
}

package view

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
)

// findingGroup is like findings on several objects.
type findingGroup struct {
	engine.Finding
	objects []string
	fixes   []string // different ones
}

// maxFixes are shown of one kind; the rest need --verbose.
const maxFixes = 10

var severityOrder = []engine.Severity{engine.SeverityError, engine.SeverityWarning, engine.SeverityInfo}

// groupFindings folds findings of one code and side; the gravest come first.
func groupFindings(all []engine.Finding) []findingGroup {
	var out []findingGroup
	for _, severity := range severityOrder {
		at := map[string]int{}
		for _, f := range all {
			if f.Severity != severity {
				continue
			}
			key := f.Code + "\x00" + string(f.Side)
			i, seen := at[key]
			if !seen || f.Object == "" || out[i].Object == "" {
				i = len(out)
				at[key] = i
				out = append(out, findingGroup{Finding: f})
			}
			if f.Object != "" {
				out[i].objects = append(out[i].objects, f.Object)
			}
			if f.Fix != "" && !slices.Contains(out[i].fixes, f.Fix) {
				out[i].fixes = append(out[i].fixes, f.Fix)
			}
		}
	}
	return out
}

func writeFindings(w *planWriter, all []engine.Finding) {
	groups := groupFindings(all)
	if w.o.Verbose {
		groups = groups[:0]
		for _, severity := range severityOrder {
			for _, f := range all {
				if f.Severity == severity {
					groups = append(groups, findingGroup{Finding: f, objects: []string{f.Object}, fixes: []string{f.Fix}})
				}
			}
		}
	}
	n := w.most(len(groups), w.b.findings)
	for _, g := range groups[:n] {
		w.text(fmt.Sprintf("  %-7s %s ", g.Severity, printable(g.Code)), where(g.Side, g.objects)+g.Text)
		for i, fix := range g.fixes {
			if i == maxFixes {
				w.line("          … and %d more fixes (--verbose)", len(g.fixes)-i)
				break
			}
			if fix != "" {
				for j, part := range strings.Split(fix, "\n") { // statements, and what else there is
					w.text([]string{"          fix: ", "               "}[min(j, 1)], part)
				}
			}
		}
	}
	if n < len(groups) {
		w.line("  … and %d more kinds (--verbose)", len(groups)-n)
	}
}

// where gives "source a, b: ", or nothing.
func where(side engine.Side, objects []string) string {
	s := strings.TrimSpace(string(side) + " " + objectsText(objects, 3))
	if s == "" {
		return ""
	}
	return s + ": "
}

// objectsText gives "a, b, c and 4 more".
func objectsText(names []string, most int) string {
	names = slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == "" })
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// WriteFindings writes preflight findings alone, the gravest first.
func WriteFindings(out io.Writer, all []engine.Finding, o PlanOptions) error {
	if o.Width <= 0 {
		o.Width = defaultWidth
	}
	w := &planWriter{o: o, b: budgets[0]}
	writeFindings(w, all)
	if len(w.lines) == 0 {
		return nil
	}
	_, err := io.WriteString(out, strings.Join(w.lines, "\n")+"\n")
	return err
}

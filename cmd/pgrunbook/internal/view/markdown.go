package view

import (
	"fmt"
	"io"
	"strings"

	"github.com/pgrunbook/pgrunbook/engine"
)

// smallestMarkdown is the least room that marker, verdict and a cut mark need.
const smallestMarkdown = 512

// section is one part of the markdown; those that come later are cut first.
type section struct {
	title string // of a fold; empty is open text
	lines []string
}

// WritePlanMarkdown writes a plan for a comment on a change request: a marker comment first, by
// which the comment is found again, then verdict and risks, the rest folded. It never exceeds
// maxBytes (0 is no limit; below 512 counts as 512); what was cut is said.
func WritePlanMarkdown(out io.Writer, p *engine.Plan, maxBytes int) error {
	scope, err := scopeOf(p)
	if err != nil {
		return err
	}
	head := markdownHead(p, scope)
	sections := []section{markdownRisks(p), markdownRules(p), markdownSteps(p), markdownNotCarried(p, scope), markdownTables(scope)}
	if maxBytes > 0 {
		maxBytes = max(maxBytes, smallestMarkdown)
	}
	_, err = io.WriteString(out, fitMarkdown(head, sections, maxBytes))
	if err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	return nil
}

// PlanMarker is the first line of a plan's markdown.
func PlanMarker(name string) string {
	// "--" would end the comment (HTML standard, 13.1.6).
	return "<!-- pgrunbook:plan:" + strings.ReplaceAll(printable(name), "--", "‐‐") + " -->"
}

func markdownHead(p *engine.Plan, scope planScope) []string {
	all, _ := scope.total()
	out := []string{
		PlanMarker(p.Name), "",
		"### pgrunbook plan of `" + code(p.Name) + "`: " + md(Verdict(p)), "",
		fmt.Sprintf("%s to %s: %s, %s, %s.", server(p.Source), server(p.Target), engine.Plural(len(scope.Tables), "table"), rowsOf(all), bytesText(all.Bytes)),
	}
	if p.Predictions.WriteBlock > 0 {
		out = append(out, "Predicted: "+waitIn(p.Predictions)+"**"+predicted(p.Predictions)+"**"+md(because(p.Predictions.Why))+".")
	}
	return append(out, "Digest `"+p.Digest()+"`", "")
}

func server(i engine.Identity) string {
	var known []string
	if i.Major > 0 {
		known = append(known, fmt.Sprintf("PostgreSQL %d", i.Major))
	}
	if i.TLS != "" {
		known = append(known, md(i.TLS))
	}
	if known == nil {
		return "`" + code(i.Address) + "`"
	}
	return fmt.Sprintf("`%s` (%s)", code(i.Address), strings.Join(known, ", "))
}

// md escapes what markdown or HTML would take for markup.
func md(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "|", `\|`, "*", `\*`, "_", `\_`, "`", "\\`", "[", `\[`, "@", "&#64;").Replace(printable(s))
}

// code makes a text fit between backquotes, in a table too.
func code(s string) string {
	return strings.NewReplacer("`", "'", "|", "¦").Replace(printable(s))
}

func markdownRisks(p *engine.Plan) section {
	var s section
	for _, g := range groupFindings(p.Findings) {
		line := fmt.Sprintf("- **%s** %s %s", g.Severity, md(g.Code), md(where(g.Side, g.objects)+g.Text))
		if g.Fix != "" {
			line += " Fix: `" + code(g.Fix) + "`"
		}
		s.lines = append(s.lines, line)
	}
	for _, st := range p.Steps {
		for i, h := range st.Hazards {
			if i == 3 {
				s.lines = append(s.lines, fmt.Sprintf("- step `%s`: and %d more hazards", code(string(st.ID)), len(st.Hazards)-i))
				break
			}
			s.lines = append(s.lines, fmt.Sprintf("- %s in step `%s`: %s", md(string(h.Kind)), code(string(st.ID)), md(strings.TrimPrefix(h.Object+": "+h.Text, ": "))))
		}
	}
	if len(s.lines) > 0 {
		s.lines = append([]string{"**Findings and risks**", ""}, s.lines...)
	}
	return s
}

func markdownSteps(p *engine.Plan) section {
	s := section{title: engine.Plural(len(p.Steps), "step")}
	for i, st := range p.Steps {
		s.lines = append(s.lines, fmt.Sprintf("%d. `%s` %s%s", i+1, code(string(st.ID)), md(st.Title), md(estimateText(st.Estimate))))
		for _, g := range groupActions(st.Actions) {
			text := g.SQL
			if g.Group != "" && len(g.actions) > 1 {
				text = g.label()
			} else if text == "" {
				text = g.Object
			}
			s.lines = append(s.lines, fmt.Sprintf("   - %s: `%s`", g.On, code(strings.Join(strings.Fields(text), " "))))
		}
	}
	return s
}

func markdownRules(p *engine.Plan) section {
	s := section{title: ddlTitle}
	for _, st := range p.Steps {
		for _, r := range st.Rules {
			if s.lines == nil {
				s.lines = append(s.lines, "| change | then | how |", "|---|---|---|")
			}
			s.lines = append(s.lines, fmt.Sprintf("| %s | %s | %s |", md(r.Change), md(r.Then), md(r.How)))
		}
	}
	return s
}

func markdownNotCarried(p *engine.Plan, scope planScope) section {
	rest := notCarried(p, scope)
	s := section{title: fmt.Sprintf("Not carried: %d", len(rest))}
	for _, t := range rest {
		s.lines = append(s.lines, "- "+md(t))
	}
	return s
}

func markdownTables(scope planScope) section {
	s := section{title: engine.Plural(len(scope.Tables), "table")}
	if len(scope.Tables) > 0 {
		s.lines = append(s.lines, "| table | method | key | rows | bytes | chunks |", "|---|---|---|--:|--:|--:|")
	}
	for _, t := range scope.Tables {
		s.lines = append(s.lines, fmt.Sprintf("| `%s` | %s | `%s` | %s | %s | %s |", code(t.label()), md(t.how()), code(t.keyText()), t.rowsText(), bytesText(t.Bytes), t.chunksText()))
	}
	return s
}

const cutMark = "\n**Truncated.** %d lines are left out; the whole plan: `pgrunbook show FILE`\n"

// fitMarkdown takes lines in order until the room is used up, closing what it opened.
func fitMarkdown(head []string, sections []section, maxBytes int) string {
	var b strings.Builder
	reserve := len(cutMark) + 16 + len("\n</details>\n")
	dropped := 0
	fits := func(s string, closing int) bool {
		return maxBytes == 0 || b.Len()+len(s)+1+closing+reserve <= maxBytes
	}
	add := func(s string, closing int) bool {
		if dropped > 0 || !fits(s, closing) {
			dropped++
			return false
		}
		b.WriteString(s + "\n")
		return true
	}
	for _, l := range head {
		add(l, 0)
	}
	for _, s := range sections {
		if len(s.lines) == 0 {
			continue
		}
		if s.title == "" {
			for _, l := range append(s.lines, "") {
				add(l, 0)
			}
			continue
		}
		const end = "\n</details>\n"
		if !add("<details><summary>"+md(s.title)+"</summary>\n", len(end)) {
			dropped += len(s.lines)
			continue
		}
		for _, l := range s.lines {
			add(l, len(end))
		}
		b.WriteString(end + "\n")
	}
	if dropped > 0 {
		fmt.Fprintf(&b, cutMark, dropped)
	}
	return b.String()
}

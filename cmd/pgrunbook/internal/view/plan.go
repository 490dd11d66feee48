package view

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// PlanOptions say how a plan is written for people.
type PlanOptions struct {
	Verbose bool // every table, statement, hazard and finding; otherwise it fits some screens
	Width   int  // columns. Defaults to 100
}

// shortLines is the length that the short form stays below.
const shortLines = 200

// budget is how much of each list the short form shows at most.
type budget struct {
	findings   int // groups of like findings
	notCarried int
	actions    int // groups a step
	hazards    int // a step
	tables     int
	why        bool // each step's reason
}

// budgets are tried in order until the plan is short enough; the last one stands.
var budgets = []budget{
	{findings: 20, notCarried: 12, actions: 4, hazards: 3, tables: 30, why: true},
	{findings: 12, notCarried: 8, actions: 3, hazards: 2, tables: 20, why: true},
	{findings: 10, notCarried: 5, actions: 2, hazards: 1, tables: 15, why: true},
	{findings: 8, notCarried: 4, actions: 1, hazards: 1, tables: 10},
	{findings: 5, notCarried: 3, actions: 0, hazards: 0, tables: 10},
}

// planWriter collects lines.
type planWriter struct {
	o     PlanOptions
	b     budget
	lines []string
}

func (w *planWriter) line(format string, args ...any) {
	w.lines = append(w.lines, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

// text adds a text, wrapped.
func (w *planWriter) text(prefix, text string) {
	w.lines = append(w.lines, wrap(prefix, text, w.o.Width)...)
}

// cut adds the beginning of a text, on one line.
func (w *planWriter) cut(prefix, text string) {
	w.lines = append(w.lines, clip(prefix+printable(text), w.o.Width))
}

// most is how many of n things are shown.
func (w *planWriter) most(n, short int) int {
	if w.o.Verbose {
		return n
	}
	return min(n, short)
}

// WritePlan writes a plan for people: verdict and findings first, then every step in order, then
// the tables. Without Verbose it stays under 200 lines for 500 tables.
func WritePlan(out io.Writer, p *engine.Plan, o PlanOptions) error {
	if o.Width <= 0 {
		o.Width = defaultWidth
	}
	scope, err := scopeOf(p)
	if err != nil {
		return err
	}
	var w *planWriter
	for _, b := range budgets {
		w = &planWriter{o: o, b: b}
		w.plan(p, scope)
		if o.Verbose || len(w.lines) < shortLines {
			break
		}
	}
	_, err = io.WriteString(out, strings.Join(w.lines, "\n")+"\n")
	if err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	return nil
}

func (w *planWriter) plan(p *engine.Plan, scope planScope) {
	w.head(p, scope)
	if len(p.Findings) > 0 {
		w.line("")
		w.line("Findings (%d)", len(p.Findings))
		writeFindings(w, p.Findings)
	}
	if rest := notCarried(p, scope); len(rest) > 0 {
		w.line("")
		w.line("Not carried (%d)", len(rest))
		w.list(rest, w.b.notCarried)
	}
	w.line("")
	w.line("Steps (%d)", len(p.Steps))
	for i, s := range p.Steps {
		w.step(i+1, s)
	}
	w.tables(scope)
}

func (w *planWriter) list(texts []string, short int) {
	n := w.most(len(texts), short)
	for _, t := range texts[:n] {
		w.text("  - ", t)
	}
	if n < len(texts) {
		w.line("  … and %d more (--verbose)", len(texts)-n)
	}
}

// Verdict says in one line whether the plan can be applied.
func Verdict(p *engine.Plan) string {
	var errors, warnings int
	for _, f := range p.Findings {
		switch f.Severity {
		case engine.SeverityError:
			errors++
		case engine.SeverityWarning:
			warnings++
		default:
		}
	}
	switch {
	case errors > 0 && warnings > 0:
		return fmt.Sprintf("NOT READY: %s, %s", engine.Plural(errors, "error"), engine.Plural(warnings, "warning"))
	case errors > 0:
		return "NOT READY: " + engine.Plural(errors, "error")
	case warnings > 0:
		return "ready, with " + engine.Plural(warnings, "warning")
	}
	return "ready"
}

func (w *planWriter) head(p *engine.Plan, scope planScope) {
	w.line("Plan of %s: %s", printable(p.Name), Verdict(p))
	w.line("")
	for _, side := range []struct {
		name string
		id   engine.Identity
	}{{"source", p.Source}, {"target", p.Target}} {
		w.line("  %s  %s", side.name, printable(serverText(side.id)))
	}
	all, chunks := scope.total()
	moves := fmt.Sprintf("%s, %s, %s, %s", engine.Plural(len(scope.Tables), "table"), engine.Plural(len(scope.Sequences), "sequence"), rowsOf(all), bytesText(all.Bytes))
	if chunks > 0 {
		moves += " in " + engine.Plural(int(chunks), "chunk")
	}
	w.text("  moves   ", moves)
	if p.Predictions.WriteBlock > 0 {
		w.text("  predicted: ", waitIn(p.Predictions)+predicted(p.Predictions)+because(p.Predictions.Why))
	}
	w.line("  digest  %s", p.Digest())
}

// serverText gives "new:5432/erp, sslmode verify-full, PostgreSQL 18.1", as far as it is known.
func serverText(i engine.Identity) string {
	text := i.Address
	if i.TLS != "" {
		text += ", " + i.TLS
	}
	switch {
	case i.Version != "":
		text += ", PostgreSQL " + i.Version
	case i.Major > 0:
		text += fmt.Sprintf(", PostgreSQL %d", i.Major)
	}
	return text
}

// waitIn begins a sentence that predicted ends.
func waitIn(p engine.Prediction) string { return "writes wait in the " + p.Of() + " for " }

// predicted gives "180ms of 2s". It is as exact as the parts that follow, which add up to it.
func predicted(p engine.Prediction) string {
	text := p.WriteBlock.Round(time.Millisecond).String()
	if p.Budget > 0 {
		text += " of " + p.Budget.String()
	}
	if p.Over() {
		text += ", OVER the budget"
	}
	return text
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}

// actionGroup is like statements on many objects.
type actionGroup struct {
	engine.Action
	actions []engine.Action
}

func groupActions(all []engine.Action) []actionGroup {
	var out []actionGroup
	at := map[string]int{}
	for _, a := range all {
		key := string(a.On) + "\x00" + a.Group
		i, seen := at[key]
		if !seen || a.Group == "" {
			i = len(out)
			out = append(out, actionGroup{Action: a})
			at[key] = i
		}
		out[i].actions = append(out[i].actions, a)
	}
	return out
}

// label names a group: "{n}" in it stands for the number of statements.
func (g actionGroup) label() string {
	n := len(g.actions)
	if strings.Contains(g.Group, "{n}") {
		return strings.ReplaceAll(g.Group, "{n}", fmt.Sprint(n))
	}
	return fmt.Sprintf("%s: %s", g.Group, engine.Plural(n, "statement"))
}

func (w *planWriter) step(n int, s engine.StepPlan) {
	w.text(fmt.Sprintf("%3d. %s  ", n, printable(string(s.ID))), s.Title+estimateText(s.Estimate))
	if s.Why != "" && (w.o.Verbose || w.b.why) {
		w.text("       why: ", s.Why)
	}
	groups := groupActions(s.Actions)
	shown := w.most(len(groups), w.b.actions)
	for _, g := range groups[:shown] {
		w.action(g)
	}
	if shown < len(groups) && shown > 0 {
		w.line("       … and %d more (--verbose)", len(groups)-shown)
	}
	w.rules(s.Rules)
	hazards := w.most(len(s.Hazards), w.b.hazards)
	for _, h := range s.Hazards[:hazards] {
		w.text("       ! ", string(h.Kind)+": "+strings.TrimPrefix(h.Object+": "+h.Text, ": "))
	}
	if hazards < len(s.Hazards) && hazards > 0 {
		w.line("       ! … and %d more hazards (--verbose)", len(s.Hazards)-hazards)
	}
}

// ddlTitle heads the rules of a step.
const ddlTitle = "DDL on the source meanwhile"

// rules are short, and what a reviewer accepts: no form leaves one out.
func (w *planWriter) rules(rules []engine.Rule) {
	if len(rules) == 0 {
		return
	}
	w.line("       %s", ddlTitle)
	for _, r := range rules {
		text := r.Then + ": " + r.Change
		if w.o.Verbose {
			text += because(r.How)
		}
		w.text("       - ", text)
	}
}

func (w *planWriter) action(g actionGroup) {
	if !w.o.Verbose {
		if g.Group != "" && len(g.actions) > 1 {
			w.text(fmt.Sprintf("       %s  ", g.On), g.label()+because(g.Why))
			return
		}
		text := g.SQL
		if text == "" {
			text = g.Object
		}
		w.cut(fmt.Sprintf("       %s  ", g.On), strings.Join(strings.Fields(text), " ")+because(g.Why))
		return
	}
	if g.Group != "" && len(g.actions) > 1 {
		w.line("       %s  %s", g.On, printable(g.label()))
	}
	for _, a := range g.actions {
		prefix := fmt.Sprintf("       %s  ", a.On)
		if a.Object != "" {
			prefix += printable(a.Object) + ": "
		}
		for i, l := range strings.Split(strings.TrimSpace(a.SQL), "\n") {
			if i == 0 {
				w.line("%s%s%s", prefix, printable(l), because(a.Why))
			} else {
				w.line("           %s", printable(strings.TrimRight(l, "\r")))
			}
		}
		if a.Reverse != "" {
			w.line("           undone by: %s", printable(strings.Join(strings.Fields(a.Reverse), " ")))
		}
	}
}

// estimateText gives " [3m, 12 M rows, 1.2 GiB, source disk 10.0 MiB, target disk 2.0 GiB, runner disk 5.0 MiB]".
func estimateText(e engine.Estimate) string {
	var parts []string
	if e.Seconds > 0 {
		parts = append(parts, "about "+durationText(time.Duration(e.Seconds*float64(time.Second))))
	}
	if e.Rows > 0 || e.Unanalyzed > 0 {
		parts = append(parts, strings.TrimPrefix(rowsOf(e), "about "))
	}
	if e.Bytes > 0 {
		parts = append(parts, bytesText(e.Bytes))
	}
	if e.SourceDisk > 0 {
		parts = append(parts, "source disk "+bytesText(e.SourceDisk))
	}
	if e.TargetDisk > 0 {
		parts = append(parts, "target disk "+bytesText(e.TargetDisk))
	}
	if e.RunnerDisk > 0 {
		parts = append(parts, "runner disk "+bytesText(e.RunnerDisk))
	}
	if len(parts) == 0 {
		return ""
	}
	return " [" + strings.Join(parts, ", ") + "]"
}

func (w *planWriter) tables(scope planScope) {
	if len(scope.Tables) == 0 {
		return
	}
	n := w.most(len(scope.Tables), w.b.tables)
	shown := scope.Tables[:n]
	name, how, key := len("table"), len("method"), len("key")
	for _, t := range shown {
		name, how, key = max(name, len([]rune(t.label()))), max(how, len(t.how())), max(key, len([]rune(t.keyText())))
	}
	name, how, key = min(name, 48), min(how, 24), min(key, 28)
	w.line("")
	w.line("Tables (%d)", len(scope.Tables))
	w.line("  %s  %s  %s  %8s  %10s  %7s", pad("table", name), pad("method", how), pad("key", key), "rows", "bytes", "chunks")
	for _, t := range shown {
		w.line("  %s  %s  %s  %8s  %10s  %7s", pad(t.label(), name), pad(t.how(), how), pad(t.keyText(), key), t.rowsText(), bytesText(t.Bytes), t.chunksText())
		if w.o.Verbose && t.Why != "" {
			w.text("      ", t.Why)
		}
	}
	if rest := scope.Tables[n:]; len(rest) > 0 {
		var bytes int64
		for _, t := range rest {
			bytes += t.Bytes
		}
		w.line("  … and %d smaller ones with %s together (--verbose)", len(rest), bytesText(bytes))
	}
}

// WritePlanJSON writes the plan as JSON, with its digest and verdict, for machines. The fields of
// the saved plan keep their names; "format" is its version.
func WritePlanJSON(out io.Writer, p *engine.Plan) error {
	type plan engine.Plan
	scope := json.RawMessage(p.Scope)
	if len(scope) == 0 {
		scope = json.RawMessage("null")
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(struct {
		Digest  string `json:"digest"`
		Verdict string `json:"verdict"`
		Ready   bool   `json:"ready"`
		plan
		Scope json.RawMessage `json:"scope"` // in clear, in place of the saved plan's bytes
	}{p.Digest(), Verdict(p), !p.Blocking(), plan(*p), scope})
	if err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	return nil
}

package runbook

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// goodName is what a name may hold: it is a part of step names on the command line and of keys in
// the journal.
var goodName = regexp.MustCompile(`^[\p{L}\p{N}_][\p{L}\p{N}_.-]*$`)

func (l *loader) checkName(at hcl.Range, what, name string) {
	if !goodName.MatchString(name) {
		l.errorf(at, "Bad name", "%q is no name of a %s. Use letters, digits, _, - and . and start with a letter, digit or _.", name, what)
	}
}

// loadSteps reads before, switch and after of one phase.
func (l *loader) loadSteps(phase string, content *hcl.BodyContent) {
	names := map[string]hcl.Range{}
	hooks := Hooks{
		Before: l.stepsOf(phase, content, "before", names),
		After:  l.stepsOf(phase, content, "after", names),
	}
	if len(hooks.Before)+len(hooks.After) > 0 {
		l.rb.Hooks[phase] = hooks
	}
	if phase == "cutover" {
		l.rb.Cutover.Switch = l.stepsOf(phase, content, "switch", names)
	}
}

func (l *loader) stepsOf(phase string, content *hcl.BodyContent, part string, names map[string]hcl.Range) []StepBlock {
	var list *hcl.Block
	for _, b := range content.Blocks.OfType(part) {
		if list != nil {
			l.errorf(b.TypeRange, "Duplicate block", "%s has one %s block, and it stands at %s. Put the steps of both into one, in their order.", phase, part, list.DefRange)
			continue
		}
		list = b
	}
	if list == nil {
		return nil
	}
	var out []StepBlock
	for _, b := range l.content(list.Body, stepsSchema, part).Blocks {
		step := StepBlock{
			Kind: b.Labels[0], Name: b.Labels[1], Body: b.Body, Eval: l.rb.eval, Dir: l.rb.Dir,
			Range: b.DefRange, KindRange: b.LabelRanges[0], NameRange: b.LabelRanges[1],
			files: l.files, secrets: l.rb.secrets,
		}
		l.checkName(step.KindRange, "step's kind", step.Kind)
		l.checkName(step.NameRange, "step", step.Name)
		key := step.Kind + " " + step.Name
		if first, ok := names[key]; ok {
			l.errorf(step.NameRange, "Duplicate step", "A step %q %q stands in %s at %s already. Give this one another name: the journal knows a step by it.", step.Kind, step.Name, phase, first)
		} else {
			names[key] = step.Range
		}
		l.checkStep(step)
		out = append(out, step)
	}
	return out
}

// stepAttributes are the arguments of a step's body as far as they are known without its kind.
func stepAttributes(step StepBlock) []*hcl.Attribute {
	attrs, _ := step.Body.JustAttributes()
	return sortedAttributes(attrs)
}

// checkStep evaluates every argument of a step once, so that mistakes in references are found
// together with all others, and notes what must be kept: secrets and files.
func (l *loader) checkStep(step StepBlock) {
	for _, attr := range append(stepAttributes(step), nestedAttributes(step.Body)...) {
		value, diags := evaluate(attr.Expr, step.Eval)
		l.add(diags)
		if diags.HasErrors() {
			continue
		}
		l.rb.secrets.addMarked(value)
		if value.ContainsMarked() && shown[attr.Name] {
			l.errorf(attr.Expr.Range(), "Sensitive value", "%s is shown in plans and logs, and this value comes from a sensitive variable. Use another value here.", attr.Name)
		}
		l.checkTexts(attr, value)
	}
}

// shown are the arguments that every kind of step prints.
var shown = map[string]bool{"message": true}

// checkTexts looks at every text of an argument: a password in a url is refused wherever it
// stands, and files of the runbook's folder are pinned.
func (l *loader) checkTexts(attr *hcl.Attribute, value cty.Value) {
	_ = cty.Walk(value, func(_ cty.Path, part cty.Value) (bool, error) {
		if part.IsMarked() {
			return false, nil
		}
		if part.Type() != cty.String || part.IsNull() || !part.IsKnown() {
			return true, nil
		}
		text := part.AsString()
		if pw, _ := connPassword(text); pw != "" {
			l.refusePassword(attr.Expr, text, attr.Name, "Take it out: give it to the step through env or url from a variable with sensitive = true and default = env(\"NAME\"), or keep it in a passfile (~/.pgpass).")
		}
		if attr.Name == "file" && !strings.HasPrefix(text, "/") {
			text = "./" + strings.TrimPrefix(text, "./")
		}
		l.files.pin(text)
		return true, nil
	})
}

// undoForms show how the undo of a kind is written that is no argument.
var undoForms = map[string]string{"http": "undo { ... }"}

// checkSwitch holds the steps of switch to what the freeze needs of them: a way back, and a time
// that fits into the budget.
func (l *loader) checkSwitch() {
	var sum time.Duration
	var parts []string
	steps := l.rb.Cutover.Switch
	for _, step := range steps {
		attrs := map[string]*hcl.Attribute{}
		for _, a := range stepAttributes(step) {
			attrs[a.Name] = a
		}
		if attrs["undo"] == nil && !hasNested(step.Body, "undo") {
			form := "undo = ..."
			if wanted, ok := undoForms[step.Kind]; ok {
				form = wanted
			}
			l.errorf(step.Range, "Step without undo", "Step %q %q stands in switch, which is undone when the freeze fails and run backwards by a rollback. Add %s with what puts the old state back.", step.Kind, step.Name, form)
		}
		if attrs["timeout"] == nil {
			l.errorf(step.Range, "Step without timeout", "Step %q %q stands in switch, where the application's writes wait for it. Add timeout = \"1s\" or what it needs.", step.Kind, step.Name)
			continue
		}
		b := &Body{attrs: attrs, eval: step.Eval, at: step.Range, values: map[string]cty.Value{}}
		if d := b.Duration("timeout", 0); d > 0 {
			sum += d
			parts = append(parts, fmt.Sprintf("%s %s", step.Name, d))
		}
		l.add(b.diags)
	}
	if sum > l.rb.Cutover.MaxWriteBlock {
		l.errorf(steps[0].Range, "Switch takes too long", "The timeouts of the switch steps add up to %s (%s), more than max_write_block = %s: the freeze would undo itself. Shorten them, move steps that need no stopped writes to after { }, or raise max_write_block.", sum, strings.Join(parts, ", "), l.rb.Cutover.MaxWriteBlock)
	} else if back := l.rb.WriteBlock(true); sum > back {
		l.errorf(steps[0].Range, "Switch takes too long", "The timeouts of the switch steps add up to %s (%s), more than max_write_block = %s in rollback, which runs their undo: it would undo itself. Shorten them, or raise max_write_block there.", sum, strings.Join(parts, ", "), back)
	}
}

package runbook

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// givenValue is a variable's value from outside the runbook.
type givenValue struct {
	value cty.Value
	rng   hcl.Range
}

// givenValues collects values from outside, weakest first: PGRUNBOOK_VAR_name, *.auto.vars.hcl
// beside the runbook, files of --var-file, --var.
func (l *loader) givenValues(vars []*variable) map[string]*givenValue {
	given := map[string]*givenValue{}
	byName := map[string]*variable{}
	for _, v := range vars {
		byName[v.name] = v
	}
	for _, v := range vars {
		if text, ok := l.opts.Getenv("PGRUNBOOK_VAR_" + v.name); ok {
			l.giveText(given, v, text, "PGRUNBOOK_VAR_"+v.name)
		}
	}
	auto, _ := filepath.Glob(filepath.Join(globEscape(l.rb.Dir), "*.auto.vars.hcl"))
	slices.Sort(auto)
	for _, path := range auto {
		l.readVarFile(given, byName, path, hcl.DiagWarning)
	}
	for _, path := range l.opts.VarFiles {
		l.readVarFile(given, byName, path, hcl.DiagError)
	}
	for _, name := range slices.Sorted(maps.Keys(l.opts.Vars)) {
		v, ok := byName[name]
		if !ok {
			l.diags = append(l.diags, &hcl.Diagnostic{
				Severity: hcl.DiagError,
				Summary:  "Unknown variable",
				Detail:   fmt.Sprintf("--var sets %q, which the runbook does not declare. %s", name, didYouMean(name, slices.Sorted(maps.Keys(byName)))),
			})
			continue
		}
		l.giveText(given, v, l.opts.Vars[name], "--var "+name)
	}
	return given
}

// globEscape takes the special meaning from a directory's name.
func globEscape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// giveText sets a variable from text: strings as they are, other types as an HCL expression
// without references.
func (l *loader) giveText(given map[string]*givenValue, v *variable, text, origin string) {
	if v.sensitive {
		l.rb.secrets.add(text)
	}
	if v.typ.IsPrimitiveType() || v.typ == cty.DynamicPseudoType {
		given[v.name] = &givenValue{value: cty.StringVal(text), rng: v.rng}
		return
	}
	expr, diags := hclsyntax.ParseExpression([]byte(text), origin, hcl.InitialPos)
	if !diags.HasErrors() {
		value, more := evaluate(expr, &hcl.EvalContext{})
		if diags = more; !diags.HasErrors() {
			given[v.name] = &givenValue{value: value, rng: v.rng}
			return
		}
	}
	l.errorf(v.rng, "Bad value of a variable", "%s is not written as the variable's type asks. Write for example '[\"a\", \"b\"]' for a list and '{ a = \"b\" }' for a map.", origin)
	given[v.name] = &givenValue{value: cty.UnknownVal(v.typ), rng: v.rng}
}

// readVarFile reads name = value lines. A file beside the runbook may serve several runbooks, so
// a name that this one does not declare is a warning there.
func (l *loader) readVarFile(given map[string]*givenValue, byName map[string]*variable, path string, unknown hcl.DiagnosticSeverity) {
	src, err := readFile(path)
	if err != nil {
		l.diags = append(l.diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Cannot read the variable file",
			Detail:   capitalize(cause(err)) + ". " + readable(err, "Name a file that exists, with lines such as: workers = 8"),
		})
		return
	}
	l.rb.sources.add(path, &hcl.File{Bytes: src})
	var attrs hcl.Attributes
	file, diags := parseSyntax(path, src)
	if file != nil && file.Body != nil && !diags.HasErrors() {
		attrs, diags = file.Body.JustAttributes()
	}
	l.add(diags)
	if diags.HasErrors() {
		// Which lines hold secrets is not known then: an excerpt shows none.
		l.rb.sources.hide(hcl.Range{Filename: path, End: hcl.Pos{Byte: len(src)}})
	}
	for _, attr := range sortedAttributes(attrs) {
		v, ok := byName[attr.Name]
		if !ok || v.sensitive {
			l.rb.sources.hide(attr.Expr.Range())
		}
		if !ok {
			l.diags = append(l.diags, &hcl.Diagnostic{
				Severity: unknown,
				Summary:  "Unknown variable",
				Detail:   fmt.Sprintf("The runbook declares no variable %q. %s", attr.Name, didYouMean(attr.Name, slices.Sorted(maps.Keys(byName)))),
				Subject:  attr.NameRange.Ptr(),
			})
			continue
		}
		value, diags := evaluate(attr.Expr, &hcl.EvalContext{Functions: pure})
		l.add(diags)
		given[v.name] = &givenValue{value: value, rng: attr.Expr.Range()}
	}
}

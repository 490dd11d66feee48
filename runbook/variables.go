package runbook

import (
	"maps"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// variable is one variable block before its value is known.
type variable struct {
	name        string
	rng         hcl.Range
	typ         cty.Type
	typeDefault *typeexpr.Defaults
	sensitive   bool
	nullable    bool
	def         *hcl.Attribute
	broken      bool // its declaration was refused: a missing value is no further news
	validations []validation
}

type validation struct{ condition, message *hcl.Attribute }

// loadValues evaluates variables and locals and fixes the context of all other expressions.
func (l *loader) loadValues(content *hcl.BodyContent) {
	vars := l.declareVariables(content)
	given, spared := l.givenValues(vars), l.spared(content)
	for _, v := range vars {
		l.scope.nodes["var."+v.name] = l.variableNode(v, given[v.name], spared[v.name])
	}
	for _, block := range content.Blocks.OfType("locals") {
		l.declareLocals(block)
	}
	l.scope.resolveAll()
	l.rb.eval = l.scope.context(nil)
	for _, v := range vars {
		value := l.scope.nodes["var."+v.name].value
		l.checkPlainPassword(v, value)
		for _, check := range v.validations {
			l.validate(v, check)
		}
		l.rb.Variables = append(l.rb.Variables, describe(v, value))
	}
}

func (l *loader) declareLocals(block *hcl.Block) {
	attrs, diags := block.Body.JustAttributes()
	l.add(diags)
	for _, attr := range sortedAttributes(attrs) {
		ref := "local." + attr.Name
		if other, ok := l.scope.nodes[ref]; ok {
			l.errorf(attr.NameRange, "Duplicate local", "%s is already set at %s. Remove one of them.", ref, other.rng)
			continue
		}
		l.scope.nodes[ref] = &node{ref: ref, rng: attr.NameRange, expr: attr.Expr, compute: func(ctx *hcl.EvalContext) cty.Value {
			value, diags := evaluate(attr.Expr, ctx)
			l.add(diags)
			l.rb.secrets.addMarked(value)
			return value
		}}
	}
}

func (l *loader) declareVariables(content *hcl.BodyContent) []*variable {
	var vars []*variable
	byName := map[string]*variable{}
	for _, block := range content.Blocks.OfType("variable") {
		v := l.declareVariable(block)
		if !hclsyntax.ValidIdentifier(v.name) {
			l.errorf(block.LabelRanges[0], "Bad variable name", "%q cannot be written as var.NAME. Use letters, digits, _ and -, and start with a letter.", v.name)
			continue
		}
		if other, ok := byName[v.name]; ok {
			l.errorf(v.rng, "Duplicate variable", "Variable %q is already declared at %s. Remove one of them.", v.name, other.rng)
			continue
		}
		byName[v.name] = v
		vars = append(vars, v)
	}
	return vars
}

func (l *loader) declareVariable(block *hcl.Block) *variable {
	content := l.content(block.Body, variableSchema, "variable")
	b := l.newBody(content, block.DefRange)
	v := &variable{
		name: block.Labels[0], rng: block.LabelRanges[0], typ: cty.DynamicPseudoType,
		sensitive: b.Bool("sensitive", false),
		nullable:  b.Bool("nullable", true),
		def:       content.Attributes["default"],
	}
	_ = b.String("description")
	if attr := content.Attributes["type"]; attr != nil {
		typ, defaults, diags := typeexpr.TypeConstraintWithDefaults(attr.Expr)
		for _, d := range diags {
			d.Summary = "Bad variable type"
			d.Detail += " Write a type without quotes: string, number, bool, list(string), map(string) or object({ ... })."
		}
		l.add(diags)
		if v.broken = diags.HasErrors(); !v.broken {
			v.typ, v.typeDefault = typ, defaults
		}
	}
	for _, inner := range content.Blocks.OfType("validation") {
		c := l.content(inner.Body, validationSchema, "validation")
		if c.Attributes["condition"] != nil && c.Attributes["error_message"] != nil {
			v.validations = append(v.validations, validation{c.Attributes["condition"], c.Attributes["error_message"]})
		}
	}
	if v.def != nil {
		l.checkLiteralSecret(v)
	}
	l.add(b.Done())
	return v
}

// variableNode says how a variable gets its value: from outside, else from its default.
func (l *loader) variableNode(v *variable, given *givenValue, spared bool) *node {
	n := &node{ref: "var." + v.name, rng: v.rng}
	switch {
	case spared && v.sensitive:
		n.compute = func(*hcl.EvalContext) cty.Value { return l.marked(v, cty.UnknownVal(v.typ)) }
	case given != nil:
		n.compute = func(*hcl.EvalContext) cty.Value { return l.settle(v, given.value, given.rng) }
	case v.def != nil:
		n.expr = v.def.Expr
		n.compute = func(ctx *hcl.EvalContext) cty.Value { return l.defaultValue(v, ctx) }
	default:
		n.compute = func(*hcl.EvalContext) cty.Value { return l.unset(v) }
	}
	return n
}

func (l *loader) unset(v *variable) cty.Value {
	if !l.opts.Validate && !v.broken {
		l.errorf(v.rng, "Variable not set", "Variable %q has no value and no default. Set PGRUNBOOK_VAR_%s in the environment, pass --var %s=VALUE, or write it in a *.auto.vars.hcl file beside the runbook.", v.name, v.name, v.name)
	}
	return l.marked(v, cty.UnknownVal(v.typ))
}

func (l *loader) defaultValue(v *variable, ctx *hcl.EvalContext) cty.Value {
	ctx.Functions["env"] = (&envFunc{variable: v.name, lookup: l.opts.Getenv, validate: l.opts.Validate}).function(l.files)
	l.files.secret = v.sensitive
	value, diags := evaluate(v.def.Expr, ctx)
	l.files.secret = false
	if v.sensitive {
		// The printer shows values that an expression used; here they are parts of a secret.
		for _, d := range diags {
			d.Expression, d.EvalContext = nil, nil
		}
	}
	l.add(diags)
	return l.settle(v, value, v.def.Expr.Range())
}

// settle brings a value to the variable's type and marks it when it is sensitive.
func (l *loader) settle(v *variable, value cty.Value, at hcl.Range) cty.Value {
	if v.sensitive {
		l.rb.secrets.addValue(value)
	}
	if value.IsNull() && !v.nullable {
		l.errorf(at, "Variable is null", "Variable %q has nullable = false. Give it a value.", v.name)
		return l.marked(v, cty.UnknownVal(v.typ))
	}
	if v.typeDefault != nil && !value.IsNull() && value.IsKnown() {
		plain, marks := value.UnmarkDeepWithPaths()
		value = v.typeDefault.Apply(plain).MarkWithPaths(marks)
	}
	converted, err := convert.Convert(value, v.typ)
	if err != nil {
		l.errorf(at, "Wrong type of a variable", "Variable %q is declared as %s: %s.", v.name, typeexpr.TypeString(v.typ), err)
		return l.marked(v, cty.UnknownVal(v.typ))
	}
	return l.marked(v, converted)
}

func (l *loader) marked(v *variable, value cty.Value) cty.Value {
	if v.sensitive {
		value, _ = value.UnmarkDeep()
		return value.Mark(sensitive)
	}
	return value
}

// validate evaluates one validation block. A message that would show a sensitive value is not
// printed.
func (l *loader) validate(v *variable, check validation) {
	value, diags := evaluate(check.condition.Expr, l.rb.eval)
	l.add(diags)
	value, _ = value.Unmark()
	if diags.HasErrors() || !value.IsKnown() {
		return
	}
	ok, err := convert.Convert(value, cty.Bool)
	if err != nil || ok.IsNull() {
		l.errorf(check.condition.Expr.Range(), "Bad validation", "The condition must be true or false. Write an expression such as length(var.%s) > 0.", v.name)
		return
	}
	if !ok.IsKnown() || ok.True() {
		return
	}
	message, diags := evaluate(check.message.Expr, l.rb.eval)
	l.add(diags)
	if diags.HasErrors() {
		return
	}
	text := "The error_message of this validation uses a sensitive value and is not shown."
	if !message.ContainsMarked() {
		if s, err := convert.Convert(message, cty.String); err == nil && s.IsKnown() && !s.IsNull() {
			text = s.AsString()
		}
	}
	l.errorf(v.rng, "Value of a variable refused", "%s (Variable %q, the rule stands at %s.)", text, v.name, check.condition.Range)
}

// describe is the variable as plans and digests show it.
func describe(v *variable, value cty.Value) Variable {
	out := Variable{Name: v.name, Sensitive: v.sensitive, Range: v.rng}
	sensitive := value.ContainsMarked()
	value, _ = value.UnmarkDeep()
	out.Known = value.IsWhollyKnown()
	out.Sensitive = out.Sensitive || sensitive
	if out.Sensitive || !out.Known {
		return out
	}
	if value.Type() == cty.String && !value.IsNull() {
		out.Value = value.AsString()
		return out
	}
	if text, err := ctyjson.Marshal(value, value.Type()); err == nil {
		out.Value = string(text)
	}
	return out
}

func sortedAttributes(attrs hcl.Attributes) []*hcl.Attribute {
	return slices.SortedFunc(maps.Values(attrs), func(a, b *hcl.Attribute) int {
		return a.NameRange.Start.Byte - b.NameRange.Start.Byte
	})
}

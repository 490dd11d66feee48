package runbook

import (
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/gocty"
)

// Body reads the arguments of one block. Every getter names an argument that the block may have
// and returns its value, or the default when it is left out, null, unknown (a variable without
// a value in validate) or wrong. Mistakes are collected with their place; Done returns them
// together with the arguments that no getter asked for. A step kind decodes itself so:
//
//	b := runbook.DecodeBody(block)
//	s := exec{
//		command: b.Strings("command"),
//		timeout: b.Duration("timeout", time.Minute),
//		env:     b.SensitiveMap("env"),
//	}
//	b.Require("command")
//	return s, b.Done()
//
// All getters but Sensitive and SensitiveMap refuse sensitive values: what they return may
// appear in plans, events and argument lists.
type Body struct {
	attrs   hcl.Attributes
	blocks  hclsyntax.Blocks
	body    hcl.Body // of the JSON twin, where blocks look like arguments
	eval    *hcl.EvalContext
	at      hcl.Range // the block's header
	where   string
	asked   []string
	nested  []string // the blocks that Block asked for
	inner   []*Body  // and those that are written
	diags   hcl.Diagnostics
	secrets *secretSet
	values  map[string]cty.Value // one evaluation and one complaint per argument
}

// DecodeBody starts reading the body of a step.
func DecodeBody(step StepBlock) *Body {
	b := &Body{eval: step.Eval, at: step.Range, where: fmt.Sprintf("step %q", step.Kind), secrets: step.secrets, values: map[string]cty.Value{}}
	b.open(step.Body)
	return b
}

func (b *Body) open(body hcl.Body) {
	if native, ok := body.(*hclsyntax.Body); ok {
		b.blocks = native.Blocks
		b.attrs, _ = native.JustAttributes()
		return
	}
	var diags hcl.Diagnostics
	if body != nil {
		b.body = body
		b.attrs, diags = body.JustAttributes()
	}
	b.diags = append(b.diags, diags...)
}

// newBody reads the arguments of one of the fixed blocks, whose names were checked already.
func (l *loader) newBody(content *hcl.BodyContent, at hcl.Range) *Body {
	b := &Body{attrs: content.Attributes, eval: l.rb.eval, at: at, secrets: l.rb.secrets, values: map[string]cty.Value{}}
	if b.eval == nil {
		// Declarations are read before values exist: they are constants.
		b.eval = &hcl.EvalContext{}
	}
	for name := range content.Attributes {
		b.asked = append(b.asked, name)
	}
	return b
}

// Done returns every mistake of the body, unknown arguments included.
func (b *Body) Done() hcl.Diagnostics {
	s := schema(b.asked)
	for _, name := range b.nested {
		s.Blocks = append(s.Blocks, block(name))
	}
	for _, attr := range sortedAttributes(b.attrs) {
		if !slices.Contains(b.asked, attr.Name) {
			b.diags = append(b.diags, newError(attr.NameRange, "Unknown argument", unknownArgument(attr.Name, s, b.where)))
		}
	}
	for _, block := range b.blocks {
		if block.Type != "dynamic" && !slices.Contains(b.nested, block.Type) {
			b.diags = append(b.diags, newError(block.TypeRange, "Unknown block", unknownBlock(block.Type, s, b.where)))
		}
	}
	for _, inner := range b.inner {
		b.diags = append(b.diags, inner.Done()...)
	}
	return b.diags
}

// Has reports whether the argument is written, whatever its value.
func (b *Body) Has(name string) bool {
	b.ask(name)
	return b.attrs[name] != nil
}

// Known reports whether the argument is written and has a value that is neither null nor wrong
// nor unknown in any part.
func (b *Body) Known(name string) bool {
	v := b.value(name)
	return v != cty.NilVal && v.IsWhollyKnown() && !v.IsNull()
}

// Require reports the arguments that are missing. A value that is written but unknown is there.
func (b *Body) Require(names ...string) {
	for _, name := range names {
		if !b.Has(name) || b.value(name).IsNull() {
			b.diags = append(b.diags, newError(b.Range(name), "Missing argument", fmt.Sprintf("%q is needed here. Add %s = ...", name, name)))
		}
	}
}

// Range is the place of an argument's value, or of the block's header when it is left out.
func (b *Body) Range(name string) hcl.Range {
	if attr := b.attrs[name]; attr != nil {
		return attr.Expr.Range()
	}
	return b.at
}

// Errorf adds a mistake at an argument: what is wrong in a few words, then cause and fix in
// whole sentences.
func (b *Body) Errorf(name, summary, detail string, args ...any) {
	b.diags = append(b.diags, newError(b.Range(name), summary, fmt.Sprintf(detail, args...)))
}

// String returns text, or "".
func (b *Body) String(name string) string {
	v := b.plain(name, cty.String, "text in quotes")
	if v == cty.NilVal {
		return ""
	}
	return v.AsString()
}

// Enum returns one of the words, or def.
func (b *Body) Enum(name, def string, words ...string) string {
	got := b.String(name)
	if got == "" && !b.Known(name) {
		return def
	}
	if !slices.Contains(words, got) {
		b.Errorf(name, "Unknown word", "%q is no value of %s. %s", got, name, didYouMean(got, words))
		return def
	}
	return got
}

// Strings returns a list of text, or nil.
func (b *Body) Strings(name string) []string {
	v := b.plain(name, cty.List(cty.String), `a list of text, such as ["a", "b"]`)
	if v == cty.NilVal {
		return nil
	}
	out := []string{}
	for _, e := range v.AsValueSlice() {
		if e.IsNull() || !e.IsKnown() {
			b.Errorf(name, "Empty list element", "An element of %s is null. Remove it or write text.", name)
			return nil
		}
		out = append(out, e.AsString())
	}
	return out
}

// Map returns text by name, or nil.
func (b *Body) Map(name string) map[string]string {
	v := b.plain(name, cty.Map(cty.String), `text by name, such as { a = "b" }`)
	if v == cty.NilVal {
		return nil
	}
	var out map[string]string
	if err := gocty.FromCtyValue(v, &out); err != nil {
		b.Errorf(name, "Wrong type", "A value in %s is null. Remove it or write text.", name)
		return nil
	}
	return out
}

// Bool returns true or false, or def.
func (b *Body) Bool(name string, def bool) bool {
	v := b.plain(name, cty.Bool, "true or false, without quotes")
	if v == cty.NilVal {
		return def
	}
	return v.True()
}

// Int returns a whole number of at least least, or def.
func (b *Body) Int(name string, def, least int64) int64 {
	v := b.plain(name, cty.Number, "a whole number")
	if v == cty.NilVal {
		return def
	}
	n, accuracy := v.AsBigFloat().Int64()
	if accuracy != big.Exact || !v.AsBigFloat().IsInt() {
		b.Errorf(name, "Not a whole number", "%s must be a whole number.", name)
		return def
	}
	if n < least {
		b.Errorf(name, "Number too small", "%s is %d and must be at least %d.", name, n, least)
		return def
	}
	return n
}

// Duration returns a time longer than zero, written as ParseDuration takes it, or def.
func (b *Body) Duration(name string, def time.Duration) time.Duration {
	return b.duration(name, def, 1)
}

// DurationOrZero is Duration that accepts "0s".
func (b *Body) DurationOrZero(name string, def time.Duration) time.Duration {
	return b.duration(name, def, 0)
}

func (b *Body) duration(name string, def, least time.Duration) time.Duration {
	text := b.String(name)
	if text == "" && !b.Known(name) {
		return def
	}
	d, err := ParseDuration(text)
	if err != nil {
		b.Errorf(name, "Bad duration", "%s.", capitalize(err.Error()))
		return def
	}
	if d < least {
		b.Errorf(name, "Bad duration", "%s must be longer than zero. Write for example \"2s\".", name)
		return def
	}
	return d
}

// Size returns bytes, more than zero, written as ParseSize takes them, or def.
func (b *Body) Size(name string, def int64) int64 {
	text := b.String(name)
	if text == "" && !b.Known(name) {
		return def
	}
	n, err := ParseSize(text)
	if err == nil && n <= 0 {
		err = fmt.Errorf("%q is not more than zero. Write for example \"128MiB\"", text)
	}
	if err != nil {
		b.Errorf(name, "Bad size", "%s.", capitalize(err.Error()))
		return def
	}
	return n
}

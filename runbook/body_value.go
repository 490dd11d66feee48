package runbook

import (
	"slices"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

func (b *Body) ask(name string) {
	if !slices.Contains(b.asked, name) {
		b.asked = append(b.asked, name)
	}
}

// value evaluates an argument once. NilVal means that it is left out.
func (b *Body) value(name string) cty.Value {
	b.ask(name)
	if v, ok := b.values[name]; ok {
		return v
	}
	attr := b.attrs[name]
	if attr == nil {
		return cty.NilVal
	}
	v, diags := evaluate(attr.Expr, b.eval)
	b.diags = append(b.diags, diags...)
	b.values[name] = v
	return v
}

// plain returns a known, not sensitive value of a type, or NilVal after saying what is wrong.
func (b *Body) plain(name string, typ cty.Type, form string) cty.Value {
	v := b.value(name)
	if v == cty.NilVal {
		return v
	}
	if v.ContainsMarked() {
		b.Errorf(name, "Sensitive value", "%s is shown in plans and logs, and this value comes from a sensitive variable. Use another value here.", name)
		b.values[name] = cty.DynamicVal
		return cty.NilVal
	}
	return b.typed(name, v, typ, form)
}

func (b *Body) typed(name string, v cty.Value, typ cty.Type, form string) cty.Value {
	if v.IsNull() || !v.IsWhollyKnown() {
		return cty.NilVal
	}
	converted, err := convert.Convert(v, typ)
	if err != nil || strictly(v.Type(), typ) {
		b.Errorf(name, "Wrong type", "%s must be %s, not %s.", name, form, friendlyType(v.Type()))
		b.values[name] = cty.DynamicVal
		return cty.NilVal
	}
	return converted
}

// friendlyType names what somebody wrote in the words of the messages.
func friendlyType(t cty.Type) string {
	switch {
	case t == cty.String:
		return "text"
	case t == cty.Number:
		return "a number"
	case t == cty.Bool:
		return "true or false"
	case t.IsTupleType(), t.IsListType(), t.IsSetType():
		return "a list"
	}
	return "an object { ... }"
}

// strictly reports a conversion that cty would make and a reader would not expect: a number or
// true where text is asked, and text where a number or true is.
func strictly(from, to cty.Type) bool {
	return from.IsPrimitiveType() && to.IsPrimitiveType() && from != to && (to == cty.String && from == cty.Bool || to == cty.Bool)
}

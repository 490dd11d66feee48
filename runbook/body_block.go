package runbook

import (
	"fmt"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// Block reads the one block of a type that a step may have in it, or gives nil. It is asked for once. What is
// wrong with its arguments comes with Done of the outer body.
func (b *Body) Block(name string) *Body {
	b.nested = append(b.nested, name)
	found := b.written(name)
	if len(found) == 0 {
		return nil
	}
	for _, again := range found[1:] {
		b.diags = append(b.diags, newError(again.DefRange, "Duplicate block", fmt.Sprintf("%s has one %s block, and it stands at %s.", b.where, name, found[0].DefRange)))
	}
	first := found[0]
	if len(first.Labels) > 0 {
		b.diags = append(b.diags, newError(first.LabelRanges[0], "Extraneous label", fmt.Sprintf("%s has no name. Write %s { ... }", name, name)))
	}
	inner := &Body{eval: b.eval, at: first.DefRange, where: name + " of " + b.where, secrets: b.secrets, values: map[string]cty.Value{}}
	inner.open(first.Body)
	b.inner = append(b.inner, inner)
	return inner
}

func (b *Body) written(name string) (out hcl.Blocks) {
	for _, native := range b.blocks {
		if native.Type == name {
			out = append(out, native.AsHCLBlock())
		}
	}
	if b.body == nil || b.attrs[name] == nil {
		return out
	}
	content, _, diags := b.body.PartialContent(schema(nil, block(name)))
	if !diags.HasErrors() && len(content.Blocks) == 0 { // null, or an empty list
		b.Errorf(name, "Empty block", "%s holds nothing. Write it as an object, or leave it out.", name)
	}
	delete(b.attrs, name)
	b.diags = append(b.diags, diags...)
	return content.Blocks
}

// nestedAttributes are the arguments of the blocks in a step's body, of whatever kind. The JSON twin has them
// among the step's own.
func nestedAttributes(body hcl.Body) (out []*hcl.Attribute) {
	native, ok := body.(*hclsyntax.Body)
	if !ok {
		return nil
	}
	for _, b := range native.Blocks {
		attrs, _ := b.Body.JustAttributes()
		out = slices.Concat(out, sortedAttributes(attrs), nestedAttributes(b.Body))
	}
	return out
}

// hasNested reports whether a step's body has a block of a type, well formed or not.
func hasNested(body hcl.Body, name string) bool {
	native, ok := body.(*hclsyntax.Body)
	return ok && slices.ContainsFunc(native.Blocks, func(b *hclsyntax.Block) bool { return b.Type == name })
}

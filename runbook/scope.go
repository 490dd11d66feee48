package runbook

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// scope evaluates variables and locals in the order of their references.
type scope struct {
	l     *loader
	nodes map[string]*node // by reference: "var.x", "local.x"
	stack []*node          // the evaluation in progress, for cycles
}

// node is one name that expressions may refer to.
type node struct {
	ref   string
	rng   hcl.Range
	state nodeState
	value cty.Value
	// compute evaluates the value after its references have theirs.
	compute func(ctx *hcl.EvalContext) cty.Value
	expr    hcl.Expression // nil when the value needs no expression of the file
}

type nodeState int

const (
	nodeNew nodeState = iota
	nodeOpen
	nodeDone
)

func newScope(l *loader) *scope { return &scope{l: l, nodes: map[string]*node{}} }

// resolve evaluates one node and everything it refers to.
func (s *scope) resolve(n *node) cty.Value {
	switch n.state {
	case nodeDone:
		return n.value
	case nodeOpen:
		s.cycle(n)
		return cty.DynamicVal
	case nodeNew:
	}
	n.state = nodeOpen
	s.stack = append(s.stack, n)
	if n.expr != nil {
		for _, t := range n.expr.Variables() {
			if dep, ok := s.nodes[reference(t)]; ok {
				s.resolve(dep)
			}
		}
	}
	s.stack = s.stack[:len(s.stack)-1]
	if n.state == nodeOpen { // not ended by a cycle
		n.value = n.compute(s.context(n))
	}
	n.state = nodeDone
	return n.value
}

// cycle reports the names that wait for each other, each with its place, and ends them all as
// unknown so that one cycle is one message.
func (s *scope) cycle(from *node) {
	start := slices.Index(s.stack, from)
	ring := s.stack[start:]
	var places []string
	for _, n := range ring {
		places = append(places, fmt.Sprintf("%s (%s)", n.ref, n.rng))
		n.state, n.value = nodeDone, cty.DynamicVal
	}
	places = append(places, from.ref)
	if len(ring) == 1 {
		s.l.errorf(from.rng, "Value refers to itself", "%s is computed from itself. Write a value that does not need it.", places[0])
		return
	}
	s.l.errorf(from.rng, "Values refer to each other", "Each of these waits for the next: %s. Write one of them without the others.", strings.Join(places, " -> "))
}

// context holds what n may refer to: every node that has its value. Nodes without one stand as
// unknown, so that a mistake in one name is not reported again at its users.
func (s *scope) context(n *node) *hcl.EvalContext {
	vars, locals := map[string]cty.Value{}, map[string]cty.Value{}
	for ref, other := range s.nodes {
		value := cty.DynamicVal
		if other != n && other.state == nodeDone {
			value = other.value
		}
		if name, ok := strings.CutPrefix(ref, "var."); ok {
			vars[name] = value
		} else if name, ok := strings.CutPrefix(ref, "local."); ok {
			locals[name] = value
		}
	}
	return &hcl.EvalContext{
		Variables: map[string]cty.Value{"var": cty.ObjectVal(vars), "local": cty.ObjectVal(locals)},
		Functions: functions(s.l.files, nil),
	}
}

// resolveAll gives every node its value, in the order of the file.
func (s *scope) resolveAll() {
	nodes := slices.SortedFunc(maps.Values(s.nodes), func(a, b *node) int {
		return a.rng.Start.Byte - b.rng.Start.Byte
	})
	for _, n := range nodes {
		s.resolve(n)
	}
}

// reference returns "var.x" or "local.x" for a traversal that starts with it, else "".
func reference(t hcl.Traversal) string {
	if len(t) < 2 || t.RootName() != "var" && t.RootName() != "local" {
		return ""
	}
	switch step := t[1].(type) {
	case hcl.TraverseAttr:
		return t.RootName() + "." + step.Name
	case hcl.TraverseIndex:
		if step.Key.Type() == cty.String && step.Key.IsKnown() && !step.Key.IsNull() {
			return t.RootName() + "." + step.Key.AsString()
		}
	}
	return ""
}

// evaluate computes an expression. Names that nothing declares are reported in our words, with
// the nearest declared one; the value is then unknown, which every reader accepts in silence.
func evaluate(expr hcl.Expression, ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	if ctx == nil {
		ctx = &hcl.EvalContext{} // a step without a runbook: constants only
	}
	var diags hcl.Diagnostics
	for _, t := range expr.Variables() {
		if d := checkReference(t, ctx); d != nil {
			diags = append(diags, d)
		}
	}
	if diags.HasErrors() {
		return cty.DynamicVal, diags
	}
	value, diags := expr.Value(ctx)
	explainFunctions(diags)
	if diags.HasErrors() {
		return cty.DynamicVal, diags
	}
	return value, diags
}

// typeNames are the words that convert() takes as a type.
var typeNames = map[string]bool{"string": true, "number": true, "bool": true, "any": true}

func checkReference(t hcl.Traversal, ctx *hcl.EvalContext) *hcl.Diagnostic {
	at := t.SourceRange()
	root := t.RootName()
	if len(t) == 1 && typeNames[root] {
		return nil // the second argument of convert()
	}
	declared, ok := ctx.Variables[root]
	if !ok {
		if len(t) == 1 {
			return newError(at, "Unknown name", fmt.Sprintf("%q is a bare word. Text stands in quotes: write %q; a value of this file is var.NAME or local.NAME.", root, root))
		}
		return newError(at, "Unknown name", fmt.Sprintf("There is no %q to refer to. Write var.NAME for a variable or local.NAME for a local.", root))
	}
	names := slices.Sorted(maps.Keys(declared.Type().AttributeTypes()))
	ref := reference(t)
	if ref == "" {
		return newError(at, "Incomplete reference", fmt.Sprintf("%q alone is no value. Write %s.NAME.", root, root))
	}
	name := strings.TrimPrefix(ref, root+".")
	if slices.Contains(names, name) {
		return nil
	}
	fix := fmt.Sprintf("Declare it with variable %q { }.", name)
	what := "variable"
	if root == "local" {
		what, fix = "local", fmt.Sprintf("Declare it with locals { %s = ... }.", name)
	}
	if s := SuggestKind(name, names); s != "" {
		fix = fmt.Sprintf("Did you mean %s.%s?", root, s)
	}
	return newError(at, fmt.Sprintf("Unknown %s", what), fmt.Sprintf("There is no %s named %q. %s", what, name, fix))
}

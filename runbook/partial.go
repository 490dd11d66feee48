package runbook

import (
	"bytes"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// item is one block or argument of the top level, as its lines begin: in the first column.
type item struct {
	kind, label string
	span        hcl.Range
	text        []byte
	diags       hcl.Diagnostics // of its syntax
}

// mostLost is the number of broken items from which a file is no runbook with mistakes.
const mostLost = 50

var itemHead = regexp.MustCompile(`^([A-Za-z_][\w-]*)[ \t]*"?([\w-]*)`)

// items cuts a text where something begins in the first column. It is for a text that the parser
// stumbles over: the parser loses what stands behind the break, and whether a part is whole is
// asked of it anew.
func items(name string, src []byte) []item {
	var out []item
	at := hcl.InitialPos
	for line := range bytes.Lines(src) {
		if m := itemHead.FindSubmatch(line); m != nil || len(out) == 0 {
			var it item
			if m != nil {
				it.kind, it.label = string(m[1]), string(m[2])
			}
			it.span = hcl.Range{Filename: name, Start: at}
			out = append(out, it)
		}
		last := &out[len(out)-1]
		last.text = src[last.span.Start.Byte : at.Byte+len(line)]
		at.Line, at.Byte = at.Line+1, at.Byte+len(line)
		last.span.End = at
	}
	for i := range out {
		_, out[i].diags = hclsyntax.ParseConfig(out[i].text, name, out[i].span.Start)
	}
	return out
}

// loadRest looks at what is whole in a file with syntax errors, so that one run names as many
// mistakes as can be told. The lines that are not whole are taken for empty ones; a complaint that
// could come from what stood there is none.
func (l *loader) loadRest(src []byte, broken *hcl.File, known hcl.Diagnostics) {
	if isJSON(l.rb.Path) {
		return
	}
	whole := slices.Clone(src)
	var lost []item
	for _, it := range items(l.rb.Path, src) {
		if !it.diags.HasErrors() {
			continue
		}
		lost = append(lost, it)
		for i := it.span.Start.Byte; i < it.span.End.Byte; i++ {
			if whole[i] != '\n' {
				whole[i] = ' '
			}
		}
	}
	file, diags := hclsyntax.ParseConfig(whole, l.rb.Path, hcl.InitialPos)
	if diags.HasErrors() || len(lost) == 0 || len(lost) > mostLost {
		return
	}
	l.rb.sources.add(l.rb.Path, &hcl.File{Bytes: src, Nav: places{whole: file.Nav, broken: broken.Nav, first: lost[0].span}})
	for _, it := range lost {
		if !slices.ContainsFunc(known, func(d *hcl.Diagnostic) bool { return within(d, it.span) }) && len(lost) > 1 {
			l.add(it.diags[:1]) // the parser never came to it
		}
	}
	rest := &loader{opts: l.opts, rb: l.rb, refused: l.refused, files: l.files}
	rest.scope = newScope(rest)
	rest.loadBody(file.Body)
	for _, d := range rest.diags {
		if !slices.ContainsFunc(lost, func(it item) bool { return it.explains(d) }) {
			l.diags = append(l.diags, d)
		}
	}
}

// places names the block that a place is in, as hcl prints it: where the file is whole by the tree of
// the rest, up to the end of the first break by the broken tree, which is wrong behind it.
type places struct {
	whole, broken any
	first         hcl.Range
}

// ContextString is what hcl's writer of diagnostics asks for.
func (p places) ContextString(offset int) string {
	type named interface{ ContextString(offset int) string }
	if n, ok := p.whole.(named); ok {
		if name := n.ContextString(offset); name != "" {
			return name
		}
	}
	if n, ok := p.broken.(named); ok && offset < p.first.End.Byte {
		return n.ContextString(offset)
	}
	return ""
}

func within(d *hcl.Diagnostic, r hcl.Range) bool {
	return d.Subject != nil && d.Subject.Start.Byte >= r.Start.Byte && d.Subject.Start.Byte < r.End.Byte
}

// explains reports that a complaint may come from the item's not being read.
func (it item) explains(d *hcl.Diagnostic) bool {
	if what, is := strings.CutPrefix(d.Summary, "Missing "); is {
		what, is = strings.CutSuffix(what, " block")
		return is && bytes.Contains(it.text, []byte(what))
	}
	switch d.Summary {
	case "Unknown local":
		return it.kind == "locals"
	case "Unknown variable":
		return it.kind == "variable" && (it.label == "" || strings.Contains(d.Detail, `"`+it.label+`"`))
	}
	return false
}

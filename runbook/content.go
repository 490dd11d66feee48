package runbook

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

func schema(attrs []string, blocks ...hcl.BlockHeaderSchema) *hcl.BodySchema {
	s := &hcl.BodySchema{Blocks: blocks}
	for _, name := range attrs {
		s.Attributes = append(s.Attributes, hcl.AttributeSchema{Name: name})
	}
	return s
}

func block(name string, labels ...string) hcl.BlockHeaderSchema {
	return hcl.BlockHeaderSchema{Type: name, LabelNames: labels}
}

func words(list string) []string { return strings.Fields(list) }

// The language, block by block. What stands in a step's body is known to the step's kind only.
var (
	rootSchema = schema(nil,
		block("runbook", "name"), block("variable", "name"), block("locals"),
		block("source"), block("target"), block("schema"), block("tables"), block("table", "pattern"),
		block("capture"), block("copy"), block("catch_up"), block("verify"), block("limit", "kind"),
		block("cutover"), block("rollback"), block("finish"))

	runbookSchema    = schema(words("required_version"))
	variableSchema   = schema(words("type default description sensitive nullable"), block("validation"))
	validationSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{
		{Name: "condition", Required: true}, {Name: "error_message", Required: true},
	}}

	serverSchema = schema(words("url service inherit_env password_command apply_role replica_role_function"))
	tablesSchema = schema(words("include exclude exclude_data"))
	tableSchema  = schema(words("data key identity method chunk"))
	limitSchema  = schema(words("max then"))
	poolerSchema = schema(words("admin database config_file connect timeout"))
	stepsSchema  = schema(nil, block("step", "kind", "name"))

	hookBlocks = []hcl.BlockHeaderSchema{block("before"), block("after")}

	phaseSchemas = map[string]*hcl.BodySchema{
		"schema":   schema(words("enabled mode roles owners on_ddl settings"), hookBlocks...),
		"capture":  schema(nil, hookBlocks...),
		"copy":     schema(words("method workers chunk"), hookBlocks...),
		"catch_up": schema(nil, hookBlocks...),
		"verify":   schema(words("enabled mode workers"), hookBlocks...),
		"cutover": schema(words("enabled max_write_block attempts retry_every window sequence_margin closed_error "+
			"closed_message large_objects read_only end_sessions"),
			block("before"), block("switch"), block("after"), block("pooler", "kind", "name")),
		"rollback": schema(words("enabled keep_for max_write_block"), hookBlocks...),
		"finish":   schema(words("source"), hookBlocks...),
	}
)

// phaseNames are the phases in their order.
var phaseNames = []string{"schema", "capture", "copy", "catch_up", "verify", "cutover", "rollback", "finish"}

// examples show how a block with labels is written.
var examples = map[string]string{
	"runbook":  `runbook "erp-to-rds" { }`,
	"variable": `variable "source_url" { }`,
	"table":    `table "public.orders" { }`,
	"limit":    `limit "delta_size" { }`,
	"pooler":   `pooler "pgbouncer" "main" { }`,
	"step":     `step "exec" "dns" { }, the kind first and then a name of your choice`,
}

// content splits a body by its schema. What is not in the schema, missing or written in the
// wrong form is reported in words that say how to write it.
func (l *loader) content(body hcl.Body, s *hcl.BodySchema, where string) *hcl.BodyContent {
	native, ok := body.(*hclsyntax.Body)
	if !ok {
		content, diags := body.Content(s)
		for _, d := range diags {
			l.explainStructure(d, s, where)
		}
		l.add(diags)
		return content
	}
	content, _, diags := body.PartialContent(s)
	for _, d := range diags {
		l.explainStructure(d, s, where)
	}
	l.add(diags)
	for name, attr := range native.Attributes {
		if !slices.ContainsFunc(s.Attributes, func(a hcl.AttributeSchema) bool { return a.Name == name }) {
			l.diags = append(l.diags, newError(attr.NameRange, "Unknown argument", unknownArgument(name, s, where)))
		}
	}
	for _, b := range native.Blocks {
		// A dynamic block has its own message.
		if b.Type != "dynamic" && !slices.ContainsFunc(s.Blocks, func(h hcl.BlockHeaderSchema) bool { return h.Type == b.Type }) {
			l.diags = append(l.diags, newError(b.TypeRange, "Unknown block", unknownBlock(b.Type, s, where)))
		}
	}
	return content
}

func attributeNames(s *hcl.BodySchema) []string {
	var out []string
	for _, a := range s.Attributes {
		out = append(out, a.Name)
	}
	return out
}

func blockNames(s *hcl.BodySchema) []string {
	var out []string
	for _, b := range s.Blocks {
		out = append(out, b.Type)
	}
	return out
}

func unknownArgument(name string, s *hcl.BodySchema, where string) string {
	lead := fmt.Sprintf("%q is no argument of %s.", name, where)
	if slices.Contains(blockNames(s), name) {
		return fmt.Sprintf("%q is a block. Write it without the equals sign: %s { ... }", name, name)
	}
	if near := SuggestKind(name, attributeNames(s)); near != "" {
		return fmt.Sprintf("%s Did you mean %q?", lead, near)
	}
	if near := SuggestKind(name, blockNames(s)); near != "" {
		return fmt.Sprintf("%s Did you mean the block %q? Write it without the equals sign: %s { ... }", lead, near, near)
	}
	if hint := misplaced(name); hint != "" {
		return lead + " " + hint
	}
	return lead + " " + allowed(s)
}

func unknownBlock(name string, s *hcl.BodySchema, where string) string {
	lead := fmt.Sprintf("%q is no block of %s.", name, where)
	if slices.Contains(attributeNames(s), name) {
		return fmt.Sprintf("%q is an argument. Write it with an equals sign: %s = ...", name, name)
	}
	// The place of a known word comes before a similar word: step is not a slip for something else.
	if hint := misplaced(name); hint != "" {
		return lead + " " + hint
	}
	if near := SuggestKind(name, blockNames(s)); near != "" {
		return fmt.Sprintf("%s Did you mean %q?", lead, near)
	}
	if near := SuggestKind(name, attributeNames(s)); near != "" {
		return fmt.Sprintf("%s Did you mean the argument %q? Write it with an equals sign: %s = ...", lead, near, near)
	}
	return lead + " " + allowed(s)
}

// misplaced says where a word of the language belongs.
func misplaced(name string) string {
	switch name {
	case "before", "after":
		return "before { } and after { } stand in a phase: " + strings.Join(phaseNames, ", ") + "."
	case "switch", "pooler":
		return fmt.Sprintf("%s stands in cutover { }.", name)
	case "step":
		return "Steps stand in before { } or after { } of a phase, or in switch { } of the cutover."
	case "validation":
		return "validation { } stands in a variable block."
	case "dynamic", "for_each":
		return noDynamic
	}
	if slices.Contains(blockNames(rootSchema), name) {
		return fmt.Sprintf("%s { } stands at the top level of the file.", name)
	}
	for _, phase := range phaseNames {
		if slices.Contains(attributeNames(phaseSchemas[phase]), name) {
			return fmt.Sprintf("%s is an argument of %s { }.", name, phase)
		}
	}
	return ""
}

const noDynamic = "A runbook has no loops: it is read as the list of what will happen. Write every block out; a pattern such as \"erp.*\" covers many tables."

func allowed(s *hcl.BodySchema) string {
	var parts []string
	if names := attributeNames(s); len(names) > 0 {
		parts = append(parts, "arguments "+strings.Join(names, ", "))
	}
	if names := blockNames(s); len(names) > 0 {
		parts = append(parts, "blocks "+strings.Join(names, ", "))
	}
	if len(parts) == 0 {
		return "It takes nothing."
	}
	return "It takes the " + strings.Join(parts, " and the ") + "."
}

// explainStructure puts HCL's own structural messages into our words.
func (l *loader) explainStructure(d *hcl.Diagnostic, s *hcl.BodySchema, where string) {
	switch {
	case strings.HasPrefix(d.Summary, "Missing required argument"):
		d.Detail = strings.TrimSuffix(d.Detail, ", but no definition was found.") + " in " + where + ". Add it."
	case strings.HasPrefix(d.Summary, "Extraneous JSON object property"):
		name := strings.Trim(string(l.rb.sources.slice(d.Subject)), `"`)
		d.Summary = "Unknown property"
		d.Detail = unknownProperty(name, s, where)
	case strings.HasPrefix(d.Summary, "Extraneous label"):
		d.Detail = strings.TrimPrefix(d.Summary, "Extraneous label for ") + " has fewer labels. Remove this one."
	case strings.HasPrefix(d.Summary, "Missing "):
		for name, example := range examples {
			if strings.HasSuffix(d.Summary, " for "+name) {
				d.Detail = fmt.Sprintf("A %s block carries its name behind its type. Write %s.", name, example)
			}
		}
	}
}

// unknownProperty is unknownArgument for the JSON twin, where blocks and arguments look alike.
func unknownProperty(name string, s *hcl.BodySchema, where string) string {
	lead := fmt.Sprintf("%q is no property of %s.", name, where)
	if near := SuggestKind(name, append(attributeNames(s), blockNames(s)...)); near != "" {
		return fmt.Sprintf("%s Did you mean %q?", lead, near)
	}
	if hint := misplaced(name); hint != "" {
		return lead + " " + hint
	}
	return lead + " " + allowed(s)
}

// checkDynamic refuses dynamic blocks wherever they stand, steps included.
func (l *loader) checkDynamic(root *hclsyntax.Body) {
	_ = hclsyntax.VisitAll(root, func(n hclsyntax.Node) hcl.Diagnostics {
		if b, ok := n.(*hclsyntax.Block); ok && b.Type == "dynamic" {
			l.errorf(b.TypeRange, "Dynamic block", "%s", noDynamic)
		}
		return nil
	})
}

// hasBlock reports whether the file has a block of a type at its top level, well formed or not.
func (l *loader) hasBlock(name string) bool {
	native, ok := l.root.(*hclsyntax.Body)
	return ok && slices.ContainsFunc(native.Blocks, func(b *hclsyntax.Block) bool { return b.Type == name })
}

// single returns the only block of a type, or nil, and reports the others.
func (l *loader) single(content *hcl.BodyContent, name string) *hcl.Block {
	var first *hcl.Block
	for _, b := range content.Blocks.OfType(name) {
		if first == nil {
			first = b
			continue
		}
		l.errorf(b.TypeRange, "Duplicate block", "There is one %s block in a runbook, and it stands at %s. Put the settings of both into one.", name, first.DefRange)
	}
	return first
}

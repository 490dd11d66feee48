package runbook

import (
	"fmt"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

func (l *loader) loadTables(block *hcl.Block) {
	b := l.newBody(l.content(block.Body, tablesSchema, "tables"), block.DefRange)
	l.rb.Tables = Tables{
		Include:     l.patterns(b, "include"),
		Exclude:     l.patterns(b, "exclude"),
		ExcludeData: l.patterns(b, "exclude_data"),
		Range:       block.DefRange,
	}
	if b.Known("include") && len(l.rb.Tables.Include) == 0 && b.value("include").LengthInt() == 0 {
		b.Errorf("include", "Empty scope", "An empty list would carry nothing. Write patterns such as \"erp.*\", or leave include out for every schema.")
	}
	l.add(b.Done())
}

// patterns reads a list of patterns, each with its own place in the file.
func (l *loader) patterns(b *Body, name string) []Pattern {
	b.ask(name)
	attr := b.attrs[name]
	if attr == nil {
		return nil
	}
	var out []Pattern
	elements, diags := hcl.ExprList(attr.Expr)
	if diags.HasErrors() {
		for _, text := range b.Strings(name) {
			out = append(out, Pattern{Text: text, Range: attr.Expr.Range()})
		}
	} else {
		for _, element := range elements {
			if text, ok := l.patternText(b, element, name); ok {
				out = append(out, Pattern{Text: text, Range: element.Range()})
			}
		}
	}
	seen := map[string]hcl.Range{}
	good := out[:0]
	for _, p := range out {
		c, err := p.compile()
		if err != nil {
			l.badPattern(p.Range, err)
			continue
		}
		if first, ok := seen[c.canonical]; ok {
			l.errorf(p.Range, "Duplicate pattern", "%s stands in %s already, at %s. Remove one of them.", p.Text, name, first)
			continue
		}
		seen[c.canonical] = p.Range
		good = append(good, p)
	}
	return good
}

func (l *loader) patternText(b *Body, expr hcl.Expression, name string) (string, bool) {
	v, diags := evaluate(expr, b.eval)
	l.add(diags)
	if diags.HasErrors() {
		return "", false
	}
	if v.ContainsMarked() {
		l.errorf(expr.Range(), "Sensitive value", "%s is shown in plans and logs, and this value comes from a sensitive variable. Use another value here.", name)
		return "", false
	}
	if !v.IsKnown() {
		return "", false
	}
	text, err := convert.Convert(v, cty.String)
	if err != nil || text.IsNull() {
		l.errorf(expr.Range(), "Wrong type", "%s must be a list of patterns, such as [\"erp.*\", \"billing.*\"].", name)
		return "", false
	}
	return text.AsString(), true
}

func (l *loader) badPattern(at hcl.Range, err error) {
	l.errorf(at, "Bad table pattern", "%s.", capitalize(err.Error()))
}

var (
	copyMethods = []string{"stream", "pg_dump", "external"}
	dataWords   = []string{"live", "at_freeze", "none"}
	identities  = []string{"key", "append_only", "full_row"}
)

func (l *loader) loadRules(content *hcl.BodyContent) {
	seen := map[string]hcl.Range{}
	for _, block := range content.Blocks.OfType("table") {
		b := l.newBody(l.content(block.Body, tableSchema, "table"), block.DefRange)
		rule := TableRule{
			Pattern:  Pattern{Text: block.Labels[0], Range: block.LabelRanges[0]},
			Data:     b.Enum("data", "", dataWords...),
			Key:      b.Strings("key"),
			Identity: b.Enum("identity", "", identities...),
			Method:   b.Enum("method", "", copyMethods...),
			Chunk:    b.Size("chunk", 0),
			Range:    block.DefRange,
		}
		l.checkRule(b, rule)
		l.add(b.Done())
		c, err := rule.Pattern.compile()
		if err != nil {
			l.badPattern(rule.Pattern.Range, err)
			continue
		}
		if first, ok := seen[c.canonical]; ok {
			l.errorf(rule.Pattern.Range, "Duplicate table block", "A table block for %s stands at %s already. Put the settings of both into one.", rule.Pattern.Text, first)
			continue
		}
		seen[c.canonical] = block.DefRange
		l.rb.Rules = append(l.rb.Rules, rule)
	}
}

func (l *loader) checkRule(b *Body, rule TableRule) {
	if b.Known("key") && len(rule.Key) == 0 {
		b.Errorf("key", "Empty key", "key lists the columns of a unique index, such as [\"invoice\", \"no\"]. Leave it out for the primary key.")
	}
	for i, column := range rule.Key {
		if column == "" || slices.Contains(rule.Key[:i], column) {
			b.Errorf("key", "Bad key", "key holds %q twice or an empty name. List the columns of a unique index once each.", column)
		}
	}
	if len(rule.Key) > 0 && rule.Identity != "" && rule.Identity != "key" {
		b.Errorf("identity", "Key and identity disagree", "identity = %q is for tables without a key, and key names one. Remove one of them.", rule.Identity)
	}
	if len(b.attrs) == 0 {
		l.errorf(b.at, "Empty table block", "A table block that sets nothing changes nothing. Set one of data, key, identity, method, chunk, or remove it.")
	}
}

// Decision says what happens to one table.
type Decision int

const (
	// Out is a table that is neither carried nor gated.
	Out Decision = iota
	// Carried is a table that goes over with its rows.
	Carried
	// ExcludeData is a table that exists on the target without its rows; it is gated.
	ExcludeData
)

func (d Decision) String() string {
	switch d {
	case Carried:
		return "carried"
	case ExcludeData:
		return "exclude_data"
	case Out:
	}
	return "out"
}

// MarshalText writes the word of String.
func (d Decision) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Decide says what happens to a table, names as in the catalog. An exact name beats patterns;
// at the same specificity exclude beats exclude_data and that beats include. exclude_data makes
// no table part of the scope that include leaves out, as in pg_dump. System schemas are out.
func (t Tables) Decide(schema, table string) Decision {
	if systemSchema(schema) {
		return Out
	}
	covers := func(list []Pattern, exact bool) bool {
		return slices.ContainsFunc(list, func(p Pattern) bool {
			return p.Exact() == exact && p.Match(schema, table)
		})
	}
	named, emptied := covers(t.Include, true), covers(t.ExcludeData, true)
	inScope := named || covers(t.Include, false) || len(t.Include) == 0
	switch {
	case covers(t.Exclude, true), !inScope:
		return Out
	case emptied:
		return ExcludeData
	case named:
		return Carried
	case covers(t.Exclude, false):
		return Out
	case covers(t.ExcludeData, false):
		return ExcludeData
	}
	return Carried
}

// RuleFor merges the table blocks that cover one table. What an exact name sets beats patterns;
// two patterns that set one attribute differently are an error with both places. The result's
// Pattern and Range are those of the strongest block; both are zero when no block covers it.
func (r *Runbook) RuleFor(schema, table string) (TableRule, hcl.Diagnostics) {
	var covering []TableRule
	for _, rule := range r.Rules {
		if !rule.Pattern.Match(schema, table) {
			continue
		}
		if rule.Pattern.Exact() {
			covering = slices.Insert(covering, 0, rule)
		} else {
			covering = append(covering, rule)
		}
	}
	if len(covering) == 0 {
		return TableRule{}, nil
	}
	m := merge{table: schema + "." + table, from: map[string]TableRule{}}
	out := TableRule{Pattern: covering[0].Pattern, Range: covering[0].Range}
	for _, rule := range covering {
		mergeInto(&m, "data", &out.Data, rule.Data, rule, rule.Data != "", rule.Data == out.Data)
		mergeInto(&m, "key", &out.Key, rule.Key, rule, rule.Key != nil, slices.Equal(rule.Key, out.Key))
		mergeInto(&m, "identity", &out.Identity, rule.Identity, rule, rule.Identity != "", rule.Identity == out.Identity)
		mergeInto(&m, "method", &out.Method, rule.Method, rule, rule.Method != "", rule.Method == out.Method)
		mergeInto(&m, "chunk", &out.Chunk, rule.Chunk, rule, rule.Chunk != 0, rule.Chunk == out.Chunk)
	}
	m.oneIdentity(&out)
	return out, m.diags
}

// oneIdentity lets an exact block's key or identity replace the other of a pattern's.
func (m *merge) oneIdentity(out *TableRule) {
	if out.Key == nil || out.Identity == "" || out.Identity == "key" {
		return
	}
	key, identity := m.from["key"], m.from["identity"]
	switch {
	case key.Pattern.Exact() && !identity.Pattern.Exact():
		out.Identity = ""
	case identity.Pattern.Exact() && !key.Pattern.Exact():
		out.Key = nil
	default:
		m.diags = append(m.diags, newError(identity.Pattern.Range, "Two table blocks disagree", fmt.Sprintf(
			"%s (%s) gives table %s a key and %s (%s) identity = %q, which is for tables without one. Write table %q with the one that it should have: an exact name beats patterns.",
			key.Pattern.Text, key.Range, m.table, identity.Pattern.Text, identity.Range, out.Identity, m.table)))
	}
}

// merge remembers which block set which attribute.
type merge struct {
	table string
	from  map[string]TableRule
	diags hcl.Diagnostics
}

func mergeInto[T any](m *merge, name string, dst *T, value T, rule TableRule, isSet, same bool) {
	if !isSet {
		return
	}
	first, taken := m.from[name]
	if !taken {
		*dst = value
		m.from[name] = rule
		return
	}
	if same || first.Pattern.Exact() {
		return
	}
	m.diags = append(m.diags, newError(rule.Pattern.Range, "Two table blocks disagree", fmt.Sprintf(
		"Both %s (%s) and %s (%s) cover table %s and set %s differently. Write table %q with the %s that it should have: an exact name beats patterns.",
		first.Pattern.Text, first.Range, rule.Pattern.Text, rule.Range, m.table, name, m.table, name)))
}

package runbook

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// ReadFile reads a runbook as Load does, with its limit of size.
func ReadFile(path string) ([]byte, error) { return readFile(path) }

// Differences names what two texts of a runbook have that differs in meaning, such as
// "cutover.max_write_block changed". Comments, layout and the order of unlike blocks count for nothing.
// Values are not shown: one of them may be a secret that stands where it must not.
func Differences(path string, was, is []byte) []string {
	if bytes.Equal(was, is) {
		return nil
	}
	a, _ := meaning(path, was)
	b, ok := meaning(path, is)
	if !ok {
		return []string{"it cannot be read any more"}
	}
	changed := map[string]bool{}
	var out []string
	say := func(name, what string) {
		changed[name] = true
		for parent := range changed {
			if parent != name && strings.HasPrefix(name, parent+".") {
				return // said of the block that it stands in
			}
		}
		out = append(out, name+" "+what)
	}
	for _, name := range slices.Sorted(maps.Keys(b)) {
		switch had, ok := a[name]; {
		case !ok:
			say(name, "is new")
		case had != b[name]:
			out = append(out, name+" changed")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if _, ok := b[name]; !ok {
			say(name, "is gone")
		}
	}
	return out
}

// meaning lists what a text says: arguments and blocks by their path.
func meaning(path string, src []byte) (map[string]string, bool) {
	out := map[string]string{}
	if isJSON(path) {
		var doc any
		if json.Unmarshal(src, &doc) != nil {
			return out, false
		}
		flatten(out, "", doc)
		return out, true
	}
	file, diags := hclsyntax.ParseConfig(src, path, hcl.InitialPos)
	if diags.HasErrors() {
		return out, false
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if ok {
		bodyMeaning(out, "", src, body)
	}
	return out, ok
}

// Names reports whether a text is that of the runbook with this name. One that cannot be read may be.
func Names(path string, src []byte, name string) bool {
	said, ok := meaning(path, src)
	block := "runbook " + strconv.Quote(name)
	another := "runbook \""
	if isJSON(path) {
		block, another = "runbook."+name, "runbook."
	}
	if _, found := said[block]; !ok || found {
		return true
	}
	for key := range said {
		if strings.HasPrefix(key, another) {
			return false
		}
	}
	return true
}

func bodyMeaning(out map[string]string, prefix string, src []byte, body *hclsyntax.Body) {
	for name, attr := range body.Attributes {
		out[prefix+name] = exprMeaning(src, attr.Expr.Range())
	}
	seen, order := map[string]int{}, map[string][]string{}
	for _, block := range body.Blocks {
		name := block.Type
		for _, label := range block.Labels {
			name += " " + strconv.Quote(label)
		}
		if seen[name]++; seen[name] > 1 {
			name += " " + strconv.Itoa(seen[name])
		}
		out[prefix+name] = ""
		order[block.Type] = append(order[block.Type], name)
		bodyMeaning(out, prefix+name+".", src, block.Body)
	}
	for _, kind := range []string{"step", "table"} { // the one runs, the other decides, in the order of the file
		if len(order[kind]) > 1 {
			out[prefix+"the order of "+kind+"s"] = strings.Join(order[kind], ",")
		}
	}
}

// exprMeaning is an expression without comments and layout.
func exprMeaning(src []byte, at hcl.Range) string {
	tokens, _ := hclsyntax.LexExpression(at.SliceBytes(src), "", hcl.InitialPos)
	var out []string
	for _, t := range tokens {
		if t.Type == hclsyntax.TokenNewline || t.Type == hclsyntax.TokenComment || t.Type == hclsyntax.TokenEOF {
			continue
		}
		out = append(out, string(t.Bytes))
	}
	return strings.ReplaceAll(strings.Join(out, "\x00")+"\x00", ",\x00]\x00", "]\x00") // a comma may stand behind the last one
}

func flatten(out map[string]string, prefix string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			out[prefix+name] = ""
			flatten(out, prefix+name+".", value)
		}
	case []any:
		for i, value := range v {
			flatten(out, prefix+strconv.Itoa(i+1)+".", value)
		}
	default:
		text, _ := json.Marshal(v) //nolint:errchkjson // it came from JSON
		out[strings.TrimSuffix(prefix, ".")] = string(text)
	}
}

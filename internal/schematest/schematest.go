// Package schematest holds what the program prints for machines to docs/events.schema.json. It is for
// tests alone: each of them that has such lines at hand, real ones too, checks them here.
package schematest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// load compiles the published schema once; the tests of any package run below the module's root.
var load = sync.OnceValues(func() (*jsonschema.Schema, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		f, err := os.Open(filepath.Join(dir, "docs", "events.schema.json"))
		if err == nil {
			defer func() { _ = f.Close() }()
			doc, err := jsonschema.UnmarshalJSON(f)
			if err != nil {
				return nil, err
			}
			c := jsonschema.NewCompiler()
			c.AssertFormat()
			if err := c.AddResource("events.json", doc); err != nil {
				return nil, err
			}
			return c.Compile("events.json")
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return nil, err
	}
})

// Lines checks every line of an output and gives their types in order. A field that the schema does not
// know must not pass unseen, so each line is tried with one more, which has to be refused.
func Lines(output string) (types []string, err error) {
	schema, err := load()
	if err != nil {
		return nil, fmt.Errorf("reading the schema: %w", err)
	}
	for _, line := range strings.Split(strings.TrimSpace(output), "\n") {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err != nil {
			return types, fmt.Errorf("%q is no JSON: %w", line, err)
		}
		object, ok := v.(map[string]any)
		if !ok {
			return types, fmt.Errorf("%q is no object", line)
		}
		if err := schema.Validate(object); err != nil {
			return types, fmt.Errorf("%s\ndoes not fit docs/events.schema.json: %w", line, err)
		}
		types = append(types, fmt.Sprint(object["type"]))
		object["surprise"] = true
		if schema.Validate(object) == nil {
			return types, errors.New("the schema takes a field that it does not describe in " + line)
		}
	}
	return types, nil
}

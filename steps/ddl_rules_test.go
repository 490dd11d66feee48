package steps

import (
	"slices"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// ddlRule is what the plan says becomes of a kind of DDL.
type ddlRule string

const (
	carriedRule ddlRule = "carried" // or stops the run: as on_ddl says
	againRule   ddlRule = "loaded again, whatever on_ddl says: "
	stopsRule   ddlRule = "stops, named: "
	leftOutRule ddlRule = "left out, named: "
	namedRule   ddlRule = "named before and after the freeze: "
)

// kindsOfDDL are what the source may do in mid-run, in the plan's words.
var kindsOfDDL = map[ddlRule][]string{
	carriedRule: {
		"ADD COLUMN", "a column or partition added", "SET DEFAULT", "a default", "SET NOT NULL", "NOT NULL", "TYPE", "type", "ADD GENERATED", "identity", "DROP EXPRESSION", "INHERIT", "inheritance changed",
		"CREATE TABLE ... PARTITION OF", "DROP TABLE ... CASCADE", "a table, partition or column dropped", "DROP COLUMN ... CASCADE", "a partition that hangs elsewhere or under other bounds",
		"new schemas, tables, sequences, types, functions and views", "ADD VALUE", "RENAME VALUE", "labels", "ALTER TABLE, ALTER DOMAIN ... ADD, DROP CONSTRAINT", "constraints",
		"CREATE OR REPLACE FUNCTION, VIEW", "definitions that changed", "ALTER SEQUENCE",
	},
	againRule:   {"rewritten with other rows", "partitions were detached or swapped", "no key and got or lost a column", "came to inherit", "triggers were touched"},
	stopsRule:   {"a table or column that was renamed", "a key's column or type", "a parent outside of the scope", "a change without a statement that makes it"},
	leftOutRule: {"a temporary object"},
	namedRule:   {"owners", "grants", "comments", "options", "extension versions", "dropped on the source but is still on the target"},
}

// The plan says of every kind of DDL in mid-run what becomes of it, by the runbook's on_ddl or whatever that says.
func TestPlanNamesTheRuleOfEveryKindOfDDL(t *testing.T) {
	const carries, stops = ` is carried (schema { on_ddl = "carry" })`, ` stops the run and is named (schema { on_ddl = "stop" })`
	for schema, said := range map[string]string{"": stops, `schema { on_ddl = "stop" }`: stops, `schema { on_ddl = "carry" }`: carries} {
		t.Run(schema, func(t *testing.T) {
			rules := plannedRules(t, schema)
			for _, a := range rules {
				by := 0
				for r := range kindsOfDDL {
					if a.follows(r, said) {
						by++
					}
				}
				if by != 1 {
					t.Errorf("%d rules hold for %q", by, a.text)
				}
			}
			for r, kinds := range kindsOfDDL {
				for _, kind := range kinds {
					if !slices.ContainsFunc(rules, func(a plannedRule) bool { return a.follows(r, said) && strings.Contains(a.text, kind) }) {
						t.Errorf("the plan does not say that %q is %s", kind, r)
					}
				}
			}
		})
	}
}

// plannedRule is what a plan says of some kinds of DDL.
type plannedRule struct{ text string }

func (p plannedRule) follows(r ddlRule, said string) bool {
	if r == carriedRule {
		return strings.Contains(p.text, said)
	}
	return strings.Contains(p.text, string(r))
}

func plannedRules(t *testing.T, schema string) (out []plannedRule) {
	t.Helper()
	env, _, _ := planned(t, twoTables, schema+"\n")
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil || p.Blocking() {
		t.Fatalf("planning: %v %+v", err, p.Findings)
	}
	step, _ := p.Step(catchUpID)
	for _, a := range step.Actions {
		if a.Group == "DDL on the source meanwhile" {
			if a.On != engine.Target {
				t.Errorf("%q is on the %s", a.Why, a.On)
			}
			out = append(out, plannedRule{a.SQL + ": " + a.Why})
		}
	}
	return out
}

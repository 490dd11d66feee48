package steps

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// kindsOfDDL are what the source may do in mid-run, by what becomes of it in the plan's words; "" is as on_ddl says.
var kindsOfDDL = map[string][]string{
	"": {
		"columns that are new", "another type, default, NOT NULL or identity", "generated no more", "inheritance", "new and attached partitions",
		"dropped tables, columns and sequences", "partitions that came back elsewhere",
		"new schemas, tables, sequences, types, domains, functions, views, materialized views, extensions", "labels of enums, check constraints of tables and domains, functions, views and sequences that changed",
		"indexes, keys, foreign keys, triggers, rewrite rules, policies and statistics that changed or were dropped",
	},
	"carried, whatever on_ddl says":            {"new indexes, keys, foreign keys, triggers, rewrite rules, policies and statistics", "new checks that are NOT VALID", "which triggers and rules are enabled"},
	"table loaded again, whatever on_ddl says": {"rewritten with other rows", "partitions were detached, dropped or swapped", "no key and got or lost a column", "came to inherit", "triggers of ours were touched"},
	"stops, named, with what to do":            {"a renamed table, partition or column", "a key's column or type, or that no index is left over its columns", "became generated", "a parent outside of the scope", "a foreign partition", "a change without a statement that makes it"},
	"left out, named":                          {"a temporary object"},
	"named before and after the freeze":        {"owners", "grants", "comments", "options", "extension versions", "materialized views that changed", "dropped schemas, types, functions, views and other objects"},
}

// The plan says of every kind of DDL in mid-run what becomes of it, by the runbook's on_ddl or whatever that says.
func TestPlanNamesTheRuleOfEveryKindOfDDL(t *testing.T) {
	const carries, stops = "carried", `stops, named (carried with on_ddl = "carry")`
	for schema, said := range map[string]string{"": stops, `schema { on_ddl = "stop" }`: stops, `schema { on_ddl = "carry" }`: carries} {
		t.Run(schema, func(t *testing.T) {
			rules := plannedRules(t, schema)
			for _, r := range rules {
				if _, known := kindsOfDDL[r.Then]; r.Then != said && !known {
					t.Errorf("a rule that nobody asks for: %+v", r)
				}
			}
			for then, kinds := range kindsOfDDL {
				for _, kind := range kinds {
					if !slices.ContainsFunc(rules, func(r engine.Rule) bool { return r.Then == cmp.Or(then, said) && strings.Contains(r.Change, kind) }) {
						t.Errorf("the plan does not say that %q is %s", kind, cmp.Or(then, said))
					}
				}
			}
		})
	}
}

func plannedRules(t *testing.T, schema string) []engine.Rule {
	t.Helper()
	env, _, _ := planned(t, twoTables, schema+"\n")
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil || p.Blocking() {
		t.Fatalf("planning: %v %+v", err, p.Findings)
	}
	step, _ := p.Step(catchUpID)
	return step.Rules
}

// What is made when the rows are there comes in either mode while it is new; what changed or went of it stops without "carry".
func TestF41NewAfterRowsWithoutCarry(t *testing.T) {
	r := following(t, "")
	r.exec(r.source, `CREATE INDEX invoice_total ON shop.invoice (total); ALTER TABLE shop.customer ADD CONSTRAINT customer_name UNIQUE (name);
		CREATE TRIGGER customer_t BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
		CREATE RULE log_r AS ON UPDATE TO shop.lock DO ALSO NOTHING; CREATE POLICY p ON shop.invoice USING (total > 0); CREATE STATISTICS shop.s ON customer, total FROM shop.invoice`)
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env)))
	r.sameDefinitions(t)
	for _, c := range []struct{ sql, undo, named string }{
		{"DROP INDEX shop.invoice_total", "CREATE INDEX invoice_total ON shop.invoice (total)", "invoice_total"},
		{"ALTER TABLE shop.customer DROP CONSTRAINT customer_name", "ALTER TABLE shop.customer ADD CONSTRAINT customer_name UNIQUE (name)", "customer_name"},
		{"ALTER TABLE shop.customer RENAME CONSTRAINT customer_pkey TO customer_pk", "ALTER TABLE shop.customer RENAME CONSTRAINT customer_pk TO customer_pkey", "customer_pk"},
		{"ALTER SEQUENCE shop.invoice_id_seq RENAME TO invoice_ids", "ALTER SEQUENCE shop.invoice_ids RENAME TO invoice_id_seq", `this sequence was "shop"."invoice_id_seq"`},
		{"DROP TRIGGER customer_t ON shop.customer", "CREATE TRIGGER customer_t BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()", "customer_t"},
		{"CREATE OR REPLACE RULE log_r AS ON UPDATE TO shop.lock DO INSTEAD NOTHING", "CREATE OR REPLACE RULE log_r AS ON UPDATE TO shop.lock DO ALSO NOTHING", "log_r"},
		{"ALTER POLICY p ON shop.invoice USING (total > 1)", "ALTER POLICY p ON shop.invoice USING (total > 0)", `"p"`},
		{"DROP STATISTICS shop.s", "CREATE STATISTICS shop.s ON customer, total FROM shop.invoice", `"s"`},
	} {
		r.exec(r.source, c.sql)
		if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), c.named) || !strings.Contains(engine.HintOf(err), `on_ddl = "carry"`) {
			t.Errorf("%s: %v, hint %q", c.sql, err, engine.HintOf(err))
		}
		r.exec(r.source, c.undo)
		r.must(r.catchUp())
	}
	r.exec(r.source, "ALTER TABLE shop.invoice ADD CONSTRAINT low CHECK (total < 5) NOT VALID; ALTER TABLE shop.customer DISABLE TRIGGER customer_t")
	r.must(r.catchUp())
}

package steps

import "github.com/pgrunbook/pgrunbook/engine"

// ddlRules say what becomes of DDL on the source while the run is under way.
func ddlRules(carry bool) []engine.Rule {
	carried := "carried"
	if !carry {
		carried = "stops, named (carried with on_ddl = \"carry\")"
	}
	return []engine.Rule{
		{
			Change: "columns that are new, or got another type, default, NOT NULL or identity, or are generated no more; inheritance; new and attached partitions", Then: carried,
			How: "ALTER TABLE ... ADD COLUMN, TYPE, SET DEFAULT, SET NOT NULL, ADD GENERATED, DROP EXPRESSION, INHERIT; CREATE TABLE ... PARTITION OF",
		},
		{
			Change: "dropped tables, columns and sequences; partitions that came back elsewhere or under other bounds", Then: carried,
			How: "DROP TABLE, ALTER TABLE ... DROP COLUMN, with CASCADE, and DROP SEQUENCE: with what depended on them. With an object in the way that the run did not bring, nothing is dropped: a sequence then stays, named, all else stops. A partition that came back is made again and read again",
		},
		{
			Change: "new schemas, tables, sequences, types, domains, functions, views, materialized views, extensions, and other objects", Then: carried,
			How: "pg_restore, of those that the patterns cover, with what they need and the target lacks; tables are gated, captured and loaded, or without a key reloaded inside the freeze",
		},
		{
			Change: "labels of enums, check constraints of tables and domains, functions, views and sequences that changed", Then: carried,
			How: "ALTER TYPE ... ADD VALUE, RENAME VALUE; ALTER TABLE, ALTER DOMAIN ... ADD, DROP CONSTRAINT; CREATE OR REPLACE FUNCTION, VIEW; ALTER SEQUENCE, RENAME of an identity's: before rows fail",
		},
		{
			Change: "new indexes, keys, foreign keys, triggers, rewrite rules, policies and statistics; new checks that are NOT VALID; which triggers and rules are enabled", Then: "carried, whatever on_ddl says",
			How: "made as they are by then, when the rows are there; named where they come after the last catch_up; checks and modes at the flip",
		},
		{
			Change: "indexes, keys, foreign keys, triggers, rewrite rules, policies and statistics that changed or were dropped", Then: carried,
			How: "DROP, and made anew; what the run finds rows by is renamed, or made anew in one transaction",
		},
		{
			Change: "a table that was rewritten with other rows, whose partitions were detached, dropped or swapped, that has no key and got or lost a column, that came to inherit, or whose triggers of ours were touched", Then: "table loaded again, whatever on_ddl says",
			How: "a partition that is gone is detached on the target; with on_ddl = \"carry\" one that was dropped is dropped there",
		},
		{
			Change: "a renamed table, partition or column; a key's column or type, or that no index is left over its columns; a column that became generated, or is by another expression; a parent outside of the scope; a foreign partition; a change without a statement that makes it, as of a composite type, an aggregate or a view's columns", Then: "stops, named, with what to do",
		},
		{Change: "what needs a temporary object", Then: "left out, named", How: "it goes with that when a session ends"},
		{
			Change: "owners, grants, comments, options, extension versions, materialized views that changed; dropped schemas, types, functions, views and other objects", Then: "named before and after the freeze",
			How: "what was dropped is still on the target",
		},
	}
}

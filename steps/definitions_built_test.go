package steps

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

// TestF41DroppedBeforeItWasCompared: what comes after the rows is made as the source has it at that time. What the source
// got since the structure was restored, and drops before both sides are compared, goes on the target too: a key that stayed
// there would refuse the application's rows after the flip.
func TestF41DroppedBeforeItWasCompared(t *testing.T) {
	r := newRig(t, "schema { on_ddl = \"carry\" }\n"+patient)
	ctx := t.Context()
	none := func(names string) {
		t.Helper()
		r.want(r.target, `SELECT count(*)::text FROM (
			SELECT relname FROM pg_class UNION ALL SELECT conname FROM pg_constraint UNION ALL SELECT tgname FROM pg_trigger UNION ALL SELECT polname FROM pg_policy) had (name)
			WHERE name::text IN (`+names+`)`, "0")
	}
	there := func(query string) {
		t.Helper()
		r.want(r.target, query, "t")
	}
	r.must(r.walk(ctx, newSchema(r.env), newCapture(r.env)))
	r.exec(r.source, "CREATE INDEX brief ON shop.customer (name); CREATE INDEX kept ON shop.invoice (total)")
	r.must(r.walk(ctx, newCopy(r.env)))
	there("SELECT to_regclass('shop.brief') IS NOT NULL")
	r.exec(r.source, "DROP INDEX shop.brief")
	r.must(r.walk(ctx, newCatchUp(r.env)))
	none("'brief'")
	r.exec(r.target, "CREATE INDEX brief ON shop.customer (name)") // a person's own, of that name
	r.must(r.catchUp())
	there("SELECT to_regclass('shop.brief') IS NOT NULL AND to_regclass('shop.kept') IS NOT NULL")
	r.exec(r.target, "DROP INDEX shop.brief")

	r.exec(r.source, `ALTER TABLE shop.invoice ADD CONSTRAINT brief_key FOREIGN KEY (id) REFERENCES shop.customer NOT VALID;
		CREATE UNIQUE INDEX brief_one ON shop.customer (name); CREATE POLICY brief_policy ON shop.customer USING (true);
		CREATE TRIGGER brief_trigger BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
		CREATE VIEW shop.brief_view AS SELECT id, name FROM shop.customer GROUP BY id`)
	r.must(r.walk(ctx, newConstraints(r.env)))
	there("SELECT to_regclass('shop.brief_one') IS NOT NULL AND to_regclass('shop.brief_view') IS NOT NULL")
	r.exec(r.source, `ALTER TABLE shop.invoice DROP CONSTRAINT brief_key; DROP INDEX shop.brief_one; DROP POLICY brief_policy ON shop.customer;
		DROP TRIGGER brief_trigger ON shop.customer; DROP VIEW shop.brief_view`)
	r.must(r.catchUp())
	none("'brief_key', 'brief_one', 'brief_policy', 'brief_trigger'")

	// Once more, and it stays this time.
	r.exec(r.source, "CREATE UNIQUE INDEX brief_one ON shop.customer (name)")
	r.must(r.env.Journal.Reopen(ctx, constraintsID, true, "it is a test"))
	r.must(r.walk(ctx, newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	there("SELECT to_regclass('shop.brief_one') IS NOT NULL")
	r.exec(r.source, "DROP INDEX shop.brief_one")
	err := r.walk(ctx, newFreeze(r.env, nil))
	if err == nil || !strings.Contains(err.Error(), `index "shop"."brief_one" was dropped`) || !strings.Contains(engine.HintOf(err), "catch_up carries it") {
		t.Fatalf("an index that the target alone has: %v", err)
	}
	r.must(r.catchUp())
	none("'brief_one'")
	r.must(r.walk(ctx, newFreeze(r.env, nil)))
	if text := `view "shop"."brief_view" was dropped on the source and is still on the target`; !r.heard(text) {
		t.Errorf("nobody was told that %s", text)
	}
	r.exec(r.target, "DROP VIEW shop.brief_view")
	r.sameDefinitions(t)
}

// TestF41DroppedSinceTheDump: a runner that died before its dump is followed by one much later. What the dump has that came
// meanwhile, and the source drops again, goes on the target too, or is named.
func TestF41DroppedSinceTheDump(t *testing.T) {
	r := newRig(t, "schema { on_ddl = \"carry\" }\n"+patient)
	ctx := t.Context()
	step := newSchema(r.env)
	conn, err := pgx.Connect(ctx, r.source)
	r.must(err)
	items, err := dump.Inventory(ctx, conn, r.env.Scope)
	r.must(err)
	r.must(conn.Close(ctx))
	_, err = r.env.Journal.Begin(ctx, step)
	r.must(err)
	r.must(r.env.Journal.Checkpoint(step.ID(), r.env.Sink).Save(ctx, nil, schemaCursor{Definitions: dump.Fingerprint(items)}))
	r.exec(r.source, `ALTER TABLE shop.customer ADD CONSTRAINT brief CHECK (id < 1000); CREATE FUNCTION shop.brief() RETURNS int LANGUAGE sql AS 'SELECT 1';
		CREATE SEQUENCE shop.brief_seq; CREATE FUNCTION shop.kept() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE INDEX kept_index ON shop.customer (name)`)
	r.must(r.walk(ctx, step))
	r.want(r.target, "SELECT count(*)::text FROM pg_constraint WHERE conname = 'brief'", "1")
	r.exec(r.source, "ALTER TABLE shop.customer DROP CONSTRAINT brief; DROP FUNCTION shop.brief(); DROP SEQUENCE shop.brief_seq")
	r.must(r.walk(ctx, newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	if text := `function "shop"."brief"() was dropped on the source and is still on the target`; !r.heard(text) {
		t.Errorf("nobody was told that %s", text)
	}
	r.exec(r.target, "DROP FUNCTION shop.brief()")
	r.sameDefinitions(t)
}

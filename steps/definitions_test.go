package steps

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

// Every kind of definition is an item, under one name on both sides of two majors.
func TestInventoryIsTheSameOnBothSides(t *testing.T) {
	r := newRig(t, "")
	r.exec(r.source, definitionsSetup)
	r.env.Plan = r.plan()
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env)))
	items := map[string]map[string]dump.Item{}
	for _, url := range []string{r.source, r.target} {
		conn, err := pgx.Connect(t.Context(), url)
		r.must(err)
		_, err = conn.Exec(t.Context(), "SET search_path = pg_catalog")
		r.must(err)
		items[url], err = dump.Inventory(t.Context(), conn, nil)
		r.must(err)
		_ = conn.Close(context.Background())
	}
	for id := range items[r.source] {
		if _, there := items[r.target][id]; !there {
			t.Errorf("only on the source: %s", id)
		}
	}
	for id := range items[r.target] {
		if _, there := items[r.source][id]; !there {
			t.Errorf("only on the target: %s", id)
		}
	}
}

const definitionsSetup = `
CREATE TYPE shop.mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0);
CREATE TYPE shop.pair AS (a int, b text);
CREATE TABLE shop."order" (id serial PRIMARY KEY, mood shop.mood, n shop.positive, CONSTRAINT "n on it" CHECK (id > 0));
CREATE VIEW shop.v AS SELECT id, mood FROM shop."order";
CREATE MATERIALIZED VIEW shop.mv AS SELECT count(*) FROM shop."order";
CREATE FUNCTION shop.f(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE AGGREGATE shop.agg (int) (sfunc = int4pl, stype = int);
CREATE SEQUENCE shop.alone;
CREATE STATISTICS shop.st ON id, n FROM shop."order";
CREATE INDEX by_mood ON shop."order" (mood);
CREATE RULE r AS ON DELETE TO shop."order" DO ALSO NOTHING;
CREATE POLICY p ON shop."order" USING (id > 0);
CREATE FUNCTION shop.tf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER tr BEFORE INSERT ON shop."order" FOR EACH ROW EXECUTE FUNCTION shop.tf();
COMMENT ON COLUMN shop."order".n IS 'a number';
INSERT INTO shop."order" (mood, n) VALUES ('ok', 1), ('sad', 2);`

func TestLabelsOfEnums(t *testing.T) {
	for _, c := range []struct{ want, have, sql string }{
		{"a b c", "a b c", ""},
		{"a x b y", "a b", "ADD VALUE IF NOT EXISTS 'x' BEFORE 'b'; ADD VALUE IF NOT EXISTS 'y'"},
		{"a B c", "a b c", "RENAME VALUE 'b' TO 'B'"},
		{"x a B", "a b", "ADD VALUE IF NOT EXISTS 'x' BEFORE 'a'; RENAME VALUE 'b' TO 'B'"},
		{"a x B", "a b", "error"}, // which of the two was b?
		{"a", "a b", "error"},
		{"b a", "a b", "error"},
	} {
		list, err := dump.Labels("e", strings.Fields(c.want), strings.Fields(c.have))
		got := strings.ReplaceAll(strings.Join(list, "; "), "ALTER TYPE e ", "")
		if err != nil {
			got = "error"
		}
		if got != c.sql {
			t.Errorf("from %q to %q: %s (%v), want %s", c.have, c.want, got, err, c.sql)
		}
	}
}

// A statement that is carried waits in short tries, and says who is in the way.
func TestCarriedChangeNamesWhoIsInTheWay(t *testing.T) {
	r := newRig(t, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	reader := r.app(r.target)
	reader.run("SET application_name = 'a report'; BEGIN; SELECT FROM shop.invoice")
	r.exec(r.source, "ALTER TABLE shop.invoice ADD CONSTRAINT low CHECK (total < 1000000)")
	named := false
	r.onEvent = func(e engine.Event) {
		if !named && e.Kind == engine.EventWaiting && strings.Contains(e.Message, "a report") {
			named = true
			reader.run("COMMIT")
		}
	}
	r.must(r.catchUp())
	if !named {
		t.Error("nobody was told who is in the way")
	}
	r.want(r.target, "SELECT count(*)::text FROM pg_constraint WHERE conname = 'low' AND convalidated", "1")
}

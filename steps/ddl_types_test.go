package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const typedSetup = shopSetup + `
CREATE EXTENSION hstore SCHEMA shop VERSION '1.4';
CREATE DOMAIN shop.code AS text CHECK (length(VALUE) < 9);
CREATE TYPE shop.place AS (street text, n int);
CREATE TABLE shop.by_code (k shop.code PRIMARY KEY, v text);
CREATE TABLE shop.house (id int PRIMARY KEY, at shop.place, more shop.hstore);
INSERT INTO shop.by_code VALUES ('a', '1'), ('bb', '2'), ('ccc', '3');
INSERT INTO shop.house SELECT g, ROW('s' || g, g)::shop.place, shop.hstore('k', g::text) FROM generate_series(1, 20) g;`

// What is done to the types of columns, those of keys among them, while our deltas hold keys: no write
// of the application fails because of us.
func TestA2F46TypesOfColumnsAndKeys(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, typedSetup, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	for _, s := range []stage{
		{"A2 a check for a domain that keys in the delta do not meet", `
			UPDATE shop.by_code SET v = 'x'; DELETE FROM shop.by_code WHERE length(k) > 1; ALTER DOMAIN shop.code ADD CONSTRAINT one CHECK (length(VALUE) = 1);
			INSERT INTO shop.by_code VALUES ('d', '4')`, ""},
		{"F46 an extension is updated", `ALTER EXTENSION hstore UPDATE TO '1.5'; UPDATE shop.house SET more = shop.hstore('k', 'new') WHERE id > 15`, ""},
	} {
		t.Run(s.name, func(t *testing.T) { r.carries(t, s) })
	}
	const attribute = "ALTER TYPE shop.place ADD ATTRIBUTE zip text"
	t.Run("F46 an attribute of a composite type", func(t *testing.T) {
		r.exec(r.source, "UPDATE shop.house SET at = ROW('before', 1)::shop.place WHERE id < 4; "+attribute+"; UPDATE shop.house SET at = ROW('after', 2, 'z')::shop.place WHERE id BETWEEN 3 AND 6")
		if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), `type "shop"."place" changed on the source`) || !strings.Contains(engine.HintOf(err), "Make the same change on the target") {
			t.Fatalf("it says %v; hint: %s", err, engine.HintOf(err))
		}
		r.exec(r.target, attribute)
		r.carries(t, stage{"", "UPDATE shop.house SET at.zip = 'last' WHERE id = 20", ""})
	})
	r.want(r.target, "SELECT string_agg(convalidated::text, ' ') FROM pg_constraint WHERE contypid = 'shop.code'::regtype", "true true")

	// The one that does: the trigger's function names the columns of the key.
	r.exec(r.source, "ALTER TABLE shop.customer RENAME COLUMN id TO ident")
	if err := try(t, r.source, "UPDATE shop.customer SET name = 'x' WHERE ident = 1"); err == nil || !strings.Contains(err.Error(), "42703") {
		t.Errorf("a write after the key was renamed: %v", err)
	}
	if err := r.catchUp(); err == nil || !strings.Contains(err.Error()+engine.HintOf(err), "ident") {
		t.Errorf("after the key was renamed it says %v", err)
	}
	r.exec(r.source, "ALTER TABLE shop.customer RENAME COLUMN ident TO id; UPDATE shop.customer SET name = 'y' WHERE id = 1")
	r.must(r.catchUp())
	r.sameTables(t)
}

package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const keysSetup = shopSetup + `
CREATE TABLE shop.item (id int NOT NULL, name text);
CREATE UNIQUE INDEX item_id ON shop.item (id);
INSERT INTO shop.item SELECT g, 'i' || g FROM generate_series(1, 20) g;
CREATE TABLE shop.word (w text NOT NULL CONSTRAINT word_u UNIQUE, n int);
CREATE TABLE shop.says (id int PRIMARY KEY, w text REFERENCES shop.word (w));
INSERT INTO shop.word SELECT 'w' || g, g FROM generate_series(1, 20) g;
INSERT INTO shop.says SELECT g, 'w' || g FROM generate_series(1, 10) g;
ALTER TABLE shop.event ADD note text;
CREATE TABLE shop.event_2025 PARTITION OF shop.event FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO shop.event SELECT '2025-05-01'::timestamptz + g * interval '1 day', g FROM generate_series(1, 20) g;`

func (r *rig) writeKeys() {
	r.t.Helper()
	r.exec(r.source, `UPDATE shop.item SET name = name || '.' WHERE id < 8; INSERT INTO shop.item SELECT max(id) + 1, 'new' FROM shop.item; DELETE FROM shop.item WHERE id = (SELECT min(id) FROM shop.item);
		UPDATE shop.customer SET name = name || '.' WHERE id < 5; INSERT INTO shop.customer SELECT max(id) + 1, 'new' FROM shop.customer;
		UPDATE shop.event SET id = id + 100 WHERE id < 5; INSERT INTO shop.event SELECT max(at) + interval '1 hour', max(id) + 1 FROM shop.event; INSERT INTO shop.lock SELECT count(*) FROM shop.lock;
		UPDATE shop.word SET n = n + 1 WHERE n < 8; INSERT INTO shop.word SELECT 'x' || count(*), 50 FROM shop.word`)
}

// TestF45KeyExchanged: the index behind the key that passes find rows by is altered, renamed or exchanged for another one over
// the same columns, at any time of the run. Passes go on, and the target gets what the source has.
func TestF45KeyExchanged(t *testing.T) {
	altered := []string{
		"ALTER INDEX shop.item_id SET (fillfactor = 70)",
		"BEGIN; ALTER TABLE shop.customer DROP CONSTRAINT customer_pkey CASCADE, ADD CONSTRAINT customer_pkey PRIMARY KEY (id) INCLUDE (name); ALTER TABLE shop.invoice ADD FOREIGN KEY (customer) REFERENCES shop.customer ON DELETE CASCADE; COMMIT",
		"ALTER TABLE shop.event DROP CONSTRAINT event_pkey, ADD CONSTRAINT event_pkey PRIMARY KEY (at, id) INCLUDE (note)",
	}
	renamed := []string{
		"ALTER INDEX shop.item_id RENAME TO item_no",
		"ALTER TABLE shop.customer RENAME CONSTRAINT customer_pkey TO customer_pk; ALTER TABLE shop.lock RENAME CONSTRAINT lock_pkey TO lock_pk",
		"ALTER TABLE shop.event RENAME CONSTRAINT event_pkey TO event_pk",
		"ALTER TABLE shop.word RENAME CONSTRAINT word_u TO word_uk",
	}
	swapped := []string{
		"CREATE UNIQUE INDEX item_no ON shop.item (id) WITH (fillfactor = 80); DROP INDEX shop.item_id; COMMENT ON INDEX shop.item_no IS 'by number'",
		"CREATE UNIQUE INDEX customer_pk ON shop.customer (id) WITH (fillfactor = 80); ALTER TABLE shop.customer DROP CONSTRAINT customer_pkey CASCADE, ADD CONSTRAINT customer_pk PRIMARY KEY USING INDEX customer_pk",
		"ALTER TABLE shop.event DROP CONSTRAINT event_pkey, ADD CONSTRAINT event_pk PRIMARY KEY (at, id)",
		"BEGIN; ALTER TABLE shop.word ADD CONSTRAINT word_uk UNIQUE (w), DROP CONSTRAINT word_u CASCADE; ALTER TABLE shop.says ADD FOREIGN KEY (w) REFERENCES shop.word (w); COMMIT",
	}
	torn := append([]string{"ALTER TABLE shop.event DETACH PARTITION shop.event_2025; CREATE TABLE shop.event_2027 PARTITION OF shop.event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')"}, altered...)
	back := []string{
		"ALTER INDEX shop.item_no RENAME TO item_id",
		"ALTER TABLE shop.customer RENAME CONSTRAINT customer_pk TO customer_pkey",
		"ALTER TABLE shop.event RENAME CONSTRAINT event_pk TO event_pkey",
		"ALTER TABLE shop.word RENAME CONSTRAINT word_uk TO word_u",
	}
	for name, moments := range map[string][4][]string{ // while it loads, before catch_up, when all is built, when the gate stands
		"altered": {nil, altered, nil, nil},
		"renamed": {nil, renamed, back, nil},
		"swapped": {nil, swapped, back, altered},
		"early":   {renamed, back, nil, nil},
		"late":    {nil, nil, swapped, back},
		"lately":  {nil, nil, renamed, back},
		"torn":    {nil, torn, nil, nil},    // its tree has other partitions at the same time
		"died":    {renamed, nil, nil, nil}, // when it had built keys that are under other names by the time that another process goes on
	} {
		t.Run(name, func(t *testing.T) {
			source, target := testpg.Pair(t)
			r := newRigOn(t, source, target, keysSetup, "schema { on_ddl = \"carry\" }\n"+patient)
			ctx := t.Context()
			made := func(moment int) {
				r.writeKeys()
				r.exec(r.source, strings.Join(moments[moment], "; "))
				r.writeKeys()
			}
			r.must(r.walk(ctx, newSchema(r.env), newCapture(r.env)))
			made(0)
			if name == "died" {
				r.exec(r.target, "CREATE UNIQUE INDEX item_id ON shop.item (id); ALTER TABLE shop.customer ADD CONSTRAINT customer_pkey PRIMARY KEY (id); ALTER TABLE shop.event ADD CONSTRAINT event_pkey PRIMARY KEY (at, id)")
			}
			r.must(r.walk(ctx, newCopy(r.env)))
			made(1)
			r.exec(r.target, "CREATE UNIQUE INDEX an_own ON shop.item (id)") // a person's
			r.must(r.walk(ctx, newCatchUp(r.env), newConstraints(r.env)))
			r.exec(r.target, "DROP INDEX shop.an_own")
			r.sameDefinitions(t)
			made(2)
			r.must(r.env.Journal.Reopen(ctx, constraintsID, true, "it comes after catch_up has looked"))
			r.must(r.walk(ctx, newConstraints(r.env)))
			again := func() {
				r.must(r.catchUp())
				r.must(r.walk(ctx, newConstraints(r.env), newReverse(r.env), newArm(r.env)))
			}
			again()
			made(3)
			again()
			r.sameDefinitions(t)
			r.writeKeys()
			r.must(r.walk(ctx, newFreeze(r.env, nil)))
			r.sameDefinitions(t)
			r.sameTables(t)
		})
	}
}

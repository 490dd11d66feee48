package steps

import (
	"context"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// diesAt catches up until an event says so, as a process does that dies there.
func (r *rig) diesAt(message string) {
	r.t.Helper()
	ctx, die := context.WithCancel(r.t.Context())
	defer die()
	r.onEvent = func(e engine.Event) {
		if strings.Contains(e.Message, message) {
			die()
		}
	}
	r.must(r.env.Journal.Reopen(r.t.Context(), catchUpID, true, "it is a test"))
	if err := r.walk(ctx, newCatchUp(r.env)); err == nil || ctx.Err() == nil {
		r.t.Fatalf("the process did not die: %v", err)
	}
	r.onEvent = nil
	r.env.Journal.Close(r.t.Context())
	r.open() // as a new process
}

const constraintsOn = "SELECT string_agg(conname || ' ' || pg_get_constraintdef(oid), ', ' ORDER BY conname) FROM pg_constraint WHERE contype = 'c' AND connamespace = 'shop'::regnamespace"

// What was carried by a process that died before it had recorded that, and the source has taken back since, is taken back on
// the target: a constraint that stayed there would refuse rows for good.
func TestF41TakenBackBeforeItWasRecorded(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup+`
		ALTER TABLE shop.customer ADD CONSTRAINT changed CHECK (id < 1000), ADD CONSTRAINT dropped CHECK (id < 2000), ADD CONSTRAINT last CHECK (id < 3000);
		CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql AS 'SELECT 1'`, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(r.source, `ALTER TABLE shop.customer DROP CONSTRAINT changed, DROP CONSTRAINT dropped, DROP CONSTRAINT last, ADD CONSTRAINT changed CHECK (id < 500), ADD CONSTRAINT brief CHECK (id < 100);
		CREATE OR REPLACE FUNCTION shop.f() RETURNS int LANGUAGE sql AS 'SELECT 2'`)
	r.diesAt(`"last" on "shop"."customer" was dropped`)
	for _, want := range []string{"brief CHECK ((id < 100))", "changed CHECK ((id < 500))"} {
		if has := query(t, r.target, constraintsOn); !strings.Contains(has, want) || strings.Contains(has, "dropped") {
			t.Fatalf("when the process died the target had %s", has)
		}
	}
	r.exec(r.source, `ALTER TABLE shop.customer DROP CONSTRAINT changed, DROP CONSTRAINT brief, ADD CONSTRAINT changed CHECK (id < 1000), ADD CONSTRAINT dropped CHECK (id < 2000), ADD CONSTRAINT last CHECK (id < 3000);
		CREATE OR REPLACE FUNCTION shop.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; INSERT INTO shop.customer VALUES (600, 'more')`)
	r.must(r.catchUp())
	r.want(r.target, constraintsOn, query(t, r.source, constraintsOn))
	r.must(r.walk(t.Context(), newConstraints(r.env)))
	r.sameTables(t)
	r.sameDefinitions(t)
}

// Likewise where nobody died: what came with it could not be carried, and all of it was taken back.
func TestF41TakenBackBesideWhatFailed(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.exec(r.target, "ALTER TABLE shop.invoice ADD COLUMN theirs int CHECK (theirs > 0)")
	r.exec(r.source, `ALTER TABLE shop.customer ADD CONSTRAINT brief CHECK (id < 100), ADD COLUMN early int NOT NULL DEFAULT 3;
		ALTER TABLE shop.invoice ADD COLUMN other int, ADD CONSTRAINT other_check CHECK (other IS NULL)`)
	r.exec(r.target, `CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN IF current_query() ~ 'other' THEN RAISE 'refused'; END IF; END $$;
		CREATE EVENT TRIGGER refuse ON ddl_command_end EXECUTE FUNCTION public.refuse(); ALTER EVENT TRIGGER refuse ENABLE ALWAYS`)
	if err := r.catchUp(); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("the target refused nothing: %v", err)
	}
	r.exec(r.source, "ALTER TABLE shop.customer DROP CONSTRAINT brief, DROP COLUMN early; ALTER TABLE shop.invoice DROP COLUMN other; INSERT INTO shop.customer VALUES (600, 'more')")
	r.exec(r.target, "DROP EVENT TRIGGER refuse; DROP FUNCTION public.refuse(); ALTER TABLE shop.invoice DROP COLUMN theirs")
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env)))
	r.sameTables(t)
	r.sameDefinitions(t)
}

// The load carries what rows need as well.
func TestF41TakenBackAfterTheLoadNeededIt(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup+`CREATE TYPE shop.mood AS ENUM ('sad'); CREATE TABLE shop.diary (id int PRIMARY KEY, mood shop.mood)`, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(r.source, "ALTER TYPE shop.mood ADD VALUE 'ok'; ALTER TABLE shop.customer ADD CONSTRAINT brief CHECK (id < 100)")
	r.exec(r.source, "INSERT INTO shop.diary VALUES (1, 'ok')")
	r.must(r.walk(t.Context(), newCopy(r.env)))
	r.want(r.target, "SELECT count(*) FROM pg_constraint WHERE conname = 'brief'", "1")
	r.exec(r.source, "ALTER TABLE shop.customer DROP CONSTRAINT brief; INSERT INTO shop.customer VALUES (600, 'more')")
	r.must(r.walk(t.Context(), newCatchUp(r.env), newConstraints(r.env)))
	r.sameTables(t)
	r.sameDefinitions(t)
}

// What was carried of a captured table's columns and partitions by such a process, and was taken back since.
func TestF40TakenBackBeforeItWasRecorded(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup+`
		CREATE TABLE shop.many (id int PRIMARY KEY, n int, m int NOT NULL, d int DEFAULT 1, t varchar(10), gone text);
		INSERT INTO shop.many SELECT g, g, g, g, g, g FROM generate_series(1, 20) g;
		CREATE TABLE shop.up (id int NOT NULL, name text NOT NULL);
		CREATE TABLE shop.zz (id int PRIMARY KEY)`, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(r.source, `ALTER TABLE shop.many ADD COLUMN x int DEFAULT 7, ADD COLUMN twice text, ALTER n SET NOT NULL, ALTER m DROP NOT NULL, ALTER d SET DEFAULT 2, ALTER t TYPE varchar(5), DROP COLUMN gone;
		CREATE TABLE shop.event_2027 PARTITION OF shop.event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
		ALTER TABLE shop.zz ADD COLUMN last int`)
	r.diesAt(`new column "last"`)
	r.want(r.target, "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END, ', ' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'shop.many'::regclass AND attnum > 0 AND NOT attisdropped",
		"d integer, id integer not null, m integer, n integer not null, t character varying(5), twice text, x integer")
	r.want(r.target, "SELECT count(*) FROM pg_class WHERE relname = 'event_2027'", "1")
	r.exec(r.source, `ALTER TABLE shop.many DROP COLUMN x, DROP COLUMN twice, ALTER n DROP NOT NULL, ALTER m SET NOT NULL, ALTER d SET DEFAULT 1, ALTER t TYPE varchar(10), ADD COLUMN gone text;
		ALTER TABLE shop.many ADD COLUMN twice int DEFAULT 5;
		DROP TABLE shop.event_2027; ALTER TABLE shop.zz DROP COLUMN last;
		INSERT INTO shop.many VALUES (50, NULL, 1, 1, 'longer10')`)
	r.must(r.catchUp())
	r.sameTables(t)
	r.sameDefaults(t)
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	// And once more where the way back is ready.
	r.exec(r.source, `ALTER TABLE shop.many ADD COLUMN y int, ALTER n SET DEFAULT 8; ALTER TABLE shop.zz ADD COLUMN last int`)
	r.diesAt(`new column "last"`)
	r.exec(r.source, `ALTER TABLE shop.many DROP COLUMN y, ALTER n DROP DEFAULT; ALTER TABLE shop.zz DROP COLUMN last`)
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newVerify(r.env), newFreeze(r.env, nil)))
	r.wayBackOpen()
	r.sameTables(t)
	r.sameDefaults(t)
	r.sameDefinitions(t)
}

package steps

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
)

// tampering is what a person or a tool does to what is ours, with a write that it hides.
var tampering = []struct{ name, sql, stops, mend string }{
	{"F45 trigger dropped", `DROP TRIGGER pgrunbook_capture_upd ON shop.customer; UPDATE shop.customer SET name = 'a'`, "", ""},
	{"F45 trigger disabled", `ALTER TABLE shop.customer DISABLE TRIGGER pgrunbook_capture_upd; UPDATE shop.customer SET name = 'b'`, "", ""},
	{"F45 trigger renamed", `ALTER TRIGGER pgrunbook_capture_del ON shop.customer RENAME TO mine; DELETE FROM shop.customer WHERE id = 20`, "", ""},
	{"F45 writes behind a disabled trigger", `BEGIN; ALTER TABLE shop.customer DISABLE TRIGGER ALL; UPDATE shop.customer SET name = 'c'; ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER pgrunbook_capture_upd; COMMIT`, "", ""},
	{"F45 ENABLE TRIGGER ALL", `ALTER TABLE shop.customer ENABLE TRIGGER ALL; SET session_replication_role = replica; UPDATE shop.customer SET name = 'd'`, "", ""},
	{"F45 function replaced", `DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT tgfoid FROM pg_trigger WHERE tgrelid = 'shop.customer'::regclass AND tgname LIKE 'pgrunbook_capture%' LOOP
		EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql AS ''BEGIN RETURN NULL; END''', f); END LOOP; END $$; UPDATE shop.customer SET name = 'e'`, "", ""},
	{"F45 function replaced, written, put back", replacedFor("shop.customer", "UPDATE shop.customer SET name = ''e2''", true), "", ""},
	{"F45 function of a table that joined, replaced", replacedFor("shop.late", "UPDATE shop.late SET v = ''hidden''", false), "", ""},
	{"F45 function of a table that joined, replaced, written, put back", replacedFor("shop.late", "UPDATE shop.late SET v = ''hidden, too''", true), "", ""},
	{"F45 delta renamed and made anew", `DO $$ DECLARE d text; BEGIN FOR d IN SELECT relname FROM pg_class WHERE relname LIKE 'delta\_%' AND relkind = 'r' LOOP
		EXECUTE format('ALTER TABLE pgrunbook.%I RENAME TO old_%s', d, d); EXECUTE format('CREATE TABLE pgrunbook.%I (LIKE pgrunbook.old_%s INCLUDING ALL)', d, d); END LOOP; END $$; UPDATE shop.customer SET name = 'f'`, "", ""},
	{"F45 delta dropped", `UPDATE shop.customer SET name = 'g'; DO $$ DECLARE d text; BEGIN FOR d IN SELECT relname FROM pg_class WHERE relname LIKE 'delta\_%' AND relkind = 'r' LOOP EXECUTE format('DROP TABLE pgrunbook.%I', d); END LOOP; END $$`, "", ""},
	{"F45 BEFORE trigger that changes keys", `CREATE FUNCTION shop.shift() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := NEW.id + 1000; RETURN NEW; END';
		CREATE TRIGGER shift BEFORE UPDATE ON shop.customer FOR EACH ROW WHEN (OLD.id < 4) EXECUTE FUNCTION shop.shift(); DELETE FROM shop.invoice; UPDATE shop.customer SET name = 'h'; DROP TRIGGER shift ON shop.customer; DROP FUNCTION shop.shift()`, "", ""},
	{"F45 primary key dropped", `ALTER TABLE shop.invoice DROP CONSTRAINT invoice_pkey`, "no valid unique index", `ALTER TABLE shop.invoice ADD PRIMARY KEY (id)`},
}

// replacedFor gives a table's capture function a body that does nothing, writes, and may put it back.
func replacedFor(table, sql string, back bool) string {
	undo := ""
	if back {
		undo = "EXECUTE def;"
	}
	return fmt.Sprintf(`DO $$ DECLARE f oid := (SELECT tgfoid FROM pg_trigger WHERE tgrelid = '%s'::regclass AND tgname = 'pgrunbook_capture_upd'); def text := pg_get_functiondef(f);
		BEGIN EXECUTE format('CREATE OR REPLACE FUNCTION %%s RETURNS trigger LANGUAGE plpgsql AS ''BEGIN RETURN NULL; END''', f::regprocedure); EXECUTE '%s'; %s END $$`, table, sql, undo)
}

// Tampering with our triggers is found before the next apply, also on a table that joined the run: what was hidden is
// read again, or the run stops. A delta cannot be emptied.
func TestTampering(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.exec(r.source, "CREATE TABLE shop.late (id int PRIMARY KEY, v text); INSERT INTO shop.late SELECT g, 'seen' FROM generate_series(1, 20) g")
	r.must(r.catchUp())
	for _, c := range tampering {
		t.Run(c.name, func(t *testing.T) {
			for _, sql := range []string{c.sql} {
				if err := try(t, r.source, sql); err != nil {
					t.Fatal(err)
				}
			}
			err := r.catchUp()
			if c.stops != "" {
				if err == nil || !strings.Contains(err.Error(), c.stops) || engine.HintOf(err) == "" {
					t.Fatalf("%v, hint %q", err, engine.HintOf(err))
				}
				if err := try(t, r.source, c.mend); err != nil {
					t.Fatal(err)
				}
				err = r.catchUp()
			}
			if err != nil {
				t.Fatalf("%v; hint: %s", err, engine.HintOf(err))
			}
			r.sameTables(t)
			if err := try(t, r.source, "UPDATE shop.customer SET name = name || '.' WHERE id = 7"); err != nil {
				t.Fatal(err)
			}
			if err := r.catchUp(); err != nil {
				t.Fatal(err)
			}
			r.sameTables(t)
		})
	}
	t.Run("F45 delta truncated", func(t *testing.T) {
		err := try(t, r.source, `DO $$ DECLARE d text; BEGIN FOR d IN SELECT relname FROM pg_class WHERE relname LIKE 'delta\_%' AND relkind = 'r' LOOP EXECUTE format('TRUNCATE pgrunbook.%I', d); END LOOP; END $$`)
		if err == nil || !strings.Contains(err.Error(), "captured changes") {
			t.Errorf("a delta was truncated: %v", err)
		}
	})
}

// By default nothing of another shape is carried: each change is named with its way out, and goes
// on when it is undone.
func TestDDLStopsByDefault(t *testing.T) {
	r := following(t, "")
	for _, c := range []struct{ name, sql, named, undo string }{
		{"F40 column renamed", `ALTER TABLE shop.customer RENAME name TO nom`, `is now "nom"`, `ALTER TABLE shop.customer RENAME nom TO name`},
		{"F40 table renamed", `ALTER TABLE shop.customer RENAME TO client`, "is now", `ALTER TABLE shop.client RENAME TO customer`},
		{"F41 new table", `CREATE TABLE shop.extra (id int PRIMARY KEY)`, "shop.extra", `DROP TABLE shop.extra`},
		{"F41 new sequence", `CREATE SEQUENCE shop.n`, "shop.n", `DROP SEQUENCE shop.n`},
		{"F41 dropped and made again", `CREATE TABLE shop.other (LIKE shop.customer INCLUDING ALL); ALTER TABLE shop.customer RENAME TO away; ALTER TABLE shop.other RENAME TO customer`, "is now", `DROP TABLE shop.customer; ALTER TABLE shop.away RENAME TO customer`},
		{"F46 check constraint", `ALTER TABLE shop.customer ADD CONSTRAINT c CHECK (id > 0)`, `"c" on "shop"."customer"`, `ALTER TABLE shop.customer DROP CONSTRAINT c`},
		{"F46 function", `CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql AS 'SELECT 1'`, "function", `DROP FUNCTION shop.f()`},
		{"F40 column added", `ALTER TABLE shop.customer ADD COLUMN note text`, `new column "note"`, `ALTER TABLE shop.customer DROP COLUMN note`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := try(t, r.source, c.sql); err != nil {
				t.Fatal(err)
			}
			err := r.catchUp()
			if err == nil || !strings.Contains(err.Error(), c.named) || engine.HintOf(err) == "" {
				t.Fatalf("%v, hint %q", err, engine.HintOf(err))
			}
			if err := try(t, r.source, c.undo+"; UPDATE shop.customer SET name = name || '+'"); err != nil {
				t.Fatal(err)
			}
			if err := r.catchUp(); err != nil {
				t.Fatalf("after it was undone: %v", err)
			}
			r.sameTables(t)
		})
	}
}

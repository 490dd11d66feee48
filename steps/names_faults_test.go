package steps

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// An event trigger that refuses our DDL is named, on either side; once it is off, the same command
// goes on.
func TestF47EventTriggers(t *testing.T) {
	r := newRig(t, "")
	steps := []engine.Step{newSchema(r.env), newCapture(r.env)}
	refuse := `CREATE SCHEMA guard; CREATE FUNCTION guard.no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not here: %'', tg_tag; END';
		CREATE EVENT TRIGGER nothing_new ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION guard.no_ddl();
		CREATE FUNCTION guard.ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER other ON ddl_command_start EXECUTE FUNCTION guard.ddl()`
	walk := func() error {
		_, err := r.env.walk(t.Context(), &engine.Plan{Steps: []engine.StepPlan{{ID: "schema"}, {ID: "capture"}}}, steps, WalkOptions{Show: engine.SinkFunc(r.emit)})
		return err
	}
	r.env.report(engine.SinkFunc(r.emit))
	for _, url := range []string{r.target, r.source} {
		r.exec(url, refuse)
		err := walk()
		if err == nil || !strings.Contains(err.Error(), `"nothing_new" of the`) || !strings.Contains(engine.HintOf(err), `ALTER EVENT TRIGGER "nothing_new" DISABLE`) {
			t.Fatalf("%v, hint %q", err, engine.HintOf(err))
		}
		r.exec(url, "ALTER EVENT TRIGGER nothing_new DISABLE")
	}
	r.must(walk())
	r.exec(r.source, "DROP EVENT TRIGGER nothing_new; DROP EVENT TRIGGER other; DROP SCHEMA guard CASCADE")
	r.exec(r.target, "DROP EVENT TRIGGER nothing_new; DROP EVENT TRIGGER other; DROP SCHEMA guard CASCADE")
}

// The plan lists the event triggers of either side that fire for our DDL, and none that is off, and makes those of the
// source on the target without turning them on before the flip.
func TestF47PlanListsEventTriggers(t *testing.T) {
	env, source, target := planned(t, twoTables, "")
	const trigger = `CREATE FUNCTION public.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';`
	query(t, source, trigger+`CREATE EVENT TRIGGER first_one ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.watch(); CREATE EVENT TRIGGER second_one ON sql_drop EXECUTE FUNCTION public.watch();
		ALTER EVENT TRIGGER second_one ENABLE ALWAYS; CREATE EVENT TRIGGER off_one ON ddl_command_end EXECUTE FUNCTION public.watch(); ALTER EVENT TRIGGER off_one DISABLE`)
	query(t, target, strings.ReplaceAll(trigger, "public.watch", "public.theirs")+`CREATE EVENT TRIGGER their_one ON ddl_command_end EXECUTE FUNCTION public.theirs()`)
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil || p.Blocking() {
		t.Fatalf("planning: %v %+v", err, p.Findings)
	}
	found := map[engine.Side]string{}
	for _, f := range p.Findings {
		if f.Code == "PRE182" {
			found[f.Side] += f.Text
			if f.Severity != engine.SeverityWarning || !strings.Contains(f.Fix, "ALTER EVENT TRIGGER") {
				t.Errorf("the finding says %+v", f)
			}
		}
	}
	if !strings.Contains(found[engine.Source], "first_one") || !strings.Contains(found[engine.Source], "second_one") || strings.Contains(found[engine.Source], "off_one") ||
		!strings.Contains(found[engine.Target], "their_one") || strings.Contains(found[engine.Target], "first_one") {
		t.Errorf("the plan lists %v", found)
	}
	var before, after string
	s, _ := p.Step("constraints")
	for _, a := range s.Actions {
		if a.Group == "at the flip" {
			after += a.SQL + "\n"
		} else {
			before += a.SQL + "\n"
		}
	}
	for _, name := range []string{"first_one", "second_one", "off_one"} {
		made, off := strings.Index(before, `CREATE EVENT TRIGGER "`+name+`"`), strings.Index(before, `ALTER EVENT TRIGGER "`+name+`" DISABLE`)
		if made < 0 || off < made || strings.Contains(before, `"`+name+`" ENABLE`) || strings.Contains(after, `"`+name+`" ENABLE`) != (name != "off_one") {
			t.Errorf("%s is made by:\n%s\nand at the flip:\n%s", name, before, after)
		}
	}
}

// An event trigger that comes along refuses what we do on the target: it is off there until the flip, and on afterwards.
func TestF47CarriedEventTriggerWaitsForTheFlip(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigWith(t, source, target, shopSetup, `"shop.*"`, "cutover {\n max_write_block = \"60s\"\n attempts = 3\n}")
	r.exec(r.source, `CREATE FUNCTION shop.not_there() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN IF current_database() = '`+"'"+query(t, target, "SELECT current_database()")+"''"+` THEN RAISE EXCEPTION ''not there: %'', tg_tag; END IF; END';
		CREATE EVENT TRIGGER not_there ON ddl_command_start WHEN TAG IN ('CREATE TABLE', 'CREATE INDEX', 'CREATE TRIGGER') EXECUTE FUNCTION shop.not_there(); ALTER EVENT TRIGGER not_there ENABLE ALWAYS`)
	r.replan()
	const mode = "SELECT coalesce(string_agg(evtenabled::text, ''), 'none') FROM pg_event_trigger WHERE evtname = 'not_there'"
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env)))
	r.want(r.target, mode, "D")
	r.exec(r.source, "UPDATE shop.customer SET name = 'later'")
	r.must(r.walk(t.Context(), newVerify(r.env), newReverse(r.env), newArm(r.env), newFreeze(r.env, nil)))
	r.sameTables(t)
	r.want(r.target, mode, "A")
	if err := try(t, r.target, "CREATE TABLE shop.late (id int)"); err == nil || !strings.Contains(err.Error(), "not there: CREATE TABLE") {
		t.Errorf("after the flip it does not fire: %v", err)
	}
}

// Names of 63 bytes that differ in the last one meet nowhere, and what somebody else named as we name
// ours is refused and left alone.
func TestF48Names(t *testing.T) {
	r := newRig(t, "")
	long := strings.Repeat("n", 62)
	r.exec(r.source, strings.NewReplacer("LONG", long).Replace(`
		CREATE TABLE shop.LONG1 (LONGa int, LONGb text, PRIMARY KEY (LONGa)); CREATE TABLE shop.LONG2 (LONGa int, LONGb text, PRIMARY KEY (LONGa));
		CREATE TABLE shop."Odd ""name"" $1 %I" (id int PRIMARY KEY, "c,1" text);
		INSERT INTO shop.LONG1 VALUES (1, 'one'); INSERT INTO shop.LONG2 VALUES (1, 'two'); INSERT INTO shop."Odd ""name"" $1 %I" VALUES (1, 'x')`))
	r.exec(r.source, `CREATE TRIGGER pgrunbook_capture_upd BEFORE UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()`)
	r.replan()
	err := r.walk(t.Context(), newSchema(r.env), newCapture(r.env))
	if err == nil || !strings.Contains(err.Error(), "not one of ours") || !strings.Contains(engine.HintOf(err), "RENAME TO") {
		t.Fatalf("a trigger with our name: %v, hint %q", err, engine.HintOf(err))
	}
	r.want(r.source, "SELECT tgfoid::regproc::text FROM pg_trigger WHERE tgname = 'pgrunbook_capture_upd' AND tgrelid = 'shop.customer'::regclass", "suppress_redundant_updates_trigger")
	r.exec(r.source, `DROP TRIGGER pgrunbook_capture_upd ON shop.customer`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.source, strings.NewReplacer("LONG", long).Replace(`UPDATE shop.LONG1 SET LONGb = 'three'; DELETE FROM shop.LONG2; INSERT INTO shop."Odd ""name"" $1 %I" VALUES (2, 'y')`))
	r.must(r.catchUp())
	r.sameTables(t)
}

// After the flip nobody writes to the source: neither a superuser, nor in the replica role, nor through
// a foreign table of another session; a transaction that began before and one that is prepared keep
// the flip from happening, named.
func TestF80WritesAfterTheFreeze(t *testing.T) {
	r := following(t, "cutover {\n max_write_block = \"60s\"\n attempts = 1\n retry_every = \"100ms\"\n}")
	r.must(r.walk(t.Context(), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.source, "BEGIN; UPDATE shop.customer SET name = 'prepared' WHERE id = 1; PREPARE TRANSACTION 'left'")
	err := r.walk(t.Context(), newFreeze(r.env, nil))
	if engine.ClassOf(err) != engine.ClassNoCutover || !strings.Contains(err.Error(), "'left'") {
		t.Fatalf("with a prepared transaction: %v", err)
	}
	r.exec(r.source, "COMMIT PREPARED 'left'")
	away := r.awayFromSource(t)
	r.exec(away, "UPDATE away.customer SET name = 'through' WHERE id = 2") // it would have worked before
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	r.sameTables(t)
	for _, sql := range []string{
		"UPDATE shop.customer SET name = 'late'", "SET session_replication_role = replica; DELETE FROM shop.invoice",
		"BEGIN READ WRITE; TRUNCATE shop.log; COMMIT", "INSERT INTO shop.lock VALUES (1)",
	} {
		if err := try(t, r.source, "SET default_transaction_read_only = off; "+sql); err == nil || !strings.Contains(err.Error(), "25006") && !strings.Contains(err.Error(), "moved") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if err := try(t, away, "UPDATE away.customer SET name = 'late' WHERE id = 3"); err == nil || !strings.Contains(err.Error(), "25006") && !strings.Contains(err.Error(), "moved") {
		t.Errorf("through a foreign table: %v", err)
	}
	r.sameTables(t)
}

// awayFromSource is another database with a foreign table over the source's customers.
func (r *rig) awayFromSource(t *testing.T) string {
	t.Helper()
	major, _, err := testpg.PairMajors()
	r.must(err)
	at, err := pgx.ParseConfig(r.source)
	r.must(err)
	away := testpg.NewDB(t, testpg.Shared(t, major))
	r.exec(away, fmt.Sprintf(`CREATE EXTENSION postgres_fdw; CREATE SCHEMA away;
		CREATE SERVER shop FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%d', dbname '%s');
		CREATE USER MAPPING FOR CURRENT_USER SERVER shop OPTIONS (password_required 'false');
		CREATE FOREIGN TABLE away.customer (id int, name text) SERVER shop OPTIONS (schema_name 'shop', table_name 'customer')`, at.Host, at.Port, at.Database))
	return away
}

// A difference that the comparison before the cutover finds keeps the flip from happening; the keys
// are listed and the source takes writes.
func TestF81VerifyMismatch(t *testing.T) {
	r := following(t, "")
	r.exec(r.target, "SET pgrunbook.mark = '"+r.env.Run.Mark+"'; UPDATE shop.customer SET name = 'wrong' WHERE id = 13")
	err := r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newArm(r.env), newFreeze(r.env, nil))
	if engine.ClassOf(err) != engine.ClassDifferences || !strings.Contains(err.Error(), "changed (13): name") {
		t.Fatalf("the comparison says %v, without the key", err)
	}
	r.onSource(t)

	// A trigger on the target, which turns up after every look before the freeze, changes what the pass in
	// the freeze writes: the freeze is undone.
	r.exec(r.source, "UPDATE shop.customer SET name = 'equal again' WHERE id = 13")
	r.must(r.walk(t.Context(), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	var once sync.Once
	r.onEvent = func(e engine.Event) {
		if strings.HasPrefix(e.Message, "freeze attempt 1") {
			once.Do(func() {
				r.exec(r.target, `CREATE FUNCTION shop.spoil() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.name := ''spoiled''; RETURN NEW; END';
					CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON shop.customer FOR EACH ROW EXECUTE FUNCTION shop.spoil(); ALTER TABLE shop.customer ENABLE ALWAYS TRIGGER spoil`)
				r.exec(r.source, "UPDATE shop.customer SET name = 'late' WHERE id IN (7, 13)")
			})
		}
	}
	err = r.walk(t.Context(), newFreeze(r.env, nil))
	r.onEvent = nil
	if engine.ClassOf(err) != engine.ClassDifferences || !strings.Contains(err.Error(), "2 of 2 differ") || !strings.Contains(err.Error(), "(13), (7)") {
		t.Errorf("the freeze says %v, without the keys", err)
	}
	r.mu.Lock()
	held := slices.ContainsFunc(r.events, func(e engine.Event) bool { return e.Kind == engine.EventFreeze && e.Mark == "hold" })
	r.mu.Unlock()
	if !held {
		t.Error("writers were not held: no freeze was undone")
	}
	r.onSource(t)
}

// onSource fails unless the source takes writes and the target does not.
func (r *rig) onSource(t *testing.T) {
	t.Helper()
	if err := try(t, r.source, "UPDATE shop.customer SET name = 'goes on' WHERE id = 1"); err != nil {
		t.Errorf("the source takes no writes: %v", err)
	}
	if err := try(t, r.target, "UPDATE shop.customer SET name = 'x'"); err == nil {
		t.Error("the target takes writes")
	}
}

package steps

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What somebody does on the target to a table that joined the run, or to one of which the source has DDL carried at the same
// time, is compared before the flip as on any other table.
func TestTouchedTargetBesideWhatIsCarried(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }
verify { mode = "count" }`)
	r.exec(r.source, "CREATE TABLE shop.late (id int PRIMARY KEY, k int, name text); INSERT INTO shop.late SELECT g, g, 'late' || g FROM generate_series(1, 20) g")
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.source, `CREATE TABLE shop.cut (id int PRIMARY KEY, name text) PARTITION BY RANGE (id); CREATE TABLE shop.cut_1 PARTITION OF shop.cut FOR VALUES FROM (0) TO (100);
		INSERT INTO shop.cut SELECT g, 'cut' || g FROM generate_series(1, 20) g`)
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env)))
	const swapped = `ALTER TABLE shop.cut DETACH PARTITION shop.cut_1; DROP TABLE shop.cut_1;
		CREATE TABLE shop.cut_1 (LIKE shop.cut INCLUDING ALL); ALTER TABLE shop.cut ATTACH PARTITION shop.cut_1 FOR VALUES FROM (0) TO (100)`
	for _, c := range []struct{ name, source, target, table string }{
		{"joined, a column made anew", "", "ALTER TABLE shop.late DROP COLUMN name; ALTER TABLE shop.late ADD COLUMN name text", "late"},
		{"joined, rewritten beside a default", "", "ALTER TABLE shop.late ALTER k SET DEFAULT 5, ALTER name TYPE text USING upper(name)", "late"},
		{"joined, a partition swapped", "", swapped, "cut"},
		{"joined, not captured any more", "", "DELETE FROM pgrunbook.captured WHERE table_name = 'late'; ALTER TABLE shop.late ALTER name TYPE text USING upper(name)", "late"},
		{"joined, past its gate", "", `ALTER TABLE shop.late DISABLE TRIGGER "!pgrunbook_gate"; UPDATE shop.late SET name = 'past it' WHERE id = 2`, "late"},
		{
			"carried, another column made anew", "ALTER TABLE shop.customer ADD COLUMN one int",
			"ALTER TABLE shop.customer DROP COLUMN name; ALTER TABLE shop.customer ADD COLUMN name text NOT NULL DEFAULT ''; ALTER TABLE shop.customer ALTER name DROP DEFAULT", "customer",
		},
		{"carried, rewritten", "ALTER TABLE shop.customer ADD COLUMN two int", "ALTER TABLE shop.customer ALTER name TYPE text USING upper(name)", "customer"},
		{"carried, past its gate", "ALTER TABLE shop.customer ADD COLUMN three int", `ALTER TABLE shop.customer DISABLE TRIGGER "!pgrunbook_gate"; UPDATE shop.customer SET name = 'past it' WHERE id = 2`, "customer"},
		{"carried, a partition swapped", "CREATE TABLE shop.cut_2 PARTITION OF shop.cut FOR VALUES FROM (100) TO (200)", swapped, "cut"},
		{
			"carried, a partition that was there with rows", "CREATE TABLE shop.cut_3 PARTITION OF shop.cut FOR VALUES FROM (200) TO (300)",
			"CREATE TABLE shop.cut_3 (LIKE shop.cut INCLUDING ALL); INSERT INTO shop.cut_3 VALUES (201, 'theirs'); ALTER TABLE shop.cut ATTACH PARTITION shop.cut_3 FOR VALUES FROM (200) TO (300)", "cut",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.exec(r.target, c.target)
			if c.source != "" {
				r.exec(r.source, c.source)
			}
			r.must(r.catchUp())
			if err := r.walk(t.Context(), newFreeze(r.env, nil)); !errors.Is(err, errMended) || !strings.Contains(err.Error(), c.table) || engine.HintOf(err) == "" {
				t.Fatalf("with a touched target: %v, hint %q", err, engine.HintOf(err))
			}
			if err := r.walk(t.Context(), newVerify(r.env)); engine.ClassOf(err) != engine.ClassDifferences {
				t.Fatalf("the comparison says %v", err)
			}
			r.exec(r.source, "UPDATE shop."+c.table+" SET name = name")
			if c.name == "carried, a partition that was there with rows" {
				r.exec(r.source, "INSERT INTO shop.cut VALUES (201, 'ours')")
			}
			r.must(r.walk(t.Context(), newVerify(r.env)))
		})
	}
	t.Run("carried, rewritten while it is carried", func(t *testing.T) {
		came := false
		r.onEvent = func(e engine.Event) {
			if !came && strings.Contains(e.Message, `new column "meanwhile"`) {
				came = true
				r.exec(r.target, "ALTER TABLE shop.customer ALTER name TYPE text USING upper(name)")
			}
		}
		r.exec(r.source, "ALTER TABLE shop.customer ADD COLUMN meanwhile int")
		r.must(r.catchUp())
		r.onEvent = nil
		if !came {
			t.Fatal("nothing happened in between")
		}
		if err := r.walk(t.Context(), newVerify(r.env)); engine.ClassOf(err) != engine.ClassDifferences {
			t.Fatalf("the comparison says %v", err)
		}
		r.exec(r.source, "UPDATE shop.customer SET name = name")
		r.must(r.walk(t.Context(), newVerify(r.env)))
	})
	t.Run("a parent on the target alone", func(t *testing.T) {
		for _, source := range []string{"ALTER TABLE shop.customer ADD COLUMN four int", "ALTER TABLE shop.customer DISABLE TRIGGER ALL; ALTER TABLE shop.customer ENABLE TRIGGER ALL"} {
			r.exec(r.target, "CREATE TABLE public.parent (id int NOT NULL); ALTER TABLE shop.customer INHERIT public.parent")
			r.exec(r.source, source)
			r.must(r.catchUp()) // passes go on
			r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env)))
			if err := r.walk(t.Context(), newFreeze(r.env, nil)); !errors.Is(err, errOneWay) || !strings.Contains(err.Error(), "inherit") {
				t.Fatalf("the freeze says %v", err)
			}
			err := newReverse(r.env).Apply(t.Context(), engine.StepPlan{}, r.cursor(newReverse(r.env)))
			if err == nil || !strings.Contains(engine.HintOf(err), "NO INHERIT") {
				t.Errorf("capture on the target says %v, hint %q", err, engine.HintOf(err))
			}
			r.exec(r.target, "ALTER TABLE shop.customer NO INHERIT public.parent; DROP TABLE public.parent")
			if err := r.walk(t.Context(), newFreeze(r.env, nil)); !errors.Is(err, errMended) {
				t.Fatalf("without that parent the freeze says %v", err)
			}
			r.must(r.walk(t.Context(), newVerify(r.env)))
		}
	})
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	r.wayBackOpen()
	r.sameTables(t)
}

// What the run itself carries when the way back is ready is its own, of tables that joined as well, and when a process died
// between the target's statements and the record of them.
func TestWayBackOutlivesDeathsWhileCarrying(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.exec(r.source, "CREATE TABLE shop.late (id int PRIMARY KEY, k int, name text); INSERT INTO shop.late SELECT g, g, 'late' || g FROM generate_series(1, 20) g")
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env), newReverse(r.env), newArm(r.env)))
	r.exec(r.source, `CREATE TABLE shop.cut (id int PRIMARY KEY, name text) PARTITION BY RANGE (id); CREATE TABLE shop.cut_1 PARTITION OF shop.cut FOR VALUES FROM (0) TO (100);
		INSERT INTO shop.cut SELECT g, 'cut' || g FROM generate_series(1, 20) g`)
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env)))
	ddl := func(table string) string {
		return strings.ReplaceAll("ALTER TABLE shop.? DROP COLUMN name; ALTER TABLE shop.? ADD COLUMN more int DEFAULT 3, ALTER id SET DEFAULT 9", "?", table)
	}
	r.exec(r.source, ddl("late")+";"+ddl("cut")+";"+ddl("customer")+"; CREATE TABLE shop.cut_2 PARTITION OF shop.cut FOR VALUES FROM (100) TO (200); INSERT INTO shop.cut VALUES (101)")
	func() { // a process that dies when all statements are done
		sides, err := openSidesToDefine(t.Context(), r.env, "test")
		r.must(err)
		defer sides.close(context.Background())
		changes, err := capture.Check(t.Context(), sides.source, r.env.Run, captured(r.env))
		r.must(err)
		_, err = makeAlike(t.Context(), r.env, r.cursor(newCatchUp(r.env)), sides, changes)
		r.must(err)
	}()
	r.must(r.catchUp())
	r.exec(r.source, `ALTER TABLE shop.late ADD COLUMN last int; ALTER TABLE shop.cut ADD COLUMN last int; CREATE TABLE shop.cut_3 PARTITION OF shop.cut FOR VALUES FROM (200) TO (300)`)
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newFreeze(r.env, nil)))
	r.wayBackOpen()
	r.sameTables(t)
}

// A process that dies right after a table became part of the run leaves nothing new for the next one to see: what was
// compared before is open again by then.
func TestF41DeathAfterATableJoined(t *testing.T) {
	r := following(t, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env)))
	r.exec(r.source, "CREATE TABLE shop.late (id int PRIMARY KEY); INSERT INTO shop.late VALUES (1)")
	conn, err := testpg.Connect(t.Context(), r.source)
	r.must(err)
	defer func() { _ = conn.Close(t.Context()) }()
	_, err = conn.PgConn().Exec(t.Context(), "BEGIN; LOCK TABLE shop.late IN ROW EXCLUSIVE MODE").ReadAll()
	r.must(err)
	ctx, die := context.WithCancel(t.Context())
	defer die()
	r.onEvent = func(e engine.Event) {
		if e.Kind == engine.EventWaiting && strings.Contains(e.Object, "late") {
			die()
		}
	}
	r.must(r.env.Journal.Reopen(t.Context(), "catch_up", true, "it is a test"))
	if err := r.walk(ctx, newCatchUp(r.env)); err == nil || ctx.Err() == nil {
		t.Fatalf("the process did not die: %v", err)
	}
	r.onEvent = nil
	r.want(r.target, "SELECT state FROM pgrunbook.step WHERE id = 'verify'", "failed")
	r.env.Journal.Close(t.Context())
	r.open() // as a new process
	if !slices.ContainsFunc(r.env.Scope.Tables, func(t scope.Table) bool { return t.Display() == "shop.late" }) {
		t.Fatal("the table was not recorded before the process died")
	}
	_, err = conn.PgConn().Exec(t.Context(), "COMMIT").ReadAll()
	r.must(err)
	r.must(r.catchUp())
	r.must(r.walk(t.Context(), newConstraints(r.env), newVerify(r.env)))
	if !r.heard("shop.late") {
		t.Error("the table that joined was not compared")
	}
}

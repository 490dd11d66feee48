package steps

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// journalTables are copied before a fault, in an order in which they can be put back.
var journalTables = []string{"meta", "run", "holder", "step", "item", "table_state", "owner", "control"}

// keepJournal makes a backup of the journal.
func (r *rig) keepJournal() {
	r.t.Helper()
	sql := "DROP SCHEMA IF EXISTS kept CASCADE; CREATE SCHEMA kept;"
	for _, name := range journalTables {
		sql += "CREATE TABLE kept." + name + " AS TABLE pgrunbook." + name + ";"
	}
	r.exec(r.target, sql)
}

// putJournalBack puts back what is gone.
func (r *rig) putJournalBack() {
	r.t.Helper()
	sql := "DELETE FROM pgrunbook.run WHERE id NOT IN (SELECT id FROM kept.run); TRUNCATE pgrunbook.step;"
	for _, name := range journalTables {
		sql += "INSERT INTO pgrunbook." + name + " TABLE kept." + name + " ON CONFLICT DO NOTHING;"
	}
	r.exec(r.target, sql)
}

// next is the next command: it opens the run and walks.
func (r *rig) next(list ...engine.Step) error {
	r.t.Helper()
	r.env.Journal.Close(r.t.Context())
	if err := OpenRun(r.t.Context(), r.env, OpenOptions{ToolVersion: "test"}); err != nil {
		return err
	}
	run := r.env.Journal
	r.t.Cleanup(func() { run.Close(context.Background()) })
	return r.walk(r.t.Context(), list...)
}

// F06: rows of the journal are gone, in the middle of a load and after it. The next command names what is missing and
// loads nothing over rows that are there; with the rows put back, the run goes on.
func TestF06JournalThatLostRows(t *testing.T) {
	r := newRig(t, "copy {\n  workers = 1\n  chunk = \"64KiB\"\n}\nlimit \"copy_rate\" {\n  max = \"500KiB/s\"\n  then = \"slow\"\n}")
	r.exec(r.source, "CREATE TABLE shop.page (id int PRIMARY KEY, v text); INSERT INTO shop.page SELECT g, repeat('v', 500) FROM generate_series(1, 2000) g; INSERT INTO shop.log SELECT 'l' FROM generate_series(1, 30) g")
	r.env.Journal.Close(t.Context())
	r.exec(r.target, "DROP SCHEMA pgrunbook CASCADE")
	r.env.Journal, r.env.Plan = nil, r.plan()
	all := func() []engine.Step {
		return []engine.Step{newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)}
	}
	for _, s := range all() {
		r.env.Plan.Steps = append(r.env.Plan.Steps, engine.StepPlan{ID: s.ID(), Phase: s.Phase()})
	}
	plan := r.env.Plan
	r.must(OpenRun(t.Context(), r.env, OpenOptions{ToolVersion: "test"}))
	ctx, die := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.walk(ctx, all()...) }()
	const done = "SELECT count(*) FROM pgrunbook.item WHERE state = 'done' AND (SELECT count(*) FROM shop.page) > 0"
	for deadline := time.Now().Add(time.Minute); r.number(r.target, "SELECT count(*) FROM pg_class WHERE oid = to_regclass('shop.page')") == 0 || r.number(r.target, done) < 3; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is loaded")
		}
	}
	die()
	if err := <-ended; err == nil {
		t.Fatal("the load was over before it died")
	}
	rows := func() int {
		return r.number(r.target, "SELECT (SELECT count(*) FROM shop.page) + (SELECT count(*) FROM shop.log)")
	}
	began := rows()

	lost := func(name, damage string, class engine.Class, says string, list ...engine.Step) {
		t.Run("F06 "+name, func(t *testing.T) {
			r.keepJournal()
			r.exec(r.target, damage)
			before := rows()
			r.env.Plan = plan
			err := r.next(list...)
			if engine.ClassOf(err) != class || engine.HintOf(err) == "" || !strings.Contains(err.Error(), says) {
				t.Errorf("%v (%d), hint %q", err, engine.ClassOf(err), engine.HintOf(err))
			}
			if strings.HasPrefix(damage, "TRUNCATE") && rows() != before {
				t.Errorf("%d rows became %d", before, rows())
			}
			r.env.Journal.Close(t.Context())
			r.putJournalBack()
			r.env.Plan = plan
		})
	}
	page := "(SELECT min(tbl) FROM pgrunbook.item WHERE no = 3)"
	lost("chunks in the load", "TRUNCATE pgrunbook.item", engine.ClassAmbiguous, "chunks of", all()...)
	lost("states in the load", "TRUNCATE pgrunbook.table_state", engine.ClassAmbiguous, "pgrunbook.table_state", all()...)
	lost("chunks and states in the load", "TRUNCATE pgrunbook.item, pgrunbook.table_state", engine.ClassFailed, "has rows on the target already", all()...)
	lost("the step before", "TRUNCATE pgrunbook.step; INSERT INTO pgrunbook.step SELECT * FROM kept.step WHERE id <> 'schema'", engine.ClassAmbiguous, "step schema is gone", all()...)
	lost("capture", "DELETE FROM pgrunbook.step WHERE id = 'capture'", engine.ClassAmbiguous, "step capture is gone", all()...)
	lost("the owner", "TRUNCATE pgrunbook.owner", engine.ClassAmbiguous, "pgrunbook.owner", all()...)
	lost("the switches", "TRUNCATE pgrunbook.control", engine.ClassAmbiguous, "pgrunbook.control", all()...)
	lost("the version", "TRUNCATE pgrunbook.meta", engine.ClassAmbiguous, "pgrunbook.meta", all()...)
	lost("the run", "TRUNCATE pgrunbook.run CASCADE", engine.ClassPreflight, "the target already has this table", all()...)
	if rows() != began {
		t.Errorf("%d rows became %d", began, rows())
	}
	lost("a chunk that is to come", "DELETE FROM pgrunbook.item WHERE tbl = "+page+" AND no = (SELECT max(no) - 1 FROM pgrunbook.item WHERE tbl = "+page+")", engine.ClassAmbiguous, "1 of the", all()...)
	t.Run("put back", func(t *testing.T) {
		r.must(r.next(all()...))
		r.sameTables(t)
	})
	lost("a state after the load", "DELETE FROM pgrunbook.table_state WHERE tbl = "+page+"; UPDATE pgrunbook.step SET state = 'failed' WHERE id = 'catch_up'", engine.ClassAmbiguous, "pgrunbook.table_state", newCatchUp(r.env))
	t.Run("chunks that were loaded", func(t *testing.T) {
		r.exec(r.target, "TRUNCATE pgrunbook.item")
		r.exec(r.source, "UPDATE shop.page SET v = 'w' WHERE id < 9")
		r.must(r.next())
		r.must(r.catchUp())
		r.sameTables(t)
	})
	t.Run("begun anew", func(t *testing.T) {
		r.must(Abort(t.Context(), r.env, AbortOptions{DropTarget: true}))
		r.bare("after abort", "pgrunbook", "kept")
	})
}

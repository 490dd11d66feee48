package faults_test

import "testing"

// extra are new tables that the patterns cover: one with a key, captured, and one without, reloaded
// inside the freeze.
const extra = `CREATE TABLE app.extra (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL);
	INSERT INTO app.extra (note) SELECT 'early' FROM generate_series(1, 200);
	CREATE TABLE app.heap (line text); INSERT INTO app.heap VALUES ('a'), ('a')`

// TestF41DeathsWhenTablesJoin makes new tables after the copy and dies when they are on the target,
// when they are in the journal and when they are gated and captured. Rows are written between.
func TestF41DeathsWhenTablesJoin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.edit("source { url", "schema { on_ddl = \"carry\" }\nsource { url")
	r.finally("apply", "--auto-approve", "--until", "copy")
	r.sql(r.source, extra)
	for _, point := range []string{"join.prepared", "join.recorded", "join.armed"} {
		if !r.killed(point, applyArgs...) {
			t.Fatalf("the runner did not die at %s", point)
		}
		r.sql(r.source, "INSERT INTO app.extra (note) VALUES ('"+point+"'); UPDATE app.extra SET note = note || '.' WHERE id % 7 = 0; DELETE FROM app.extra WHERE id IN (SELECT min(id) FROM app.extra)")
	}
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.sql(r.target, "DO $$ BEGIN ASSERT (SELECT count(*) FROM app.extra) = 200 AND (SELECT count(*) FROM app.heap) = 2; END $$; INSERT INTO app.extra (note) VALUES ('after')")
	r.writing(1)
	r.balance(r.target)
}

// TestF41DeathsWhenTablesLeave drops a table and a column, and makes them again, and dies when the
// target has dropped them and when the run has let go of the table.
func TestF41DeathsWhenTablesLeave(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.edit("source { url", "schema { on_ddl = \"carry\" }\nsource { url")
	r.sql(r.source, extra)
	r.finally("apply", "--auto-approve", "--until", "copy")
	for _, point := range []string{"leave.dropped", "leave.forgotten"} {
		r.sql(r.source, "DROP TABLE app.extra, app.heap; "+extra)
		if !r.killed(point, applyArgs...) {
			t.Fatalf("the runner did not die at %s", point)
		}
		r.sql(r.source, "INSERT INTO app.extra (note) VALUES ('"+point+"')")
	}
	r.finally("apply", "--auto-approve", "--until", "catch_up")
	r.sql(r.source, "ALTER TABLE app.extra DROP COLUMN note; ALTER TABLE app.extra ADD COLUMN note text DEFAULT 'again'")
	if !r.killed("ddl.dropped", applyArgs...) {
		t.Fatal("the runner did not die at ddl.dropped")
	}
	r.sql(r.source, "UPDATE app.extra SET note = 'late' WHERE id % 7 = 0")
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.sql(r.target, "DO $$ BEGIN ASSERT (SELECT count(*) FROM app.extra) = 201 AND (SELECT count(*) FROM app.heap) = 2; END $$; INSERT INTO app.extra (note) VALUES ('after')")
	r.writing(1)
	r.balance(r.target)
}

// TestF84AbortAfterDeathInRestore makes a table while the target follows and dies when the target has got
// it, before that is recorded: abort drops it all the same, at once or after the next run. The schema was there.
func TestF84AbortAfterDeathInRestore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.edit("source { url", "schema { on_ddl = \"carry\" }\nsource { url")
	r.sql(r.target, "CREATE SCHEMA app")
	before := r.dump(r.target)
	for _, next := range [][]string{nil, untilCatchUp} {
		r.finally(untilCopy...)
		r.sql(r.source, "CREATE TABLE app.late (id int PRIMARY KEY); INSERT INTO app.late VALUES (1)")
		if !r.killed("definitions.restored", untilCatchUp...) {
			t.Fatal("the runner did not die at definitions.restored")
		}
		if next != nil {
			r.finally(next...)
		}
		r.finally(abortArgs...)
		if r.number(r.target, "SELECT count(*) FROM pg_class WHERE relname = 'late'") != 0 {
			t.Errorf("abort left the new table on the target: %s", firstDifference(before, r.dump(r.target)))
		}
		r.sql(r.source, "DROP TABLE app.late")
	}
	r.writing(0)
	r.balance(r.source)
}

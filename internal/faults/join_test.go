package faults_test

import (
	"strings"
	"testing"
)

// extra are new tables that the patterns cover: one with a key, captured, and one without, reloaded
// inside the freeze.
const extra = `CREATE TABLE app.extra (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL);
	INSERT INTO app.extra (note) SELECT 'early' FROM generate_series(1, 200);
	CREATE TABLE app.heap (line text); INSERT INTO app.heap VALUES ('a'), ('a')`

// TestF41DeathsBeforeADroppedTableJoined makes a table while the target follows, dies when the target has got it, before
// that is recorded and before it is part of the run, and drops it: it goes from the target as well. By default the run
// stops before that, and says what to do.
func TestF41DeathsBeforeADroppedTableJoined(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.edit("source { url", "schema { on_ddl = \"carry\" }\nsource { url")
	r.finally(untilCopy...)
	for _, point := range []string{"definitions.restored", "join.prepared"} {
		r.sql(r.source, "CREATE TABLE app.brief (id serial PRIMARY KEY, v text); INSERT INTO app.brief (v) VALUES ('a'); CREATE VIEW app.briefly AS SELECT v FROM app.brief")
		if !r.killed(point, untilCatchUp...) {
			t.Fatalf("the runner did not die at %s", point)
		}
		if r.number(r.target, "SELECT count(*) FROM pg_class WHERE relname IN ('brief', 'brief_id_seq', 'briefly')") != 3 {
			t.Fatalf("at %s the target has not got the table", point)
		}
		r.sql(r.source, "DROP TABLE app.brief CASCADE")
		r.edit(`on_ddl = "carry"`, `on_ddl = "stop"`)
		if o := r.run("", untilCatchUp...); o.code == 0 || !strings.Contains(o.text, `the target then gets it: DROP TABLE \"app\".\"brief\" CASCADE`) {
			t.Errorf("%s: %s, and nobody is told of the statement:\n%s", point, o, o.text)
		}
		r.edit(`on_ddl = "stop"`, `on_ddl = "carry"`)
		r.finally(untilCatchUp...)
		if r.number(r.target, "SELECT count(*) FROM pg_class WHERE relname IN ('brief', 'brief_id_seq', 'briefly')") != 0 {
			t.Errorf("%s: the table that was dropped is still on the target", point)
		}
	}
	r.finally(abortArgs...)
	r.writing(0)
	r.balance(r.source)
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

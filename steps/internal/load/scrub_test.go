package load

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// By its statistics, from when it was empty, the target's table has no row, and no autovacuum corrects them: the scrub still
// joins by hash, and does not go through all keys for each row.
func TestScrubWithoutStatistics(t *testing.T) {
	source, target, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	c := testpg.StartT(t, testpg.Options{Major: target, Settings: map[string]string{"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0"}})
	p := pairOf(t, testpg.NewDB(t, testpg.Shared(t, source)), testpg.NewDB(t, c), `CREATE TABLE t (id int PRIMARY KEY, v text, n int) WITH (autovacuum_enabled = off)`)
	const fill = `INSERT INTO t SELECT g, repeat('v', 1000), g FROM generate_series(1, 3000) g`
	p.exec(p.target, "SET pgrunbook.mark = '"+p.run.Mark+"'; "+fill+"; DELETE FROM t; ANALYZE t")
	if n := p.one(p.target, "SELECT (reltuples = 0 AND relpages > 0)::text FROM pg_class WHERE oid = 't'::regclass"); n != "true" {
		t.Fatal("the table is not taken for an empty one")
	}
	p.beforeCapture(fill)
	p.exec(p.source, "UPDATE t SET v = 'w' WHERE id % 20 = 0")
	p.load()
	_, plan, _ := strings.Cut(c.Log(), `Query Text: DELETE FROM ONLY "public"."t" AS t USING pg_temp.scrub_`)
	plan, _, _ = strings.Cut(plan, "LOG:")
	if !strings.Contains(plan, "Delete on t") || strings.Contains(plan, "Nested Loop") {
		t.Errorf("the scrub's plan is: %s", plan)
	}
	p.synced()
}

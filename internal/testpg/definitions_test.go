package testpg_test

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

const defined = `
CREATE SCHEMA s; CREATE EXTENSION citext;
CREATE TABLE s.t (id int PRIMARY KEY, n int NOT NULL, v text NOT NULL);
CREATE TABLE s.r (id int NOT NULL, at date) PARTITION BY RANGE (at); CREATE TABLE s.r_1 PARTITION OF s.r FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE VIEW s.one AS SELECT id, n FROM s.t WHERE n > 1;
CREATE VIEW s.two AS SELECT t.id, r.at FROM s.t JOIN s.r ON r.id = t.n;
CREATE MATERIALIZED VIEW s.m AS SELECT count(n) AS c, max(n) FROM s.t GROUP BY id;
CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';`

const oursToo = `
CREATE SCHEMA pgrunbook; CREATE FUNCTION pgrunbook.gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER "!pgrunbook_gate" BEFORE INSERT ON s.t FOR EACH STATEMENT EXECUTE FUNCTION pgrunbook.gate(); ALTER TABLE s.t ENABLE ALWAYS TRIGGER "!pgrunbook_gate";
CREATE TRIGGER pgrunbook_capture_upd AFTER UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION pgrunbook.gate(); ALTER TABLE s.t ENABLE ALWAYS TRIGGER pgrunbook_capture_upd;`

// Definitions of an application are the same on two majors, with the program's own on one of them, and
// no change of one goes unseen.
func TestDefinitionsCompareAcrossMajors(t *testing.T) {
	source, target := testpg.Pair(t)
	ctx := testContext(t)
	execAll(ctx, t, source, defined+oursToo)
	execAll(ctx, t, target, defined)
	definitions := func(url string) string {
		text, err := testpg.Definitions(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	equal := definitions(source)
	if diff := testpg.LinesApart(equal, definitions(target)); diff != "" || !strings.Contains(equal, "CREATE VIEW s.two") || strings.Contains(equal, "pgrunbook") {
		t.Fatalf("definitions that are equal differ:\n%s\n%s", diff, equal)
	}
	if apart := testpg.LinesApart("a\nb\n", "b\na\n"); apart == "" {
		t.Error("lines that changed places are not seen")
	}
	for _, change := range []string{
		"CREATE OR REPLACE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; /* second */ END'",
		"CREATE OR REPLACE VIEW s.one AS SELECT id, n FROM s.t WHERE n > 2",
		"CREATE OR REPLACE VIEW s.one AS SELECT id, n, v FROM s.t WHERE n > 2",
		"CREATE OR REPLACE VIEW s.one AS SELECT id, id AS n, NULL::text AS v FROM s.r",
		"ALTER TABLE s.t ALTER n DROP NOT NULL", "ALTER TABLE s.r ALTER id DROP NOT NULL", "ALTER TABLE s.t ALTER v SET DEFAULT 'x'",
		"CREATE TRIGGER later AFTER UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.f()", "ALTER TABLE s.t DISABLE TRIGGER later", "DROP EXTENSION citext",
	} {
		before := definitions(target)
		execAll(ctx, t, target, change)
		if definitions(target) == before {
			t.Errorf("not seen: %s", change)
		}
	}
}

package cutover_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

func soak() bool { return os.Getenv("PGRUNBOOK_SOAK") != "" }

// kinds is a table with the types whose text or binary form, or whose hash, hangs on the major.
const kinds = `
CREATE EXTENSION IF NOT EXISTS citext;
CREATE TYPE app.mood AS ENUM ('sad', 'ok', 'glad');
CREATE DOMAIN app.cents AS numeric(12, 2) CHECK (VALUE >= 0);
CREATE TABLE app.kinds (
  id uuid, name public.citext, at timestamptz, PRIMARY KEY (id, name),
  f4 real, f8 double precision, n numeric, c app.cents, m app.mood, j json, jb jsonb, b bytea, i interval, t time with time zone, d date,
  addr inet, bits varbit, span tstzrange, ints int[], texts text[], point point, ts tsvector, secret "char", oid oid, reg regclass);
`

// kindsRow makes n rows for a number and a name.
const kindsRow = `
INSERT INTO app.kinds SELECT md5(g::text)::uuid, 'Name ' || g, now(), g / 3.0::real, g / 7.0::float8, g / 11.0, g, (ARRAY['sad', 'ok', 'glad'])[1 + g %% 3]::app.mood,
  json_build_object('g', g), jsonb_build_object('g', g / 3.0), decode(md5(g::text), 'hex'), g * interval '1 month 1.5 seconds', now()::timetz, date '0044-03-15 BC' + g,
  ('10.0.0.' || g %% 250)::inet, g::bit(24)::varbit, tstzrange(now(), 'infinity'), ARRAY[g, NULL], ARRAY['a"b', NULL, ''], point(g / 3.0, -g), to_tsvector('simple', 'word ' || g), 'x', g, 'pg_class'
  FROM generate_series(%d, %d) g;
`

// schemaOf takes out of the usual schema what a major does not know yet.
func schemaOf(major int) string {
	schema := schemaSQL
	if major < 12 { // generated columns
		schema = strings.Replace(schema, "GENERATED ALWAYS AS (net * 2) STORED", "DEFAULT 7", 1)
	}
	if major < 11 { // keys of partitioned tables, default partitions
		schema = strings.NewReplacer(
			"PRIMARY KEY (day, id)) PARTITION BY RANGE (day);", "PRIMARY KEY (day, id));",
			"CREATE TABLE app.event_1 PARTITION OF app.event FOR VALUES FROM ('2026-01-01') TO ('2026-04-01');\n", "",
			"CREATE TABLE app.event_2 PARTITION OF app.event DEFAULT;\n", "",
		).Replace(schema)
	}
	return schema + kinds + fmt.Sprintf(kindsRow, 1, 300)
}

// backFrom changes every table in every way, a thousand rows in all.
const backFrom = `
SET default_transaction_read_only = off;
INSERT INTO app.item (name, net) SELECT 'new ' || g, g FROM generate_series(1, 200) g;
INSERT INTO app.part SELECT 1 + g, 100000 + g, 'more' FROM generate_series(1, 300) g;
UPDATE app.part SET no = no + 500000 WHERE item % 50 = 7;
DELETE FROM app.item WHERE id BETWEEN 950 AND 1000;
UPDATE app.event SET day = day + 100 WHERE id % 40 = 1;
INSERT INTO app.trail (text) SELECT 'late' FROM generate_series(1, 100);
INSERT INTO app.bag SELECT 99, 'c' FROM generate_series(1, 50);
UPDATE app.bag SET b = 'twice' WHERE a = 4;
INSERT INTO app.jobs (text) VALUES ('late');
UPDATE app.kinds SET f8 = f8 / 3, f4 = f4 / 3, j = '{"a":  1}', at = at + interval '1 microsecond', ints = NULL WHERE left(id::text, 1) < '8';
UPDATE app.kinds SET name = upper(name::text) WHERE left(id::text, 1) > 'd';
DELETE FROM app.kinds WHERE left(id::text, 1) IN ('8', '9');
SELECT count(nextval('app.ticket')) FROM generate_series(1, 70);
` // and kindsRow

// pairs are from which major to which a migration goes; its way back goes from the newer to the older.
func pairs() (list [][2]int) {
	if !soak() {
		return testpg.Some([2]int{12, 18}, [2]int{10, 18}, [2]int{15, 15}, [2]int{17, 18})
	}
	majors := []int{10, 11, 12, 13, 14, 15, 16, 17, 18}
	for i, from := range majors {
		for _, to := range majors[i:] {
			list = append(list, [2]int{from, to})
		}
	}
	return list
}

// TestWayBackBetweenMajors: cutover, a thousand changes of every kind on the newer server, rollback to
// the older one. Nothing is lost, and the sides are equal row by row.
func TestWayBackBetweenMajors(t *testing.T) {
	t.Parallel()
	for _, p := range pairs() {
		t.Run(fmt.Sprintf("%d to %d", p[0], p[1]), func(t *testing.T) {
			slots <- struct{}{}
			t.Cleanup(func() { <-slots })
			r := rigOn(t, schemaOf(p[0]), testpg.NewDB(t, testpg.Shared(t, p[0])), testpg.NewDB(t, testpg.Shared(t, p[1])), p[1])
			r.write(plain)
			r.begin(r.source, r.target)
			r.writing(onSource)
			r.want(0, "apply", "-y")
			r.writing(onTarget)
			r.same()
			r.sql(r.target, backFrom+fmt.Sprintf(kindsRow, 1001, 1200))
			r.says(r.want(0, "rollback", "--check"), "rows to carry back")
			r.want(0, "rollback", "-y")
			r.writing(onSource)
			r.same()
			r.ahead(r.source, r.target)
			if n := r.ask(r.source, "SELECT count(*)::text FROM app.kinds WHERE name = 'name 1007'"); n != "1" {
				t.Error("no row of the newer server came back")
			}
			r.balance(r.source)
		})
	}
}

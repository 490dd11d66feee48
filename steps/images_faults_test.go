package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// A label that is renamed while row images with the old one wait: no pass can apply them once the target
// has the new one, so the tables are loaded again.
func TestF46LabelsRenamedUnderRowImages(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigWith(t, source, target, `CREATE SCHEMA shop; CREATE TYPE shop.mood AS ENUM ('sad', 'ok'); CREATE TABLE shop.lock (id int PRIMARY KEY);
		CREATE TABLE shop.note (mood shop.mood, n int); CREATE TABLE shop.diary (mood shop.mood, n int);
		INSERT INTO shop.note VALUES ('sad', 1), ('ok', 2); INSERT INTO shop.diary VALUES ('sad', 1), ('sad', 1)`,
		`"shop.*"`, `schema { on_ddl = "carry" }
table "shop.note" { identity = "full_row" }
table "shop.diary" { identity = "append_only" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.sameTables(t)
	r.exec(r.source, `INSERT INTO shop.note VALUES ('sad', 3); DELETE FROM shop.note WHERE n = 1; INSERT INTO shop.diary VALUES ('sad', 2);
		ALTER TYPE shop.mood RENAME VALUE 'sad' TO 'blue'; INSERT INTO shop.note VALUES ('blue', 4); INSERT INTO shop.diary VALUES ('blue', 3)`)
	r.must(r.catchUp())
	r.sameTables(t)
	for _, table := range []string{"note", "diary"} {
		if !r.heard(`row images of "shop"."` + table + `" do not fit its columns there`) {
			t.Errorf("nobody was told why %s is loaded again", table)
		}
	}
	r.exec(r.source, `UPDATE shop.note SET n = n + 1; INSERT INTO shop.diary VALUES ('blue', 4)`)
	r.must(r.catchUp())
	r.sameTables(t)
	t.Run("F06 how far a load has read is lost", func(t *testing.T) {
		r.exec(r.target, "CREATE SCHEMA kept; CREATE TABLE kept.watermark AS TABLE pgrunbook.watermark; DELETE FROM pgrunbook.watermark WHERE from_side LIKE 'source/%'")
		r.exec(r.source, `INSERT INTO shop.note VALUES ('blue', 9)`)
		before := r.number(r.target, "SELECT count(*) FROM shop.note")
		if err := r.catchUp(); engine.ClassOf(err) != engine.ClassAmbiguous || !strings.Contains(err.Error(), "pgrunbook.watermark") || engine.HintOf(err) == "" {
			t.Errorf("catch_up says %v", err)
		}
		if after := r.number(r.target, "SELECT count(*) FROM shop.note"); after != before {
			t.Errorf("%d rows became %d", before, after)
		}
		r.exec(r.target, "INSERT INTO pgrunbook.watermark TABLE kept.watermark ON CONFLICT DO NOTHING; DROP SCHEMA kept CASCADE")
		r.must(r.catchUp())
		r.sameTables(t)
	})
}

package steps

import (
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// Another expression of a generated column is carried as long as the rows are not there, or are thrown away by the
// next reload.
func TestF40GeneratedByAnotherExpression(t *testing.T) {
	dir, err := testpg.ClientBinDir(t.Context(), 18)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGRUNBOOK_PG_BIN_DIRS", dir)
	r := newRigWith(t, testpg.NewDB(t, testpg.Shared(t, 18)), testpg.NewDB(t, testpg.Shared(t, 18)), `CREATE SCHEMA shop; CREATE TABLE shop.lock (id int PRIMARY KEY);
		CREATE TABLE shop.note (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id + 1) STORED); CREATE TABLE shop.log (n int, g int GENERATED ALWAYS AS (n + 1) STORED);
		INSERT INTO shop.note VALUES (1), (2); INSERT INTO shop.log VALUES (1)`,
		`"shop.*"`, `schema { on_ddl = "carry" }`)
	r.must(r.walk(t.Context(), newSchema(r.env)))
	r.exec(r.source, `ALTER TABLE shop.note ALTER g SET EXPRESSION AS (id * 10)`)
	r.must(r.walk(t.Context(), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.sameTables(t)
	r.exec(r.source, `ALTER TABLE shop.log ALTER g SET EXPRESSION AS (n * 10)`)
	r.must(r.catchUp())
	r.want(r.target, `SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'shop.log'::regclass`, "(n * 10)")
}

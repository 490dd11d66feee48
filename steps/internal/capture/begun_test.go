package capture

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What was begun to be carried and then taken back is named until it is accepted, however often the carrying is begun, and
// where the catalog keeps no trace of it.
func TestTakenBackSinceItWasBegun(t *testing.T) {
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY, n int); INSERT INTO plain VALUES (1, 1);
		CREATE TABLE part (g int PRIMARY KEY) PARTITION BY RANGE (g); CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10)`)
	tables := []scope.Table{d.table(1, "plain", scope.Statement, scope.ByKey), d.table(2, "part", scope.Row, scope.ByKey)}
	d.install(tables...)
	var seen []Change
	look := func(sql string, want ...string) {
		t.Helper()
		d.run(d.ours, sql)
		var err error
		if seen, err = Check(d.ctx, d.ours, testRun, tables); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, describe(seen)); diff != "" {
			t.Fatalf("after %s (-want +got):\n%s", sql, diff)
		}
	}
	begin := func() {
		t.Helper()
		for range 2 {
			if err := Begin(d.ctx, d.ours, seen); err != nil {
				t.Fatal(err)
			}
		}
	}
	const (
		x        = `carry column_added: ALTER TABLE "public"."plain" ADD COLUMN "x" integer`
		y        = `carry column_added: ALTER TABLE "public"."plain" ADD COLUMN "y" integer`
		notNull  = `carry column_null: ALTER TABLE "public"."plain" ALTER COLUMN "n" SET NOT NULL`
		withoutX = `carry column_dropped: ALTER TABLE "public"."plain" DROP COLUMN IF EXISTS "x" CASCADE`
		withoutY = `carry column_dropped: ALTER TABLE "public"."plain" DROP COLUMN IF EXISTS "y" CASCADE`
		written  = "recopy inheritance" // of n's row in the catalog: see inherited
		null     = `carry column_null: ALTER TABLE "public"."plain" ALTER COLUMN "n" DROP NOT NULL`
		part     = `carry partition_added: CREATE TABLE "public"."part_2" PARTITION OF "public"."part" FOR VALUES FROM (10) TO (20)`
	)
	look("ALTER TABLE public.plain ADD COLUMN x int, ALTER n SET NOT NULL; CREATE TABLE public.part_2 PARTITION OF public.part FOR VALUES FROM (10) TO (20)", notNull, x, part)
	begin()
	look("SELECT 1", notNull, x, part)
	look("ALTER TABLE public.plain DROP COLUMN x, ALTER n DROP NOT NULL; ALTER TABLE public.plain ADD COLUMN y int; DROP TABLE public.part_2", null, withoutX, y, written, "recopy partition_removed")
	begin() // by a process that dies as well
	look("ALTER TABLE public.plain DROP COLUMN y", null, withoutX, withoutY, written, "recopy partition_removed")
	d.install(tables...)
	for _, table := range tables {
		if err := Accept(d.ctx, d.ours, table, seen...); err != nil {
			t.Fatal(err)
		}
	}
	look("SELECT 1")
	if ids, err := differing(d.ctx, d.ours, []int32{1, 2}); err != nil || len(ids) > 0 {
		t.Errorf("sums of %v still differ, %v", ids, err)
	}
}

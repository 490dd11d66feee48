package steps

import (
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// Where somebody else made the target's tables, its partitions and their defaults are its own: no change of another column
// sets them, and one of the source's that the target cannot have is named.
func TestDefaultsOfAnExistingTarget(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup+"CREATE TABLE shop.event_2027 PARTITION OF shop.event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01'); CREATE SCHEMA aside; CREATE SEQUENCE aside.s", "schema {\n mode = \"existing\"\n on_ddl = \"carry\"\n}")
	r.exec(r.target, strings.Split(shopSetup, "INSERT INTO")[0]+"CREATE TABLE shop.event_2027 PARTITION OF shop.event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01'); ALTER TABLE shop.event_2026 ALTER id SET DEFAULT 26")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(r.target, "DROP TABLE shop.event_2027; CREATE TABLE shop.event_rest PARTITION OF shop.event DEFAULT") // a person did
	want := func(def string) {
		t.Helper()
		if got := query(t, r.target, "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'shop.event_2026'::regclass"); got != def {
			t.Errorf("the default on the target is %s, want %s", got, def)
		}
	}
	r.exec(r.source, "ALTER TABLE shop.event ADD COLUMN note text; ALTER TABLE shop.event_2027 ALTER id SET DEFAULT 27")
	r.must(r.catchUp())
	want("26")
	if !r.heard("the target has no such partition") {
		t.Error("nobody was told of the partition that the target lacks")
	}
	r.exec(r.source, "ALTER TABLE shop.event_2026 ALTER id SET DEFAULT nextval('aside.s')")
	r.must(r.catchUp())
	want("26")
	if !r.heard("no row depends on it") {
		t.Error("nobody was told of the default that names what the target lacks")
	}
	r.exec(r.source, "ALTER TABLE shop.event_2026 ALTER id SET DEFAULT 6; INSERT INTO shop.event VALUES ('2026-07-07', 1, 'o'); INSERT INTO shop.event VALUES ('2027-07-07', 1, 'n')")
	r.must(r.catchUp())
	want("6")
	r.same("shop.event")
	r.exec(r.source, "ALTER TABLE ONLY shop.event ALTER id SET DEFAULT 1; ALTER TABLE shop.event_2027 ALTER id SET DEFAULT 1")
	r.must(r.catchUp())
	want("6")
	r.want(r.target, "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'shop.event'::regclass", "1")
	r.exec(r.source, "ALTER TABLE shop.event ALTER id SET DEFAULT 2")
	r.must(r.catchUp())
	want("2")
	r.exec(r.source, "TRUNCATE shop.event_2027; INSERT INTO shop.event VALUES ('2027-08-08', 2, 'n')")
	r.must(r.catchUp())
	r.same("shop.event")
	if !r.heard("has no such partition: the table is loaded again") {
		t.Error("nobody was told why the table is loaded again")
	}
}

// A default of the side that takes writes concerns no row that goes back: it is named once, and the way back stays.
// Another change stops it with words that help there.
func TestDefaultsOfTheTargetLeaveTheWayBack(t *testing.T) {
	r := newRig(t, "")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newArm(r.env), newReverse(r.env)))
	r.flipped()
	conn, err := r.env.Target.Connect(t.Context(), pg.Use{})
	r.must(err)
	defer func() { _ = conn.Close(t.Context()) }()
	told := 0
	r.onEvent = func(e engine.Event) {
		if strings.Contains(e.Message, "the source keeps its own") {
			told++
		}
	}
	r.exec(r.target, "ALTER TABLE shop.event_2026 ALTER id SET DEFAULT 5; ALTER TABLE shop.customer ALTER name SET DEFAULT 'none'")
	b, err := targetBack(t.Context(), r.env, conn, Back{})
	r.must(err)
	if !b.Possible {
		t.Errorf("the way back is closed: %s", b.Why)
	}
	for range 2 {
		r.must(checkCatalog(t.Context(), r.env, conn, engine.Target))
	}
	if told != 2 || !r.heard(`ALTER TABLE ONLY "shop"."event_2026" ALTER COLUMN "id" SET DEFAULT 5`) || !r.heard(`ALTER TABLE ONLY "shop"."customer" ALTER COLUMN "name" SET DEFAULT 'none'::text`) {
		t.Errorf("told %d times of two defaults", told)
	}
	r.exec(r.target, "ALTER TABLE shop.customer ADD COLUMN note text; ALTER TABLE shop.customer ALTER name SET DEFAULT 'other'")
	err = checkCatalog(t.Context(), r.env, conn, engine.Target)
	if err == nil || !strings.Contains(err.Error(), `new column "note"`) || !strings.Contains(engine.HintOf(err), "pgrunbook finish") {
		t.Errorf("%v, hint %q", err, engine.HintOf(err))
	}
}

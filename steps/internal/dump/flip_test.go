package dump

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const firingSetup = `CREATE SCHEMA s; CREATE FUNCTION s.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE FUNCTION s.e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE TABLE s.t (id int); CREATE TABLE s.tree (id int) PARTITION BY RANGE (id); CREATE TABLE s.low PARTITION OF s.tree FOR VALUES FROM (0) TO (9); CREATE TABLE s.high PARTITION OF s.tree FOR VALUES FROM (9) TO (99);
CREATE TRIGGER "was off" AFTER INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f(); CREATE TRIGGER was_on AFTER INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f();
CREATE TRIGGER same AFTER INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.f(); CREATE TRIGGER each AFTER INSERT ON s.tree FOR EACH ROW EXECUTE FUNCTION s.f();
CREATE RULE was_off AS ON DELETE TO s.t DO ALSO NOTHING; CREATE RULE was_on AS ON DELETE TO s.t DO ALSO NOTHING; CREATE EVENT TRIGGER seen ON sql_drop EXECUTE FUNCTION s.e();
CREATE DOMAIN s.a AS int; CREATE DOMAIN s.b AS int;`

const modesNow = `SELECT string_agg(at, ' ' ORDER BY at COLLATE "C") FROM (
	SELECT c.relname || '.' || tgname || '=' || tgenabled::text FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal
	UNION ALL SELECT rulename || '=' || ev_enabled::text FROM pg_rewrite WHERE ev_class = 's.t'::regclass UNION ALL SELECT evtname || '=' || evtenabled::text FROM pg_event_trigger WHERE evtname = 'seen') m (at)`

// What fires on the source fires on the target from the flip on, and nothing else: also where the mode has changed since the
// target got it, and on a partition that has one of its own. A target that somebody else prepared keeps what fires there.
func TestFlipGivesEveryModeOfTheSource(t *testing.T) {
	src, dst := server(t, 15, "source"), server(t, 18, "target")
	sconn, dconn := connect(t, src), connect(t, dst)
	run(t, sconn, firingSetup+`ALTER TABLE s.t DISABLE TRIGGER was_on; ALTER TABLE s.t DISABLE RULE was_on; ALTER TABLE s.tree ENABLE ALWAYS TRIGGER each; ALTER TABLE s.low DISABLE TRIGGER each;
		ALTER EVENT TRIGGER seen DISABLE; ALTER DOMAIN s.a ADD CONSTRAINT pos CHECK (VALUE > 0) NOT VALID; ALTER DOMAIN s.b ADD CONSTRAINT pos CHECK (VALUE > 0)`)
	run(t, dconn, firingSetup+`ALTER TABLE s.t DISABLE TRIGGER "was off"; ALTER TABLE s.t DISABLE RULE was_off; ALTER TABLE s.tree DISABLE TRIGGER each; ALTER DOMAIN s.b ADD CONSTRAINT pos CHECK (VALUE > 0)`)
	for _, c := range []struct {
		existing bool
		says     string
		none     []string
	}{
		{true, `ALTER TABLE "s"."tree" ENABLE ALWAYS TRIGGER "each"`, []string{"was", "seen", `"same"`}},
		{false, `ALTER TABLE "s"."t" ENABLE TRIGGER "was off"`, []string{`"same"`}},
	} {
		list, err := FlipStatements(testContext(t), sconn, dconn, &scope.Scope{}, c.existing)
		if err != nil || !slices.Contains(list, c.says) {
			t.Fatalf("existing %t: %q, %v", c.existing, list, err)
		}
		for _, part := range c.none {
			if strings.Contains(strings.Join(list, ";"), part) {
				t.Errorf("existing %t: %s among %q", c.existing, part, list)
			}
		}
		if c.existing {
			continue
		}
		for _, sql := range list {
			run(t, dconn, sql)
		}
	}
	modes := func(conn *pgx.Conn) (modes string) {
		if err := conn.QueryRow(testContext(t), modesNow).Scan(&modes); err != nil {
			t.Fatal(err)
		}
		return modes
	}
	if want, got := modes(sconn), modes(dconn); got != want {
		t.Errorf("modes are %s\nwant %s", got, want)
	}
	var checks string
	if err := dconn.QueryRow(testContext(t), "SELECT string_agg(contypid::regtype || ' ' || convalidated, ', ' ORDER BY contypid) FROM pg_constraint WHERE conname = 'pos'").Scan(&checks); err != nil || checks != "s.a false, s.b true" {
		t.Errorf("checks of domains are %s, %v", checks, err)
	}
	if list, err := FlipStatements(testContext(t), sconn, dconn, &scope.Scope{}, false); err != nil || len(list) > 0 {
		t.Errorf("a second time: %q, %v", list, err)
	}
}

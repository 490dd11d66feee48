package steps

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

const lateObjects = `SELECT (SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'shop'::regnamespace)
	+ (SELECT count(*) FROM pg_constraint WHERE contype IN ('p', 'u', 'x', 'f') AND connamespace = 'shop'::regnamespace)`

// cursor is a checkpoint of a journal in memory.
func (r *rig) cursor(s engine.Step) engine.Checkpoint {
	r.t.Helper()
	m := journal.NewMemory()
	_, err := m.Begin(r.t.Context(), s)
	r.must(err)
	return m.Checkpoint(s.ID(), engine.SinkFunc(r.emit))
}

func (r *rig) want(url, sql, want string) {
	r.t.Helper()
	if got := query(r.t, url, sql); got != want {
		r.t.Errorf("%s gives %q, want %q", sql, got, want)
	}
}

func TestSchemaMakesBareTablesBehindAClosedGate(t *testing.T) {
	r := newRig(t, "")
	cp := r.cursor(newSchema(r.env))
	r.must(newSchema(r.env).Apply(t.Context(), engine.StepPlan{}, cp))
	r.want(r.target, "SELECT count(*)::text FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'shop'::regnamespace", "6")
	r.want(r.target, lateObjects, "0")
	err := try(t, r.target, "INSERT INTO shop.log VALUES ('by mistake')")
	if pg.SQLState(err) != "25006" || !strings.Contains(err.Error(), "is being migrated and is not open for writes yet") {
		t.Errorf("a write to the target gives %v", err)
	}
	for range 2 {
		r.must(newSchema(r.env).Apply(t.Context(), engine.StepPlan{}, cp))
	}
	r.must(newSchema(r.env).(engine.Undoer).Undo(t.Context(), cp))
	r.want(r.target, "SELECT count(*)::text FROM pg_namespace WHERE nspname = 'shop'", "0")
	r.sameSource("after the schema phase")
}

// A restore that died in the middle is made again; what was there before stays.
func TestSchemaContinuesAfterADeathInTheRestore(t *testing.T) {
	r := newRig(t, "")
	r.exec(r.target, "CREATE TABLE public.theirs (id int)")
	conn, err := pgx.Connect(t.Context(), r.target)
	r.must(err)
	before, err := dump.Objects(t.Context(), conn)
	r.must(err)
	r.must(conn.Close(t.Context()))
	cp := r.cursor(newSchema(r.env))
	r.must(cp.Save(t.Context(), nil, schemaCursor{Begun: true, Before: before}))
	r.exec(r.target, "CREATE SCHEMA shop; CREATE TABLE shop.customer (half int); CREATE TYPE public.left_over AS (a int); CREATE TABLE public.left_tree (id int) PARTITION BY LIST (id)")
	r.must(newSchema(r.env).Apply(t.Context(), engine.StepPlan{}, cp))
	r.want(r.target, "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'shop.customer'::regclass AND attnum > 0", "id,name")
	r.want(r.target, "SELECT coalesce(to_regclass('public.theirs')::text, 'gone') || coalesce(to_regtype('public.left_over')::text, ' gone') || coalesce(to_regclass('public.left_tree')::text, ' gone')", "theirs gone gone")
}

func TestSchemaRefusesATargetThatIsNotEmpty(t *testing.T) {
	r := newRig(t, "")
	r.exec(r.target, "CREATE SCHEMA shop; CREATE TABLE shop.log (line text)")
	err := r.walk(t.Context(), newSchema(r.env))
	if engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(err.Error(), "shop.log") || engine.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

// A provider's target: its administrator has made schemas, extensions in them, and the function that sets the
// replica role. They stay as they are. After a restore that failed, so does what a person makes to mend it.
func TestSchemaKeepsWhatTheTargetHas(t *testing.T) {
	source, target := testpg.Pair(t)
	const become = "CREATE FUNCTION shop.become(text) RETURNS text LANGUAGE sql AS "
	r := newRigOn(t, source, target, shopSetup+`; CREATE SCHEMA gis; COMMENT ON SCHEMA gis IS 'ours'; CREATE EXTENSION tablefunc SCHEMA gis; GRANT USAGE ON SCHEMA shop TO pg_monitor;
		CREATE TABLE shop.tab (id int PRIMARY KEY, v gis.tablefunc_crosstab_2); CREATE VIEW shop.taken AS SELECT 1 AS a; `+become+"'SELECT 1::text'", "")
	r.env.Runbook.Target.ReplicaRoleFunction = "shop.become"
	r.replan()
	r.exec(target, "CREATE SCHEMA gis; CREATE EXTENSION tablefunc SCHEMA gis; CREATE SCHEMA shop; CREATE TABLE shop.taken (a int); "+become+"'SELECT 2::text'")
	cp := r.cursor(newSchema(r.env))
	apply := func() error { return newSchema(r.env).Apply(t.Context(), engine.StepPlan{}, cp) }
	if err := apply(); err == nil || !strings.Contains(err.Error(), `"taken" already exists`) {
		t.Fatalf("with a name that is taken: %v", err)
	}
	r.want(target, "SELECT count(*)::text FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind = 'r'", "1")
	r.exec(target, "DROP TABLE shop.taken; CREATE EXTENSION citext SCHEMA gis")
	r.must(apply())
	r.want(target, "SELECT concat_ws(' ', shop.become(''), has_schema_privilege('pg_monitor', 'shop', 'USAGE'), obj_description('gis'::regnamespace, 'pg_namespace'), (SELECT count(*) FROM pg_extension WHERE extname = 'citext'), to_regclass('shop.taken'))", "2 t ours 1 shop.taken")
	r.must(newSchema(r.env).(engine.Undoer).Undo(t.Context(), cp))
	r.want(target, "SELECT concat_ws(' ', shop.become(''), (SELECT count(*) FROM pg_class WHERE relnamespace = 'shop'::regnamespace), (SELECT count(*) FROM pg_extension WHERE extname = 'citext'))", "2 0 1")
}

func TestSchemaExistingNamesEveryDifference(t *testing.T) {
	r := newRig(t, `schema { mode = "existing" }`)
	r.exec(r.target, `CREATE SCHEMA shop;
		CREATE TABLE shop.customer (id bigint PRIMARY KEY, name text NOT NULL, more int);
		CREATE TABLE shop.invoice (id bigint, customer int, total numeric);
		CREATE TABLE shop.event (at timestamptz, id int, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
		CREATE TABLE shop.event_2026 PARTITION OF shop.event FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
		CREATE TABLE shop.lock (id int PRIMARY KEY);`)
	err := newSchema(r.env).Apply(t.Context(), engine.StepPlan{}, r.cursor(newSchema(r.env)))
	if engine.ClassOf(err) != engine.ClassPreflight {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"column id of \"shop\".\"customer\" is integer not null on the source and bigint not null", "column more", "\"shop\".\"invoice\" has no unique index", "\"shop\".\"log\" is not on the target"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not named: %s in %v", want, err)
		}
	}
}

// roles are of the cluster, so each test has names of its own and drops them.
func (r *rig) ownedBy(owner, reader, member string) {
	r.t.Helper()
	drop := func() {
		ctx := context.WithoutCancel(r.t.Context())
		for _, url := range []string{r.source, r.target} {
			conn, err := pgx.Connect(ctx, url)
			if err != nil {
				r.t.Error(err)
				return
			}
			for _, role := range []string{member, reader, owner, reader + "_new", owner + "_new"} {
				_, _ = conn.PgConn().Exec(ctx, "DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role).ReadAll()
				_, _ = conn.PgConn().Exec(ctx, "DROP ROLE IF EXISTS "+role).ReadAll()
			}
			_ = conn.Close(ctx)
		}
	}
	drop()
	r.t.Cleanup(drop)
	r.exec(r.source, "CREATE ROLE "+owner+"; CREATE ROLE "+reader+" NOLOGIN CONNECTION LIMIT 7; CREATE ROLE "+member+" LOGIN SUPERUSER PASSWORD 'secret' IN ROLE "+reader+`;
		ALTER SCHEMA shop OWNER TO `+owner+"; ALTER TABLE shop.customer OWNER TO "+owner+"; ALTER TABLE shop.invoice OWNER TO "+owner+`;
		GRANT USAGE ON SCHEMA shop TO `+reader+"; GRANT SELECT ON shop.customer TO "+reader+" WITH GRANT OPTION; GRANT UPDATE (name) ON shop.customer TO "+reader+`;
		ALTER DEFAULT PRIVILEGES FOR ROLE `+owner+" IN SCHEMA shop GRANT SELECT ON TABLES TO "+reader+`;
		DO $$ BEGIN EXECUTE format('ALTER ROLE `+reader+` IN DATABASE %I SET search_path = shop, "$user"', current_database());
		EXECUTE format('ALTER DATABASE %I SET work_mem = ''9MB''', current_database()); END $$`)
}

func TestSchemaRequiresRoles(t *testing.T) {
	r := newRig(t, "")
	r.ownedBy("req_owner", "req_reader", "req_member")
	err := newSchema(r.env).Apply(t.Context(), engine.StepPlan{}, r.cursor(newSchema(r.env)))
	var e *engine.Error
	if !errors.As(err, &e) || e.Class != engine.ClassPreflight || !strings.Contains(err.Error(), "req_owner, req_reader") || !strings.Contains(e.Hint, "create") {
		t.Errorf("got %v", err)
	}
}

func TestSchemaCreatesRoles(t *testing.T) {
	r := newRig(t, `schema { roles = "create" }`)
	r.ownedBy("cr_owner", "cr_reader", "cr_member")
	r.must(r.walk(t.Context(), newSchema(r.env)))
	r.want(r.target, "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = 'shop.customer'::regclass", "cr_owner")
	r.want(r.target, "SELECT string_agg(rolname || rolsuper::text || rolcanlogin::text || rolconnlimit, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname LIKE 'cr\\_%'", "cr_memberfalsetrue-1 cr_ownerfalsefalse-1 cr_readerfalsefalse7")
	r.want(r.target, "SELECT (pg_has_role('cr_member', 'cr_reader', 'MEMBER') AND has_column_privilege('cr_reader', 'shop.customer', 'name', 'UPDATE') AND (SELECT rolpassword LIKE 'SCRAM%' FROM pg_authid WHERE rolname = 'cr_member'))::text", "true")
	r.want(r.target, "SELECT string_agg(c, ' ' ORDER BY c) FROM pg_db_role_setting s, unnest(setconfig) c WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())", `search_path=shop, "$user" work_mem=9MB`)
	for _, e := range r.events {
		if strings.Contains(e.Message, "SCRAM") {
			t.Errorf("a password hash in an event: %s", e.Message)
		}
	}
}

func TestRolesAreMadeWithoutASuperuser(t *testing.T) {
	r := newRig(t, "")
	r.ownedBy("nsu_owner", "nsu_reader", "nsu_member")
	r.exec(r.target, "CREATE ROLE nsu_owner_new CREATEROLE; SET ROLE nsu_owner_new; CREATE ROLE nsu_reader_new")
	ctx := t.Context()
	sides, err := openSides(ctx, r.env, "test")
	r.must(err)
	defer sides.close(context.Background())
	needed, err := dump.Roles(ctx, sides.source, r.env.Scope)
	r.must(err)
	missing, err := dump.MissingRoles(ctx, sides.target, needed, map[string]string{"nsu_reader": "nsu_reader_new"})
	r.must(err)
	_, err = sides.target.Exec(ctx, "SET ROLE nsu_owner_new")
	r.must(err)
	made, err := dump.CreateRoles(ctx, sides.target, missing)
	r.must(err)
	if diff := cmp.Diff([]string{"nsu_member", "nsu_owner"}, made); diff != "" {
		t.Error(diff)
	}
	r.want(r.target, "SELECT (pg_has_role('nsu_member', 'nsu_reader_new', 'USAGE') AND pg_has_role('nsu_owner_new', 'nsu_owner', 'USAGE'))::text", "true")
	r.exec(r.target, "SET ROLE nsu_owner_new; SET ROLE nsu_owner")
}

func TestPlanNamesWhatTheTargetsRoleMayNotDo(t *testing.T) {
	r := newRig(t, "schema { roles = \"create\" }")
	r.ownedBy("pln_owner", "pln_reader", "pln_member")
	r.exec(r.target, "CREATE ROLE pln_owner_new")
	step := newSchema(r.env)
	r.env.Runbook.Target.ApplyRole = "pln_owner_new"
	_, err := step.Plan(t.Context())
	if hint := engine.HintOf(err); engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(hint, `ALTER ROLE "pln_owner_new" CREATEROLE;`) {
		t.Errorf("roles: %v, hint %q", err, hint)
	}
	r.exec(r.target, `ALTER ROLE "pln_owner_new" CREATEROLE;`)
	_, err = step.Plan(t.Context())
	hint := engine.HintOf(err)
	if engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(hint, ` OWNER TO "pln_owner_new";`) {
		t.Errorf("settings: %v, hint %q", err, hint)
	}
	statement, _, _ := strings.Cut(hint, ";")
	r.exec(r.target, statement)
	if _, err = step.Plan(t.Context()); err != nil {
		t.Errorf("after %s: %v", statement, err)
	}
	r.exec(r.target, strings.Replace(statement, `"pln_owner_new"`, "postgres", 1))
}

func TestSchemaMapsOwners(t *testing.T) {
	r := newRig(t, `schema {
		roles = "skip"
		owners = { map_owner = "map_owner_new" }
	}`)
	r.ownedBy("map_owner", "map_reader", "map_member")
	r.exec(r.target, "CREATE ROLE map_owner_new")
	r.must(r.walk(t.Context(), newSchema(r.env)))
	r.want(r.target, "SELECT pg_get_userbyid(relowner)::text || ' ' || (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'shop') FROM pg_class WHERE oid = 'shop.customer'::regclass", "map_owner_new map_owner_new")
	r.want(r.target, "SELECT coalesce(string_agg(pg_get_userbyid(e.grantee), ','), 'none') FROM pg_class c, aclexplode(c.relacl) e WHERE c.oid = 'shop.customer'::regclass AND e.grantee NOT IN (c.relowner)", "none")

	again := newRig(t, `schema { owners = { map_owner = "map_owner_new" } }`)
	again.exec(again.target, "CREATE ROLE map_reader")
	again.exec(again.source, "ALTER TABLE shop.customer OWNER TO map_owner; GRANT SELECT ON shop.customer TO map_reader WITH GRANT OPTION; GRANT UPDATE (name) ON shop.customer TO map_reader; GRANT EXECUTE ON FUNCTION pg_catalog.now() TO map_reader")
	again.must(again.walk(t.Context(), newSchema(again.env)))
	again.want(again.target, "SELECT pg_get_userbyid(relowner)::text || relacl::text FROM pg_class WHERE oid = 'shop.customer'::regclass", "map_owner_new{map_owner_new=arwdDxtm/map_owner_new,map_reader=r*/map_owner_new}")
	again.want(again.target, "SELECT has_column_privilege('map_reader', 'shop.customer', 'name', 'UPDATE')::text", "true")
}

// carried walks up to the constraints.
func carried(t *testing.T, setup string) *rig {
	t.Helper()
	r := newRig(t, "verify { workers = 2 }")
	if setup != "" {
		r.exec(r.source, setup)
		r.replan()
	}
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	return r
}

func TestConstraintsNamesBrokenForeignKeys(t *testing.T) {
	r := carried(t, `SET session_replication_role = replica; INSERT INTO shop.invoice VALUES (999, 4711, 1); RESET session_replication_role;
		CREATE TABLE shop.extra (id int)`)
	for range 2 {
		r.must(newConstraints(r.env).Apply(t.Context(), engine.StepPlan{}, r.cursor(newConstraints(r.env))))
	}
	r.want(r.target, "SELECT string_agg(conname || convalidated::text, ' ' ORDER BY conname) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'shop'::regnamespace", "invoice_customer_fkeyfalse")
	named := slices.ContainsFunc(r.events, func(e engine.Event) bool {
		return e.Kind == engine.EventDiagnosed && e.Finding != nil && strings.Contains(e.Message, "invoice_customer_fkey") && strings.Contains(e.Message, "4711")
	})
	if !named {
		t.Error("the broken foreign key was not named with its row")
	}
}

func TestVerifyProvesAndFinds(t *testing.T) {
	r := carried(t, "")
	r.must(r.walk(t.Context(), newConstraints(r.env)))
	r.exec(r.source, "UPDATE shop.customer SET name = 'changed' WHERE id = 3; DELETE FROM shop.event WHERE id = 5")
	verify := func() error {
		return newVerify(r.env).Apply(t.Context(), engine.StepPlan{}, r.cursor(newVerify(r.env)))
	}
	r.must(verify())
	if !r.heard("shop.event: 19 rows equal") {
		t.Errorf("no word of equal rows in %d events", len(r.events))
	}
	r.exec(r.target, "SELECT set_config('pgrunbook.mark', '"+r.env.Run.Mark+"', false); SET session_replication_role = replica; UPDATE shop.customer SET name = 'C4' WHERE id = 4")
	err := verify()
	if engine.ClassOf(err) != engine.ClassDifferences || !strings.Contains(err.Error(), "changed (4): name") {
		t.Errorf("got %v", err)
	}
	r.sameRows()
}

// sameRows fails unless the planted difference is the only one.
func (r *rig) sameRows() {
	r.t.Helper()
	diff, err := testpg.Diff(r.t.Context(), r.source, r.target, []string{"shop.invoice", "shop.event"})
	r.must(err)
	if len(diff) > 0 {
		r.t.Errorf("%v", diff)
	}
}

// A target that somebody else prepared is loaded as it is: nothing is made, nothing is missing.
func TestExistingTargetIsLoaded(t *testing.T) {
	r := newRig(t, `schema { mode = "existing" }`)
	r.exec(r.target, strings.Split(shopSetup, "INSERT INTO")[0]+"ALTER TABLE shop.customer RENAME CONSTRAINT customer_pkey TO other_name; CREATE INDEX mine ON shop.customer (name)")
	before, err := testpg.SchemaDump(t.Context(), r.target, "pgrunbook")
	r.must(err)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env)))
	r.must(newVerify(r.env).Apply(t.Context(), engine.StepPlan{}, r.cursor(newVerify(r.env))))
	after, err := testpg.SchemaDump(t.Context(), r.target, "pgrunbook")
	r.must(err)
	for line := range strings.Lines(after) {
		if !strings.Contains(before, line) && !strings.Contains(line, "pgrunbook") {
			t.Errorf("the target got %s", line)
		}
	}
}

func TestDifferencesTakeBackAnEarlierProof(t *testing.T) {
	r := carried(t, "INSERT INTO shop.customer SELECT g, 'n' FROM generate_series(900, 905) g")
	r.must(r.walk(t.Context(), newVerify(r.env)))
	state := func() string {
		list, err := r.env.Journal.Steps(t.Context())
		r.must(err)
		at := slices.IndexFunc(list, func(s engine.StepRecord) bool { return s.ID == "verify" })
		return string(list[at].State)
	}
	r.must(VerifyNow(t.Context(), r.env, engine.SinkFunc(r.emit)))
	if got := state(); got != "done" {
		t.Errorf("after equal sides: %s", got)
	}
	r.exec(r.target, "SELECT set_config('pgrunbook.mark', '"+r.env.Run.Mark+"', false); SET session_replication_role = replica; DELETE FROM shop.customer WHERE id = 903")
	if err := VerifyNow(t.Context(), r.env, engine.SinkFunc(r.emit)); engine.ClassOf(err) != engine.ClassDifferences || engine.HintOf(err) == "" {
		t.Fatalf("got %v", err)
	}
	if got := state(); got == "done" {
		t.Error("a cutover could rest on a proof that no longer holds")
	}
}

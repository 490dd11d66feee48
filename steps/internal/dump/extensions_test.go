package dump

import (
	"context"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// An extension that only a superuser may make is made by the target's administrator before the run, often in
// a schema of its own: the restore of a role that owns the database must pass over both. A schema that was
// made for it gets what belongs in it, with its rights and its comment.
func TestWhatTheTargetHasIsKept(t *testing.T) {
	source, target, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	src := server(t, source, "source")
	from := connect(t, src)
	for _, sql := range []string{
		"CREATE SCHEMA gis", "COMMENT ON SCHEMA gis IS 'ours'", "GRANT USAGE ON SCHEMA gis TO pg_monitor", "CREATE EXTENSION file_fdw SCHEMA gis", "COMMENT ON EXTENSION file_fdw IS 'ours'",
		"CREATE SCHEMA filled", "COMMENT ON SCHEMA filled IS 'ours'", "GRANT USAGE ON SCHEMA filled TO pg_monitor", "CREATE TABLE filled.t (id int)",
	} {
		run(t, from, sql)
	}
	c := testpg.Shared(t, target)
	admin, err := pg.New(pg.Config{Side: "target", URL: testpg.NewDB(t, c), RunID: "test", Mark: "mark"})
	if err != nil {
		t.Fatal(err)
	}
	su := connect(t, admin)
	var db string
	if err := su.QueryRow(ctx, "SELECT current_database()::text").Scan(&db); err != nil {
		t.Fatal(err)
	}
	role := db + "_mover"
	run(t, su, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() {
		for _, sql := range []string{"DROP OWNED BY ", "DROP ROLE "} {
			if _, err := su.Exec(context.WithoutCancel(ctx), sql+role); err != nil {
				t.Error(err)
			}
		}
	})
	run(t, su, "CREATE SCHEMA gis")
	run(t, su, "CREATE EXTENSION file_fdw SCHEMA gis")
	run(t, su, "CREATE SCHEMA filled AUTHORIZATION "+role)
	run(t, su, "GRANT CREATE ON DATABASE "+db+" TO "+role)
	dst, err := pg.New(pg.Config{Side: "target", URL: c.URL(db, role), RunID: "test", Mark: "mark"})
	if err != nil {
		t.Fatal(err)
	}
	tl := tools(t, source, target)
	a, err := Dump(ctx, tl, src, Options{Scope: &scope.Scope{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	o := RestoreOptions{TargetMajor: target, OneTx: true, NoOwner: true}
	refused := a.Restore(ctx, dst, a.Pre, o)
	if !Refused(refused) || !strings.Contains(refused.Error(), "already exists") {
		t.Errorf("with the schemas: %v", refused)
	}
	mover := connect(t, dst)
	present, err := ReadPresent(ctx, mover)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Keep(ctx, from, mover, Present{Schemas: present.Schemas}); err != nil {
		t.Fatal(err)
	}
	if err := a.Restore(ctx, dst, a.Pre, o); !Refused(err) || !strings.Contains(err.Error(), "must be owner of extension") {
		t.Errorf("with the comment: %v", err)
	}
	if err := a.Keep(ctx, from, mover, present); err != nil {
		t.Fatal(err)
	}
	if err := a.Restore(ctx, dst, a.Pre, o); err != nil {
		t.Fatal(err)
	}
	if err := SetGrants(ctx, from, mover, a.Kept, func(role string) (string, bool) { return role, role == "pg_monitor" }); err != nil {
		t.Error(err)
	}
	var got string
	if err := su.QueryRow(ctx, `SELECT string_agg(concat_ws(' ', nspname, obj_description(oid, 'pg_namespace'), has_schema_privilege('pg_monitor', oid, 'USAGE'), pg_get_userbyid(nspowner) = $1), ', ' ORDER BY nspname)
		FROM pg_namespace WHERE nspname IN ('gis', 'filled')`, role).Scan(&got); err != nil || got != "filled ours t t, gis f f" {
		t.Errorf("got %q, %v", got, err)
	}
}

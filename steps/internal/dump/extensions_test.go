package dump

import (
	"context"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// An extension that only a superuser may make is made by the target's administrator before the run: the
// restore of a role that owns the database must pass over it.
func TestExtensionOfTheTargetIsKept(t *testing.T) {
	source, target, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	src := server(t, source, "source")
	from := connect(t, src)
	run(t, from, "CREATE EXTENSION file_fdw")
	run(t, from, "COMMENT ON EXTENSION file_fdw IS 'ours'")
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
	run(t, su, "CREATE EXTENSION file_fdw")
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
	if err := a.Restore(ctx, dst, a.Pre, o); err == nil || !strings.Contains(err.Error(), "must be owner of extension") {
		t.Errorf("with the comment: %v", err)
	}
	if err := a.KeepExtensions(ctx, from, su); err != nil {
		t.Fatal(err)
	}
	if err := a.Restore(ctx, dst, a.Pre, o); err != nil {
		t.Error(err)
	}
}

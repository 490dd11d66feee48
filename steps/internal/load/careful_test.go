package load

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Rows that a key of the target alone refuses are in no delta: the load names the key, and goes on
// when it has gone.
func TestTargetWithAKeyOfItsOwn(t *testing.T) {
	for name, tt := range map[string]struct{ ddl, rows, key, drop, hint string }{
		"unique index": {
			oneTable, `INSERT INTO t SELECT g, 'v' || g % 1500, g FROM generate_series(1, 2000) g`,
			`CREATE UNIQUE INDEX mine ON t (v)`, `DROP INDEX mine`, `DROP INDEX "public"."mine"`,
		},
		"exclusion constraint over a key of two columns": {
			`CREATE TABLE t (a varchar(9) COLLATE "C", b int, n int, PRIMARY KEY (b, a))`, `INSERT INTO t SELECT g, g, g % 1500 FROM generate_series(1, 2000) g`,
			`ALTER TABLE t ADD CONSTRAINT mine EXCLUDE USING hash (n WITH =)`, `ALTER TABLE t DROP CONSTRAINT mine`, `ALTER TABLE "public"."t" DROP CONSTRAINT "mine"`,
		},
		"no key": {`CREATE TABLE t (n int)`, `INSERT INTO t SELECT g % 15 FROM generate_series(1, 20) g`, `CREATE UNIQUE INDEX mine ON t (n)`, `DROP INDEX mine`, `DROP INDEX "public"."mine"`},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, tt.ddl, chunks(16<<10))
			p.beforeCapture(tt.rows)
			p.exec(p.target, tt.key)
			err := New(p.cfg).Run(p.ctx)
			var told *engine.Error
			if !errors.As(err, &told) || !strings.Contains(err.Error(), `"public"."mine" on the target refuses rows that the source has`) || !strings.Contains(told.Hint, tt.hint) {
				t.Fatalf("the load says %v", err)
			}
			p.exec(p.target, tt.drop)
			p.load()
			p.synced()
		})
	}
}

// Images that do not fit any more are left out of a second load, which reads their rows.
func TestImagesThatDoNotFit(t *testing.T) {
	p := newPair(t, `CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE whole (m mood, n int); CREATE TABLE more (m mood, n int)`, chunks(8<<10), func(t *scope.Table) {
		if t.Name.Name == "more" {
			t.Identity = scope.AppendOnly
		}
	})
	const fill = `INSERT INTO whole SELECT 'sad', g FROM generate_series(1, 1500) g; INSERT INTO more SELECT 'sad', g FROM generate_series(1, 1500) g;`
	p.beforeCapture(fill)
	p.load()
	p.exec(p.source, fill+`DELETE FROM whole WHERE n < 10; INSERT INTO more VALUES ('ok', 0)`)
	p.synced()
	app := p.connect(p.source)
	for _, sql := range []string{"BEGIN", "INSERT INTO more VALUES ('ok', -1)", "INSERT INTO whole VALUES ('ok', -1)"} {
		if _, err := app.Exec(p.ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	p.exec(p.source, fill+`UPDATE whole SET n = n + 1 WHERE n > 1400`)
	for _, side := range []string{p.source, p.target} {
		p.exec(side, `ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'`)
	}
	p.exec(p.source, `INSERT INTO whole VALUES ('blue', 5000); INSERT INTO more VALUES ('blue', 5000)`)
	var images *pass.UnfitError
	if err := p.follow(); !errors.As(err, &images) {
		t.Fatalf("the pass says %v", err)
	}
	for _, table := range p.tables {
		if err := New(p.cfg).StartOver(p.ctx, table); err != nil {
			t.Fatal(err)
		}
	}
	p.exec(p.source, `INSERT INTO more VALUES ('blue', 5001)`)
	if _, err := app.Exec(p.ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	p.load()
	p.synced()
}

// A rewrite gives rows another xmin than their images have.
func TestAppendOnlyTableThatIsRewritten(t *testing.T) {
	p := newPair(t, `CREATE TABLE k (a int, v text)`, func(t *scope.Table) { t.Identity = scope.AppendOnly })
	p.load()
	p.exec(p.source, `INSERT INTO k SELECT g, 'v' FROM generate_series(1, 100) g; ALTER TABLE k ALTER v TYPE text USING v || 'w'`)
	if err := New(p.cfg).StartOver(p.ctx, p.tables[0]); err != nil {
		t.Fatal(err)
	}
	p.load()
	p.exec(p.source, `INSERT INTO k VALUES (0, 'x')`)
	p.synced()
}

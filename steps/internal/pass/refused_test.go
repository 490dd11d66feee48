package pass

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A row that a key of To alone refuses stops the pass, which names the key; nothing is forgotten.
func TestTargetWithAKeyOfItsOwn(t *testing.T) {
	p := newPair(t, `CREATE TABLE keyed (id int PRIMARY KEY, v text); CREATE TABLE whole (v text); CREATE TABLE more (v text)`, func(t *scope.Table) {
		if t.Name.Name == "more" {
			t.Identity = scope.AppendOnly
		}
	})
	for _, table := range []string{"keyed", "whole", "more"} {
		rows := "('a'), ('a')"
		if table == "keyed" {
			rows = "(1, 'a'), (2, 'a')"
		}
		p.exec(p.target, "CREATE UNIQUE INDEX mine ON "+table+" (v)")
		p.app("INSERT INTO " + table + " VALUES " + rows)
		for range 2 {
			_, err := p.passer.Exact(p.ctx, Options{})
			var told *engine.Error
			if !errors.As(err, &told) || told.Object != `"public"."`+table+`"` || !strings.Contains(err.Error(), `"public"."mine" on the target refuses rows`) || !strings.Contains(told.Hint, `DROP INDEX "public"."mine"`) {
				t.Fatalf("%s: the pass says %v", table, err)
			}
		}
		p.exec(p.target, "DROP INDEX mine")
		p.synced()
	}
}

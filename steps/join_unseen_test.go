package steps

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A table and a sequence that are made between two looks, after the new tables were listed and before the definitions
// are compared, are part of the run when catch_up ends, rows included.
func TestF41MadeBetweenTwoLooks(t *testing.T) {
	source, target := testpg.Pair(t)
	r := newRigOn(t, source, target, shopSetup+`CREATE TABLE shop.tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`, `schema { on_ddl = "carry" }
table "shop.tree" { data = "none" }`) // that a table becomes its partition asks for no further look
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env)))
	r.exec(r.source, `CREATE TABLE shop.tree_1 (id int PRIMARY KEY, v text); INSERT INTO shop.tree_1 VALUES (1, 'one')`)
	r.must(r.catchUp())
	var once sync.Once
	r.onEvent = func(e engine.Event) {
		if strings.Contains(e.Message, "became a partition") {
			once.Do(func() {
				r.exec(r.source, "CREATE TABLE shop.between (id serial PRIMARY KEY, v text); INSERT INTO shop.between (v) VALUES ('a'), ('b'); CREATE SEQUENCE shop.apart")
			})
		}
	}
	r.exec(r.source, "ALTER TABLE shop.tree ATTACH PARTITION shop.tree_1 FOR VALUES FROM (0) TO (9)")
	r.must(r.catchUp())
	r.want(r.source, "SELECT count(*)::text FROM shop.between", "2")
	r.same("shop.between")
	if !slices.ContainsFunc(r.env.Scope.Sequences, func(s scope.Sequence) bool { return s.Name.Name == "apart" }) {
		t.Error("the sequence is not part of the run")
	}
}

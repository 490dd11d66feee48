package capture

import (
	"strconv"
	"testing"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What was captured before a comparison began is forgotten, whatever form it has; what commits later stays, though it began
// before. A member that joined on a side that takes no writes has nothing logged.
func TestForgetSeen(t *testing.T) {
	for _, major := range []int{12, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			d := newDB(t, major, "CREATE TABLE plain (id int PRIMARY KEY, v text); CREATE TABLE log (v text); CREATE TABLE tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
			plain, log, tree := d.table(1, "plain", scope.Statement, scope.ByKey), d.table(2, "log", scope.Statement, scope.FullRow), d.table(3, "tree", scope.Row, scope.ByKey)
			d.install(plain, log, tree)
			late := d.connect(d.appURL())
			d.run(late, "BEGIN; INSERT INTO plain VALUES (1); INSERT INTO log VALUES ('late')")
			d.run(d.app, "INSERT INTO plain VALUES (2), (3); INSERT INTO log VALUES ('early'); TRUNCATE tree")
			seen, err := Present(d.ctx, d.ours)
			if err != nil {
				t.Fatal(err)
			}
			d.run(late, "COMMIT")
			if n, err := ForgetSeen(d.ctx, d.ours, seen); err != nil || n != 4 {
				t.Errorf("%d changes were forgotten (%v), want 2 keys, an image and a truncation", n, err)
			}
			counts, err := Pending(d.ctx, d.ours, nil)
			if err != nil || counts[1].All() != 1 || counts[2].All() != 1 || counts[3].All() != 0 {
				t.Errorf("left are %v (%v), want what the late transaction wrote", counts, err)
			}

			d.run(d.connect(d.url), "CREATE TABLE leaf PARTITION OF tree FOR VALUES FROM (0) TO (10); INSERT INTO leaf VALUES (1), (2)")
			if err := InstallClosed(d.ctx, d.ours, testRun, tree, nil); err != nil {
				t.Fatal(err)
			}
			if counts, err := Pending(d.ctx, d.ours, nil); err != nil || counts[3].All() != 0 {
				t.Errorf("of a member that joined %v waits (%v)", counts[3], err)
			}
			d.run(d.app, "INSERT INTO tree VALUES (3)")
			if counts, err := Pending(d.ctx, d.ours, nil); err != nil || counts[3].All() != 1 {
				t.Errorf("of a row that was written to it %v waits (%v)", counts[3], err)
			}
		})
	}
}

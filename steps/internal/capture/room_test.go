package capture

import (
	"math"
	"testing"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What a plan says of the deltas' disk is near what they take when every row changes once: of a row
// known by its key, and of one that is recorded whole.
func TestRoomIsWhatTheDeltasTake(t *testing.T) {
	const rows = 20000
	d := newDB(t, 15, `CREATE TABLE plain (id int PRIMARY KEY, v text); CREATE TABLE bag (v text);
INSERT INTO plain SELECT g, 'v' FROM generate_series(1, 20000) g; INSERT INTO bag SELECT repeat('v', 100) FROM generate_series(1, 20000)`)
	before := d.size()
	for i, tab := range []scope.Table{d.table(1, "plain", scope.Statement, scope.ByKey), d.table(2, "bag", scope.Statement, scope.AppendOnly)} {
		tab.Data, tab.Rows = scope.Live, rows
		if err := d.ours.QueryRow(d.ctx, "SELECT pg_table_size($1::regclass)", "public."+tab.Name.Name).Scan(&tab.Bytes); err != nil {
			t.Fatal(err)
		}
		d.install(tab)
		d.run(d.app, []string{"UPDATE public.plain SET v = 'w'", "INSERT INTO public.bag SELECT v FROM public.bag"}[i])
		after := d.size()
		took, room := after-before, Room(tab)
		before = after
		t.Logf("%s: %d rows take %d bytes, expected are %d", tab.Name.Name, rows, took, room)
		if room < took*2/3 || room > took*3/2 {
			t.Errorf("%s: %d rows take %d bytes, expected are %d", tab.Name.Name, rows, took, room)
		}
		uncounted := tab
		uncounted.Rows, uncounted.Unanalyzed = 0, true
		if Room(uncounted) < tab.Bytes {
			t.Errorf("%s: rows that nobody counted take %d bytes", tab.Name.Name, Room(uncounted))
		}
		tab.Data = scope.AtFreeze
		if Room(tab) != 0 {
			t.Errorf("%s: a table that is not captured takes %d bytes", tab.Name.Name, Room(tab))
		}
	}
}

func (d *db) size() int64 {
	d.t.Helper()
	w, err := Measure(d.ctx, d.ours, math.MaxInt64, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	return w.Files
}

package capture

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// TestC1PendingReadsNoDeadRows: a freeze counts what its passes left behind. Where an old snapshot keeps the dead
// rows of a big delta, counting from the passes' lower bound reads next to nothing, and finds what is there.
func TestC1PendingReadsNoDeadRows(t *testing.T) {
	for _, major := range []int{12, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			d := newDB(t, major, "CREATE TABLE plain (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY, v text)")
			tables := []scope.Table{d.table(1, "plain", scope.Statement, scope.ByKey), d.table(2, "other", scope.Statement, scope.ByKey)}
			d.install(tables...)
			report := d.connect(d.url)
			d.run(report, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM plain")
			d.run(d.app, "INSERT INTO plain SELECT g FROM generate_series(1, 400000) g")
			d.forget(tables...)
			low, err := strconv.ParseUint(d.one("SELECT txid_snapshot_xmin(txid_current_snapshot())::text"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			d.run(d.app, "UPDATE other SET v = 'none'; INSERT INTO other VALUES (1); INSERT INTO plain VALUES (-1), (-2)")
			bounds := map[int32]uint64{1: low, 2: low}
			counts, err := Pending(d.ctx, d.ours, bounds)
			if err != nil || len(counts) != 2 || counts[1].Keys != 2 || counts[2].Keys != 1 {
				t.Errorf("waiting are %v (%v), want 2 of plain and 1 of other", counts, err)
			}
			deltas, images, err := recordTables(d.ctx, d.ours)
			if err != nil {
				t.Fatal(err)
			}
			if deltas[0].bytes <= smallDelta {
				t.Fatalf("the delta has %d bytes: nothing is proved", deltas[0].bytes)
			}
			// The first look also marks dead entries, as the passes do.
			all, bounded := d.pages(pendingSQL(deltas, images, nil, major)), d.pages(pendingSQL(deltas, images, bounds, major))
			if bounded*10 > all {
				t.Errorf("counting reads %d pages, all of them are %d", bounded, all)
			}
			d.run(report, "ROLLBACK")
		})
	}
}

var pagesTouched = regexp.MustCompile(`shared hit=(\d+)(?: read=(\d+))?|shared read=(\d+)`)

// pages are those that a query touches, of its plan's top node.
func (d *db) pages(sql string, args []any) (n int) {
	d.t.Helper()
	rows, err := d.ours.Query(d.ctx, "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) "+sql, args...)
	if err != nil {
		d.t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.t.Fatal(err)
	}
	m := pagesTouched.FindStringSubmatch(strings.Join(lines, "\n"))
	if m == nil {
		d.t.Fatalf("no pages in\n%s", strings.Join(lines, "\n"))
	}
	for _, text := range m[1:] {
		var part int
		_, _ = fmt.Sscan(text, &part)
		n += part
	}
	return n
}

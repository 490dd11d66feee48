package capture

import (
	"fmt"
	"math"
	"strconv"
	"testing"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What waits is near what the files take while all of it waits, and nothing as soon as passes have taken it, though the
// files are as large as before and an old snapshot keeps each dead row. Of large deltas some hundred blocks are read.
func TestMeasureKnowsWhatWaits(t *testing.T) {
	for _, major := range []int{12, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			d := newDB(t, major, "CREATE TABLE plain (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY, v text); CREATE TABLE log (v text)")
			plain, other, log := d.table(1, "plain", scope.Statement, scope.ByKey), d.table(2, "other", scope.Statement, scope.ByKey), d.table(3, "log", scope.Statement, scope.FullRow)
			d.install(plain, other, log)
			var late uint64
			measure := func(what string, least, most float64) Waiting {
				t.Helper()
				w, err := Measure(d.ctx, d.ours, 0, late)
				if err != nil {
					t.Fatal(err)
				}
				if share := float64(w.All) / float64(max(w.Files, 1)); share < least || share > most {
					t.Errorf("%s: %d of %d bytes wait, a share of %.2f; want %.2f to %.2f", what, w.All, w.Files, share, least, most)
				}
				return w
			}
			measure("nothing was written", 0, 0)
			d.run(d.app, "INSERT INTO other SELECT g FROM generate_series(1, 5000) g")
			measure("a small delta", 0.7, 1)
			d.forget(other)
			report := d.connect(d.url)
			d.run(report, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM plain")
			d.run(d.app, "INSERT INTO plain SELECT g FROM generate_series(1, 200000) g")
			late = measure("half of it", 0.6, 1).Next
			d.run(d.app, "INSERT INTO plain SELECT g FROM generate_series(200001, 400000) g; INSERT INTO other VALUES (-1)")
			w := measure("a full delta", 0.7, 1)
			if share := float64(w.Late[1]) / float64(w.All); share < 0.3 || share > 0.7 || w.Late[2] != 0 {
				t.Errorf("late are %v of %d bytes, want about half, of the first table alone", w.Late, w.All)
			}
			full, err := Measure(d.ctx, d.ours, w.Files, late)
			if err != nil || full.All != w.Files {
				t.Errorf("files within what is asked for: %+v (%v)", full, err)
			}
			few := func(what string) {
				t.Helper()
				records, heaps := d.stored()
				if read := d.pages(liveSQL(records, 100*sampledBytes/float64(heaps), major), []any{"0"}); heaps < 3*sampledBytes || int64(read) > 2*sampledBytes/8192 {
					t.Errorf("%s: %d pages are read of %d bytes", what, read, heaps)
				}
			}
			few("a full delta")
			d.forget(plain)
			measure("dead rows that a snapshot keeps", 0, 0)
			few("dead rows")
			d.run(report, "ROLLBACK")
			d.run(d.app, "INSERT INTO log SELECT string_agg(md5(g * h || ''), '') FROM generate_series(1, 20) g, generate_series(1, 2000) h GROUP BY g")
			if got := d.taken(); got < 1_000_000 || got > 2_000_000 {
				t.Errorf("20 images of 64 kB are %d bytes that wait", got)
			}
			d.run(d.ours, "DELETE FROM "+ImageName(3))
			measure("images that were taken", 0, 0)
		})
	}
}

// taken is what waits in images, where their table alone is asked: a sample of a large delta beside them may miss a block of few.
func (d *db) taken() int64 {
	d.t.Helper()
	for _, r := range first(d.stored()) {
		if r.name != "image_3" {
			continue
		}
		w := Waiting{Late: map[int32]int64{}}
		major, err := majorOf(d.ctx, d.ours)
		if err == nil {
			err = w.add(d.ctx, d.ours, []stored{r}, 100, math.MaxInt64, major)
		}
		if err != nil {
			d.t.Fatal(err)
		}
		if w.Late[3] != w.All {
			d.t.Errorf("late are %v of %d bytes, want all", w.Late, w.All)
		}
		return w.All
	}
	return 0
}

func first[A, B any](a A, _ B) A { return a }

// stored are the tables of captured changes.
func (d *db) stored() (list []stored, heaps int64) {
	d.t.Helper()
	for _, name := range d.list("SELECT relname::text FROM pg_class WHERE relnamespace = 'pgrunbook'::regnamespace AND relkind = 'r' AND relname ~ '^(delta|image)_'") {
		r := stored{name: name}
		for query, to := range map[string]*int64{"pg_relation_size": &r.heap, "pg_total_relation_size": &r.files} {
			if _, err := fmt.Sscan(d.one("SELECT "+query+"('pgrunbook."+name+"')::text"), to); err != nil {
				d.t.Fatal(err)
			}
		}
		list, heaps = append(list, r), heaps+r.heap
	}
	return list, heaps
}

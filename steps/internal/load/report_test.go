package load

import (
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// A table is told of when something about it is new: with ten thousand of them, those that are done
// are silent.
func TestReporterTellsWhatIsNew(t *testing.T) {
	var told []Progress
	r := newReporter(func(p Progress) { told = append(told, p) })
	table := scope.Table{ID: 1}
	later := func() { r.tables[1].told = time.Now().Add(-reportEvery) }
	r.committed(table, 10, 100, 1000)
	r.committed(table, 20, 200, 1000) // just now
	later()
	r.committed(table, 20, 200, 1000)
	later()
	r.committed(table, 20, 200, 1000) // the same again
	r.stage(table, Ready)
	later()
	r.committed(table, 20, 200, 1000)
	want := []int64{10, 20, 20}
	if len(told) != len(want) || told[2].Stage != Ready {
		t.Fatalf("told %+v", told)
	}
	for i, p := range told {
		if p.Rows != want[i] {
			t.Errorf("message %d has %d rows, want %d", i, p.Rows, want[i])
		}
	}
}

package steps

import (
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// What the parts of a step cost on two cores with a local disk. They are for plans alone: nothing
// that runs rests on them.
const (
	copyRate   = 40 << 20               // bytes a second that one worker moves
	hashRate   = 110e6                  // bytes a second that one core hashes (1.1 million rows of 100 bytes, measured)
	indexRate  = 30 << 20               // bytes of an index that one session builds in a second
	scanRate   = 150 << 20              // bytes of tables that one session reads in a second, to build or to validate
	toolsTake  = 600 * time.Millisecond // pg_dump and pg_restore of a schema with nothing in it
	restoreOne = 2 * time.Millisecond   // one table of it
	connecting = 100 * time.Millisecond // sessions of a step that only changes definitions
	triggerOne = 2 * time.Millisecond   // the triggers of one table, each table in a transaction of its own
)

// lasting gives an estimate of time alone, for n tables.
func lasting(base, each time.Duration, n int) engine.Estimate {
	return engine.Estimate{Seconds: (base + time.Duration(n)*each).Seconds()}
}

// relations counts tables with their partitions.
func relations(tables []scope.Table) int {
	n := len(tables)
	for _, t := range tables {
		n += len(t.Members)
	}
	return n
}

// deltaRoom is what the deltas take on the source when every row changes once before they are worked
// off: nobody knows what the application will write.
func deltaRoom(tables []scope.Table) (bytes int64) {
	for _, t := range tables {
		bytes += capture.Room(t)
	}
	return bytes
}

// deltaDisk is deltaRoom as far as the runbook's limit lets it come, with the danger in words.
func deltaDisk(rb *runbook.Runbook, tables []scope.Table) (int64, engine.Hazard) {
	bytes := deltaRoom(tables)
	h := engine.Hazard{Kind: engine.HazardDisk, Text: fmt.Sprintf("the deltas on the source grow with every write until the passes begin: about %s when every row changes once", runbook.FormatSize(float64(bytes)))}
	for _, l := range rb.Limits {
		if l.Kind == limitDelta {
			bytes = min(bytes, int64(l.Value))
			h.Text += fmt.Sprintf("; limit %q acts from %s on", limitDelta, l.Max)
		}
	}
	return bytes, h
}

// building estimates the indexes and foreign keys that are made while rows are there already. A
// server has no size of an index at hand that needs no lock, so each has its share of its table's.
func building(tables []scope.Table, objects []dump.Object, made map[int]bool, workers int) engine.Estimate {
	type table struct{ bytes, indexes, pages, toMake int64 }
	roots, of, heap := map[scope.Name]*table{}, map[scope.Name]*table{}, map[scope.Name]int64{}
	for _, t := range tables {
		if t.Data != scope.Live {
			continue // empty until the freeze, or for good
		}
		one := &table{bytes: t.Bytes, indexes: t.IndexBytes}
		roots[t.Name], of[t.Name] = one, one
		if t.Kind != scope.Partitioned {
			heap[t.Name] = t.Bytes
		}
		for _, m := range t.Members {
			of[m.Name], heap[m.Name] = one, m.Bytes
		}
	}
	var e engine.Estimate
	for i, o := range objects {
		t := of[o.Table]
		switch {
		case t == nil || o.NotCarried != "":
		case isIndex(o):
			t.pages += o.Pages
			if !made[i] {
				t.toMake += o.Pages
				e.Bytes += heap[o.Table]
			}
		case o.Kind == dump.ForeignKey && !o.NotValid && roots[o.Table] != nil: // those of partitions come with it
			e.Bytes += t.bytes
			if other := of[o.References]; other != nil {
				e.Bytes += other.bytes
			}
		}
	}
	var indexes float64
	for _, t := range roots {
		if t.toMake > 0 {
			indexes += float64(t.indexes) * float64(t.toMake) / float64(t.pages)
		}
	}
	e.Seconds = (float64(e.Bytes)/scanRate + indexes/indexRate) / float64(max(1, workers))
	return e
}

package load

import (
	"sync"
	"time"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const reportEvery = 500 * time.Millisecond

// reporter joins what workers and the journal say about a table.
type reporter struct {
	tell func(Progress)

	mu     sync.Mutex
	tables map[int32]*tableReport
}

type tableReport struct {
	Progress
	committed, flying int64 // bytes
	told              time.Time
	said              [3]int64 // rows, bytes and size, as they were told last
}

func newReporter(tell func(Progress)) *reporter {
	return &reporter{tell: tell, tables: map[int32]*tableReport{}}
}

// change applies f and tells; without force only what is new, and not what was told just now.
func (r *reporter) change(t scope.Table, force bool, f func(*tableReport)) {
	r.mu.Lock()
	tr := r.tables[t.ID]
	if tr == nil {
		tr = &tableReport{Progress: Progress{Table: t, Stage: Copying}}
		r.tables[t.ID] = tr
	}
	f(tr)
	tr.Bytes = tr.committed + tr.flying
	now := [3]int64{tr.Rows, tr.Bytes, tr.Size}
	tell := force || time.Since(tr.told) >= reportEvery && now != tr.said
	if tell {
		tr.told, tr.said = time.Now(), now
	}
	p := tr.Progress
	r.mu.Unlock()
	if tell {
		r.tell(p)
	}
}

func (r *reporter) stage(t scope.Table, s Stage) {
	r.change(t, true, func(tr *tableReport) { tr.Stage = s })
}

// flying counts bytes of a chunk that is not committed.
func (r *reporter) flying(t scope.Table, n int64) {
	r.change(t, false, func(tr *tableReport) { tr.flying += n })
}

// committed takes over what the journal says.
func (r *reporter) committed(t scope.Table, rows, bytes, size int64) {
	r.change(t, false, func(tr *tableReport) { tr.Rows, tr.committed, tr.Size = rows, bytes, max(size, bytes) })
}

package pass

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// heapLimit is what a runner may keep: rows go through it as a stream.
const heapLimit = 64 << 20

// heap samples what the runner keeps, until the returned function is called for the most of it.
func heap(ctx context.Context) (most func() uint64) {
	var seen atomic.Uint64
	ctx, stop := context.WithCancel(ctx)
	sample := func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		seen.Store(max(seen.Load(), m.HeapInuse))
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			sample()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return func() uint64 { stop(); <-over; return seen.Load() }
}

// kept fails where the runner's heap was too large, and where that proves nothing: all that went through it would not
// have been too large either.
func kept(t *testing.T, heap uint64, through int64) {
	t.Helper()
	if through < 2*heapLimit {
		t.Errorf("only %d MiB went through the runner: this proves nothing", through>>20)
	}
	if heap > heapLimit {
		t.Errorf("the runner's heap took %d MiB of %d MiB that went through it", heap>>20, through>>20)
	}
	t.Logf("%d MiB went through, the heap took at most %d MiB", through>>20, heap>>20)
}

// F35: what one transaction changes goes in one piece, of any size.
func TestF35OneHugeTransaction(t *testing.T) {
	rows, width := 20_000, 10_000 // long values take hardly any room on disk
	if os.Getenv("PGRUNBOOK_SOAK") != "" {
		rows, width = 10_000_000, 100
	}
	p := newPair(t, plainTable)
	p.app(fmt.Sprintf(`INSERT INTO t SELECT g, repeat('v', %d), now(), g FROM generate_series(1, %d) g`, width, rows))
	var through int64
	opts := DrainOptions{PieceRows: 1000, Until: time.Hour, Stable: 1, Spent: func(_ context.Context, bytes int64) error {
		through = max(through, bytes)
		return nil
	}}
	most := heap(p.ctx)
	if _, err := p.passer.Drain(context.WithoutCancel(p.ctx), opts); err != nil {
		t.Fatal(err)
	}
	inUse := most()
	if n := p.one(p.target, fmt.Sprintf("SELECT count(*)::text FROM t WHERE length(v) = %d", width)); n != strconv.Itoa(rows) {
		t.Errorf("%s of %d rows arrived", n, rows)
	}
	kept(t, inUse, through)
}

// F35: a pass of many wide rows and one of many wide images are streams as well, whatever becomes of the rows.
func TestF35WideRowsInOnePass(t *testing.T) {
	for name, key := range map[string]string{"keys": "PRIMARY KEY", "row images": ""} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, "CREATE TABLE t (id int "+key+", v text)")
			most, through := heap(p.ctx), int64(0)
			for _, sql := range []string{
				`INSERT INTO t SELECT g, repeat('v', 20000) FROM generate_series(1, 7000) g`,
				`UPDATE t SET v = repeat('w', 20000) || id WHERE id > 6900; DELETE FROM t WHERE id < 100`,
			} {
				p.app(sql)
				through = max(through, p.exact().Bytes)
			}
			inUse := most()
			p.equal()
			kept(t, inUse, through)
		})
	}
}

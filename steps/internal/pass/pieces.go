package pass

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const (
	controlPoll = 500 * time.Millisecond
	idlePoll    = 50 * time.Millisecond
	longestRest = 5 * time.Second
	mostWorkers = 64 // as far as the number can be raised while a drain runs
	roundPieces = 5  // of each worker; then the backlog is counted again, to see whether it falls
)

// errYield says that a worker was taken away in the middle of a table.
var errYield = errors.New("fewer workers are wanted")

// portion is what a worker takes of a backlog: one table's.
type portion struct {
	table scope.Table
	rows  int64
}

// queue hands portions to workers whose number may change meanwhile.
type queue struct {
	mu   sync.Mutex
	todo []portion
	busy int
}

func (q *queue) take() (next portion, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.todo) == 0 {
		return portion{}, false
	}
	next, q.todo = q.todo[0], q.todo[1:]
	q.busy++
	return next, true
}

// end says that a worker is done with its portion, or what it left of it.
func (q *queue) end(left ...portion) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	q.todo = append(left, q.todo...)
}

// over says that nothing is left and nothing can come back.
func (q *queue) over() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.todo) == 0 && q.busy == 0
}

// pieces is a round: the largest tables of the backlog go to one of several workers each.
func (p *Passer) pieces(ctx context.Context, opts DrainOptions, backlog Backlog, rate *rates) error {
	tables := p.following()
	q := &queue{}
	for id, rows := range backlog.Tables {
		q.todo = append(q.todo, portion{tables[id], rows})
	}
	slices.SortFunc(q.todo, func(a, b portion) int { return cmp.Compare(b.rows, a.rows) })
	most, wanted := opts.Workers, opts.Workers
	if opts.Control != nil {
		most, wanted = mostWorkers, max(opts.Control().Workers, 1)
	}
	share := roundPieces * opts.PieceRows
	left := int64(wanted) * share
	for i := range q.todo {
		if left <= 0 {
			q.todo = q.todo[:i]
			break
		}
		q.todo[i].rows = min(q.todo[i].rows, share)
		left -= q.todo[i].rows
	}
	var done, blocked atomic.Int64
	before := rate.all
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	for n := range min(most, len(q.todo)) {
		g.Go(func() error {
			w := New(p.cfg)
			w.worker = n
			defer func() {
				_ = w.Close(context.WithoutCancel(ctx))
				blocked.Add(int64(w.outwaited()))
			}()
			return w.work(gctx, q, opts, func(n int64) {
				p.cfg.Emit(engine.Event{Kind: engine.EventProgress, At: time.Now(), Rows: before + done.Add(n), RowsAll: before + backlog.Rows, Message: "applying captured changes"})
			})
		})
	}
	err := g.Wait()
	took := time.Since(start)
	held := min(time.Duration(blocked.Load()), took)
	rate.applied(done.Load(), took-held)
	rate.paused(held)
	return err
}

// work takes portions until none is left.
func (p *Passer) work(ctx context.Context, q *queue, opts DrainOptions, applied func(rows int64)) error {
	for !q.over() {
		var next portion
		var ok bool
		if opts.wants(p.worker) {
			next, ok = q.take()
		}
		if !ok {
			if err := rest(ctx, idlePoll); err != nil {
				return err
			}
			continue
		}
		var done int64
		err := p.table(ctx, next.table, next.rows, opts, func(n int64) {
			done += n
			applied(n)
		})
		if errors.Is(err, errYield) {
			q.end(portion{next.table, max(next.rows-done, 1)})
			p.drop(ctx)
			continue
		}
		q.end()
		if err != nil {
			return err
		}
	}
	return nil
}

// table works off, piece by piece, what one table's delta held when it was counted. What comes in
// meanwhile is for the next round, or a table that is written faster would keep a worker for ever.
func (p *Passer) table(ctx context.Context, t scope.Table, backlog int64, opts DrainOptions, applied func(rows int64)) error {
	p.SetTables([]scope.Table{t})
	var done int64
	rows := opts.PieceRows
	for {
		if _, err := opts.admitted(ctx); err != nil {
			return err
		}
		if !opts.wants(p.worker) {
			return errYield
		}
		var took, bytes int64
		var last bool
		start := time.Now()
		err := p.patiently(ctx, opts.Patience, func() error {
			var err error
			took, bytes, last, err = p.piece(ctx, t, rows)
			return err
		})
		switch {
		case err != nil && clashes(err) && !last:
			rows *= 8 // the whole backlog of a table cannot clash
			continue
		case err != nil:
			return err
		}
		done += took
		applied(took)
		rows = opts.PieceRows
		if err := opts.after(ctx, bytes, time.Since(start)); err != nil {
			return err
		}
		if last || done >= backlog {
			return nil
		}
	}
}

// piece takes the oldest rows of one table's delta. last says that it took all there was.
func (p *Passer) piece(ctx context.Context, t scope.Table, rows int64) (took, bytes int64, last bool, err error) {
	from, err := p.prepare(ctx, 0, maxStages)
	if err != nil {
		return 0, 0, false, err
	}
	if err := p.to.makeStages(ctx, []scope.Table{t}, from.version); err != nil {
		return 0, 0, false, err
	}
	tables := map[int32]scope.Table{t.ID: t}
	open, err := p.begin(ctx, from, tables, []int32{t.ID})
	if err != nil {
		return 0, 0, false, err
	}
	defer open.Close(ctx)
	found, err := from.look(ctx, tables)
	if err != nil {
		return 0, 0, false, err
	}
	b := found.tables[t.ID]
	if b == nil {
		return 0, 0, true, nil
	}
	w := work{table: t, span: span{low: from.low[t.ID]}, backlog: *b}
	last = true
	if keyed(t) && b.keys > rows {
		cut, cutting, err := from.cutoff(ctx, t, rows)
		if err != nil {
			return 0, 0, false, err
		}
		if cutting {
			w.span.cut, w.backlog.keys, last = cut, rows, false
		}
	}
	j := &job{p: p, from: from, found: found, work: []work{w}, opts: Options{outwaits: true}}
	res, err := j.do(ctx)
	if err != nil {
		abandon(ctx, p.toConn())
		return 0, 0, last, err
	}
	if last {
		from.low[t.ID] = found.xmin
		return b.keys, res.Bytes, true, nil
	}
	return rows, res.Bytes, false, nil
}

// wants reports whether worker n may work.
func (o DrainOptions) wants(n int) bool { return o.Control == nil || n < max(o.Control().Workers, 1) }

// admitted waits while a pause is on, and says for how long.
func (o DrainOptions) admitted(ctx context.Context) (waited time.Duration, err error) {
	start := time.Now()
	for o.Control != nil && o.Control().Paused {
		if err := rest(ctx, controlPoll); err != nil {
			return time.Since(start), err
		}
	}
	return time.Since(start), ctx.Err()
}

// after holds a pass's reader to what is allowed, when all its locks are gone.
func (o DrainOptions) after(ctx context.Context, bytes int64, took time.Duration) error {
	if o.Spent != nil {
		if err := o.Spent(ctx, bytes); err != nil {
			return err
		}
	}
	if o.Control == nil || !o.Control().Slow {
		return nil
	}
	return rest(ctx, min(took, longestRest))
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

package compare

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// runner is one call of Run.
type runner struct {
	cfg   *Config
	m     method
	pairs []*pair
	look  *pair // outside of snapshots: storage

	mu      sync.Mutex
	results []*TableResult
	left    []int        // pieces not yet compared, a table
	byField map[int]bool // tables with rows too large for one text

	all, taken int64 // bytes: of all pieces, of the batches that count
}

// piece is a table, or a range of its first key column.
type piece struct {
	table int
	where string // empty: all
	bytes int64
}

func (r *runner) prepare(ctx context.Context) error {
	for i := range r.cfg.Tables {
		r.results[i] = &TableResult{Name: r.cfg.Tables[i].Name}
	}
	for n := range r.cfg.Workers + 1 {
		p, err := connectPair(ctx, r.cfg, n)
		if err != nil {
			return err
		}
		r.pairs = append(r.pairs, p)
	}
	r.look, r.pairs = r.pairs[0], r.pairs[1:]
	if r.cfg.Mode == Count {
		return nil
	}
	var err error
	r.m, err = choose(ctx, r.look.from, r.look.to)
	return err
}

func (r *runner) close(ctx context.Context) {
	for _, p := range append(r.pairs, r.look) {
		if p != nil {
			p.close(ctx)
		}
	}
}

// batches cuts the tables into pieces and packs these until a batch keeps all workers busy for its
// share of bytes.
func (r *runner) batches(ctx context.Context) ([][]piece, error) {
	var out [][]piece
	var bytes int64
	for i, t := range r.cfg.Tables {
		pieces, err := r.cut(ctx, i, t)
		if err != nil {
			return nil, err
		}
		r.left[i] = len(pieces)
		for _, p := range pieces {
			const many = 500
			if len(out) == 0 || bytes+p.bytes > r.cfg.PieceBytes*int64(r.cfg.Workers) || len(out[len(out)-1]) >= many {
				out, bytes = append(out, nil), 0
			}
			out[len(out)-1] = append(out[len(out)-1], p)
			bytes += p.bytes
			r.all += p.bytes
		}
	}
	return out, nil
}

// patiently compares a batch, and again what moved meanwhile, or was left by a pause. A table that is
// truncated every second holds up only its own comparison: the next one begins right after its pass and reads
// little else.
func (r *runner) patiently(ctx context.Context, batch []piece) error {
	for attempt := 1; len(batch) > 0; attempt++ {
		results, stirred, err := r.batch(ctx, batch)
		switch {
		case errors.Is(err, errTooLarge):
			attempt--
		case err != nil && (!errors.Is(err, errMoved) || attempt == maxAttempts):
			return err
		case err == nil:
			left := r.take(batch, results)
			if len(left) < len(batch) || len(stirred) == 0 { // or somebody said pause in its midst
				attempt = 0
			} else if attempt == maxAttempts {
				t := stirred[0]
				return &engine.Error{
					Op: "comparing", Object: pg.Name(t.Schema, t.Name.Name), Err: fmt.Errorf("%w, %d times", errMoved, attempt),
					Hint: "Run the same command again when whatever truncates or rewrites it rests; where its rows need not be compared live, data = \"at_freeze\" or \"none\" in its table block says so.",
				}
			}
			batch = left
		}
		if err := r.reconnect(ctx); err != nil {
			return err
		}
		if half := len(batch) / 2; len(stirred) > 0 && half > 0 && attempt > 0 {
			if err := r.patiently(ctx, batch[:half]); err != nil {
				return err
			}
			batch, attempt = batch[half:], 0
		}
	}
	return nil
}

// reconnect replaces sessions that an error in another one has cancelled.
func (r *runner) reconnect(ctx context.Context) error {
	for n, p := range r.pairs {
		if !p.from.IsClosed() && !p.to.IsClosed() {
			continue
		}
		p.close(ctx)
		fresh, err := connectPair(ctx, r.cfg, n+1)
		if err != nil {
			return err
		}
		r.pairs[n] = fresh
	}
	return nil
}

// take adds the pieces' results to their tables and reports the tables that are whole. It returns the
// pieces that have no result yet.
func (r *runner) take(batch []piece, results []*TableResult) (left []piece) {
	for n, p := range batch {
		t, got := r.results[p.table], results[n]
		if got == nil {
			left = append(left, p)
			continue
		}
		r.taken += p.bytes
		t.FromRows += got.FromRows
		t.ToRows += got.ToRows
		t.Elapsed += got.Elapsed
		t.Differs = t.Differs || got.Differs
		room := min(maxRows-len(t.Rows), len(got.Rows))
		t.Rows = append(t.Rows, got.Rows[:room]...)
		t.More = t.More || got.More || room < len(got.Rows)
		if r.left[p.table]--; r.left[p.table] == 0 && r.cfg.Report != nil {
			r.cfg.Report(*t)
		}
	}
	return left
}

// batch compares pieces under one pair of snapshots that all workers share. Pieces of tables that moved have no
// result, nor have some where a pause cut it short.
func (r *runner) batch(ctx context.Context, batch []piece) (results []*TableResult, stirred []scope.Table, err error) {
	defer func() {
		for _, p := range r.pairs {
			if p.from.IsClosed() || p.to.IsClosed() {
				continue // cancelled with another worker: err says why
			}
			if endErr := p.end(ctx); err == nil {
				err = endErr
			}
		}
	}()
	if err := r.open(ctx); err != nil {
		return nil, nil, err
	}
	tables := r.tablesOf(batch)
	before, err := storage(ctx, r.pairs[0], seenSQL, tables)
	if err != nil {
		return nil, nil, err
	}
	failpoint.Hit("compare.opened")
	if results, err = r.pieces(ctx, batch); err != nil {
		return nil, nil, err
	}
	after, err := storage(ctx, r.look, nowSQL, tables)
	if err != nil {
		return nil, nil, err
	}
	failpoint.Hit("compare.compared")
	for _, t := range tables {
		if moved(t, before[0], after[0]) || moved(t, before[1], after[1]) {
			stirred = append(stirred, t)
		}
	}
	for n, p := range batch {
		if slices.ContainsFunc(stirred, func(t scope.Table) bool { return t.Name == r.cfg.Tables[p.table].Name }) {
			results[n] = nil
		}
	}
	return results, stirred, nil
}

// pieces compares the pieces of a batch by all workers, until a pause.
func (r *runner) pieces(ctx context.Context, batch []piece) ([]*TableResult, error) {
	results := make([]*TableResult, len(batch))
	var next int
	read := r.taken
	until, done := r.untilPaused(ctx)
	defer done()
	g, gctx := errgroup.WithContext(until)
	for _, p := range r.pairs {
		g.Go(func() error {
			for {
				r.mu.Lock()
				n := next
				next++
				r.mu.Unlock()
				if n >= len(batch) || gctx.Err() != nil {
					return gctx.Err()
				}
				got, err := r.piece(gctx, p, batch[n])
				if err != nil {
					t := r.cfg.Tables[batch[n].table]
					return fmt.Errorf("comparing %s: %w", pg.Name(t.Schema, t.Name.Name), err)
				}
				results[n] = &got
				r.mu.Lock()
				read += batch[n].bytes
				if r.cfg.Progress != nil {
					r.cfg.Progress(read, r.all)
				}
				r.mu.Unlock()
			}
		})
	}
	if err := g.Wait(); err != nil && !errors.Is(context.Cause(until), errPaused) {
		return nil, err
	}
	return results, nil
}

// errPaused is the cause of a context that a pause ended.
var errPaused = errors.New("paused")

const pausedEvery = time.Second

// untilPaused gives a context that ends when somebody says pause.
func (r *runner) untilPaused(ctx context.Context) (until context.Context, done func()) {
	until, cancel := context.WithCancelCause(ctx)
	if r.cfg.Paused == nil {
		return until, func() { cancel(nil) }
	}
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			select {
			case <-until.Done():
				return
			case <-time.After(pausedEvery):
			}
			if r.cfg.Paused(until) {
				cancel(errPaused)
			}
		}
	})
	return until, func() { cancel(nil); looking.Wait() }
}

// open makes a pass and takes its snapshots with every worker; then passes may go on.
func (r *runner) open(ctx context.Context) error {
	var s Snapshot
	if r.cfg.Pass != nil {
		var err error
		if s, err = r.cfg.Pass(ctx); err != nil {
			return err
		}
	}
	if s.Release != nil {
		defer s.Release()
	}
	for _, p := range r.pairs {
		if err := p.open(ctx, s, r.cfg.From.Side()); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) tablesOf(batch []piece) []scope.Table {
	var out []scope.Table
	seen := map[int]bool{}
	for _, p := range batch {
		if !seen[p.table] {
			seen[p.table] = true
			out = append(out, r.cfg.Tables[p.table])
		}
	}
	return out
}

func storage(ctx context.Context, p *pair, sql string, tables []scope.Table) (out [2]nodes, err error) {
	if out[0], err = readNodes(ctx, p.from, sql, tables); err != nil {
		return out, err
	}
	out[1], err = readNodes(ctx, p.to, sql, tables)
	return out, err
}

// sums are a count and a sum of hashes.
type sums struct {
	rows int64
	hash string // numeric
}

// piece compares one piece over one worker's sessions, both sides at once.
func (r *runner) piece(ctx context.Context, p *pair, pc piece) (TableResult, error) {
	started := time.Now()
	r.mu.Lock()
	pl := plan{table: r.cfg.Tables[pc.table], m: r.m, byField: r.byField[pc.table]}
	r.mu.Unlock()
	got, err := r.sums(ctx, p, pl, pc)
	if tooLarge(err) && !pl.byField {
		r.mu.Lock()
		r.byField[pc.table] = true
		r.mu.Unlock()
		return TableResult{}, errTooLarge // the failed statement has aborted the transaction and its snapshot
	}
	if err != nil {
		return TableResult{}, err
	}
	res := TableResult{Name: pl.table.Name, FromRows: got[0].rows, ToRows: got[1].rows, Differs: got[0] != got[1]}
	if res.Differs && r.cfg.Mode == Hash {
		if err := r.find(ctx, p, pl, pc, &res); err != nil {
			return res, err
		}
	}
	res.Elapsed = time.Since(started)
	return res, nil
}

// tooLarge reports whether a row's text has no room in one value (program_limit_exceeded, or the
// allocator's refusal, which has no better code than internal_error).
func tooLarge(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "54000" || pgErr.Code == "53200" || pgErr.Code == "XX000" && strings.Contains(pgErr.Message, "invalid memory alloc request size"))
}

func (r *runner) sums(ctx context.Context, p *pair, pl plan, pc piece) (out [2]sums, err error) {
	sql := "SELECT count(*), 0::text FROM " + pl.from() + pc.where
	if r.cfg.Mode == Hash {
		sql = "SELECT count(*), coalesce(sum(" + pl.row() + "), 0)::text FROM " + pl.from() + pc.where
	}
	err = both(ctx, p, func(ctx context.Context, side int, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, sql).Scan(&out[side].rows, &out[side].hash)
	})
	return out, err
}

// both runs do on the two sides of a pair at once.
func both(ctx context.Context, p *pair, do func(ctx context.Context, side int, conn *pgx.Conn) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for side, conn := range []*pgx.Conn{p.from, p.to} {
		g.Go(func() error { return do(ctx, side, conn) })
	}
	return g.Wait()
}

package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// maxWorkers is how far the number of workers can be raised while a load runs.
const maxWorkers = 64

// Run loads until every table follows. Tables whose chunks are done are finished while others are
// still read.
func (l *Loader) Run(ctx context.Context) error {
	err := l.run(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (l *Loader) run(ctx context.Context) error {
	if err := pg.Retry(ctx, "cutting the tables into chunks", l.Prepare); err != nil {
		return err
	}
	if err := l.bulk(ctx); err != nil {
		return err
	}
	defer l.finishing.close()
	o := newOverview(l)
	g, gctx := errgroup.WithContext(ctx)
	for n := range maxWorkers {
		g.Go(func() error { return l.lazily(gctx, n, o.copied) })
	}
	g.Go(func() error { return o.finishAll(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	return l.external(ctx)
}

// lazily starts worker n once it is wanted.
func (l *Loader) lazily(ctx context.Context, n int, copied <-chan struct{}) error {
	for n >= max(l.gate.get().Workers, 1) {
		select {
		case <-copied:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pollControl):
		}
	}
	w := &worker{l: l, n: n, careful: map[int32]bool{}}
	return w.run(ctx, copied)
}

// finish brings a copied table to following. Each stage may have been done by a process that died.
func (l *Loader) finish(ctx context.Context, t scope.Table) error {
	// One index may take hours: the time that a try took says nothing of the next.
	return pg.Retrier{Elapsed: -1, Also: pg.Canceled, Report: func(e pg.RetryEvent) {
		l.cfg.Emit(engine.Event{Kind: engine.EventRetry, At: time.Now(), Object: tableName(t), Message: e.What + " again: " + e.Err.Error(), SQLState: e.SQLState})
	}}.Do(ctx, "finishing "+tableName(t), func(ctx context.Context) error { return l.finishOnce(ctx, t) })
}

func (l *Loader) finishOnce(ctx context.Context, t scope.Table) (err error) {
	s, err := l.finishing.take(ctx, l)
	if err != nil {
		return err
	}
	defer func() { l.finishing.give(s, err) }()
	state, _, err := l.cfg.Journal.TableState(ctx, nil, t.ID)
	if err != nil || state.State == journal.Following {
		return err
	}
	if state.State == journal.Loading {
		done, err := l.verifyAndScrub(ctx, s, t, state)
		if err != nil || !done {
			return err
		}
	}
	failpoint.Hit("load.scrubbed")
	return l.build(ctx, s, t, state)
}

// verifyAndScrub is false where the table was started over.
func (l *Loader) verifyAndScrub(ctx context.Context, s sides, t scope.Table, state journal.TableState) (bool, error) {
	if l.cfg.Check != nil {
		if err := l.cfg.Check(ctx, s.from, t); err != nil {
			return false, err
		}
	}
	l.report.stage(t, Scrubbing)
	err := l.scrub(ctx, s, t, state)
	if errors.Is(err, errNotCopied) { // started over by a worker meanwhile
		return false, nil
	}
	return err == nil, err
}

func (l *Loader) build(ctx context.Context, s sides, t scope.Table, state journal.TableState) error {
	name := tableName(t)
	if l.cfg.Builder != nil {
		l.report.stage(t, Keying)
		if err := l.cfg.Builder.BuildKey(ctx, s.to, t); err != nil {
			return fmt.Errorf("building the key of %s: %w", name, err)
		}
		failpoint.Hit("load.keyed")
		l.report.stage(t, Indexing)
		if err := l.cfg.Builder.BuildIndexes(ctx, t); err != nil {
			return fmt.Errorf("building the indexes of %s: %w", name, err)
		}
		failpoint.Hit("load.indexed")
		l.report.stage(t, Analyzing)
		if err := l.cfg.Builder.Analyze(ctx, s.to, t); err != nil {
			return err
		}
	}
	err := pgx.BeginFunc(ctx, s.to, func(tx pgx.Tx) error {
		return l.cfg.Journal.SetTableState(ctx, tx, t.ID, journal.Following, state.Generation, state.Filenodes)
	})
	if err != nil {
		return err
	}
	failpoint.Hit("load.following")
	l.report.stage(t, Ready)
	return nil
}

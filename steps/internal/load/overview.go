package load

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const (
	finishers    = 4 // tables that are scrubbed and indexed at the same time
	overviewPoll = 500 * time.Millisecond
)

// overview is what the journal says of all tables, and what this process does about it.
type overview struct {
	l      *Loader
	copied chan struct{} // closed when no chunk is left to take

	mu    sync.Mutex
	seen  []journal.TableProgress
	state map[int32]journal.TableState
	bare  map[int32]bool // emptied, and without new chunks
	busy  map[int32]bool // being finished
	done  chan int32     // finished
}

func newOverview(l *Loader) *overview {
	return &overview{l: l, copied: make(chan struct{}), busy: map[int32]bool{}, done: make(chan int32, len(l.tables)+1)}
}

// look reads the journal again and closes copied once every streamed table is past its load. A
// copied table may still be found rewritten, so its scrub counts, not its last chunk.
func (o *overview) look(ctx context.Context) error {
	var seen []journal.TableProgress
	var state map[int32]journal.TableState
	err := pg.Retry(ctx, "reading the journal", func(ctx context.Context) (err error) {
		seen = seen[:0]
		for _, step := range o.l.steps() {
			p, err := o.l.cfg.Journal.Progress(ctx, step)
			if err != nil {
				return err
			}
			seen = append(seen, p...)
		}
		state, err = o.l.cfg.Journal.TableStates(ctx, nil)
		return err
	})
	if err != nil {
		return err
	}
	cut := map[int32]bool{}
	for _, p := range seen {
		cut[p.Table] = true
	}
	bare := map[int32]bool{}
	for id := range o.l.tables {
		if cut[id] {
			continue
		}
		one := journal.TableProgress{Table: id, Items: 1}
		if s := state[id].State; s == journal.Scrubbed || s == journal.Following {
			one.DoneItems = 1 // what is left needs no chunks
		} else {
			bare[id] = true
		}
		seen = append(seen, one)
	}
	slices.SortFunc(seen, func(a, b journal.TableProgress) int { return int(min(max(b.Size-a.Size, -1), 1)) })
	o.mu.Lock()
	o.seen, o.state, o.bare = seen, state, bare
	o.mu.Unlock()
	copied := true
	for _, p := range seen {
		t, ok := o.l.tables[p.Table]
		if !ok {
			continue
		}
		o.l.report.committed(t, p.Rows, p.Bytes, p.Size)
		copied = copied && (!streamed(t) || p.DoneItems == p.Items && state[p.Table].State != journal.Loading)
	}
	if copied && !o.isCopied() {
		close(o.copied)
	}
	return nil
}

func (o *overview) isCopied() bool {
	select {
	case <-o.copied:
		return true
	default:
		return false
	}
}

// steps are where the journal keeps the chunks of this load.
func (l *Loader) steps() []engine.StepID {
	steps := []engine.StepID{l.cfg.Step}
	for _, t := range l.tables {
		if step := l.stepOf(t); !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
	}
	return steps
}

// finishAll finishes tables, the largest first, until all follow but those that somebody else
// loads.
func (o *overview) finishAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(finishers)
	for {
		began := time.Now()
		if err := o.look(ctx); err != nil {
			if failed := g.Wait(); failed != nil {
				return failed
			}
			return err
		}
		open := false
		for _, p := range o.seen {
			t, ok := o.l.tables[p.Table]
			if !ok || t.Method == scope.External || o.state[p.Table].State == journal.Following {
				continue
			}
			open = true
			work := o.l.finish
			if o.bare[p.Table] { // whoever emptied it goes on, or lost its sessions
				work = o.l.cutAgain
			} else if p.DoneItems < p.Items {
				continue
			}
			if o.busy[p.Table] {
				continue
			}
			o.busy[p.Table] = g.TryGo(func() error {
				defer func() { o.done <- t.ID }()
				return work(ctx, t)
			})
		}
		if !open {
			return g.Wait()
		}
		if err := o.pause(ctx, 5*time.Since(began)); err != nil {
			if failed := g.Wait(); failed != nil {
				return failed
			}
			return err
		}
	}
}

// pause waits until something happened, but at least for as long as keeps the journal's share of
// the work small.
func (o *overview) pause(ctx context.Context, least time.Duration) error {
	if err := sleep(ctx, min(least, overviewPoll)); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case id := <-o.done:
		delete(o.busy, id)
	case <-o.l.kick:
	case <-time.After(overviewPoll):
	}
	for {
		select {
		case id := <-o.done:
			delete(o.busy, id)
		default:
			return nil
		}
	}
}

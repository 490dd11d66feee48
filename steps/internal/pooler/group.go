package pooler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Group is all poolers of a cutover.
type Group []*Pooler

// NewGroup reads the settings of several poolers; it does not connect.
func NewGroup(configs []Config) (Group, error) {
	var g Group
	for _, c := range configs {
		p, err := New(c)
		if err != nil {
			return nil, err
		}
		g = append(g, p)
	}
	return g, nil
}

// Close ends all console connections.
func (g Group) Close() {
	for _, p := range g {
		p.Close()
	}
}

// Pause pauses all at once, each within its own timeout, or none: when one fails, all are resumed.
func (g Group) Pause(ctx context.Context) error {
	var all errgroup.Group
	errs := make([]error, len(g))
	bounded, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, p := range g {
		all.Go(func() error {
			if errs[i] = p.Pause(bounded, p.cfg.Timeout); errs[i] != nil {
				cancel() // the others need not wait for theirs
			}
			return nil
		})
	}
	_ = all.Wait()
	err := firstCauses(ctx, errs)
	if err == nil {
		return nil
	}
	freeing, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(len(g)+1)*commandTimeout)
	defer stop()
	return errors.Join(err, g.Resume(freeing))
}

// firstCauses leaves out those that only gave up because another had failed.
func firstCauses(ctx context.Context, errs []error) error {
	all := errors.Join(errs...)
	if ctx.Err() != nil {
		return all
	}
	causes := errors.Join(slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return errors.Is(err, context.Canceled) })...)
	if causes != nil {
		return causes
	}
	return all
}

// Plan gives the changes of all that have a file; it writes nothing. Keep them before Apply.
func (g Group) Plan() ([]Change, error) {
	var changes []Change
	for _, p := range g {
		if !p.Repoints() {
			continue
		}
		c, err := p.Plan()
		if err != nil {
			return nil, err
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// Apply repoints one after the other, since several may share a file. When one fails, what was done
// is undone in reverse.
func (g Group) Apply(ctx context.Context, changes []Change) error {
	for i, c := range changes {
		p, err := g.of(c)
		if err == nil {
			err = p.Apply(ctx, c) // undoes itself
		}
		if err != nil {
			undoing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(i+1)*2*commandTimeout)
			defer cancel()
			return errors.Join(err, g.Undo(undoing, changes[:i]))
		}
	}
	return nil
}

// Repoint is Plan and Apply. The changes are given also when Apply failed.
func (g Group) Repoint(ctx context.Context) ([]Change, error) {
	changes, err := g.Plan()
	if err != nil {
		return nil, err
	}
	return changes, g.Apply(ctx, changes)
}

// Reverse gives the changes of a rollback: those of the cutover backwards.
func Reverse(changes []Change) []Change {
	var back []Change
	for _, c := range slices.Backward(changes) {
		back = append(back, c.Reverse())
	}
	return back
}

// Undo points all back, the last first; one that fails does not keep the others from it.
func (g Group) Undo(ctx context.Context, changes []Change) error {
	var errs []error
	for _, c := range slices.Backward(changes) {
		p, err := g.of(c)
		if err == nil {
			err = p.Undo(ctx, c)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Resume lets all clients go on; one that fails does not keep the others from it.
func (g Group) Resume(ctx context.Context) error {
	var all errgroup.Group
	errs := make([]error, len(g))
	for i, p := range g {
		all.Go(func() error {
			errs[i] = p.Resume(ctx)
			return nil
		})
	}
	_ = all.Wait()
	return errors.Join(errs...)
}

// of finds the pooler that a change is for.
func (g Group) of(c Change) (*Pooler, error) {
	for _, p := range g {
		if p.cfg.Name == c.Pooler && p.cfg.Database == c.Database {
			return p, nil
		}
	}
	return nil, &engine.Error{
		Op: "finding", Object: "pooler " + c.Pooler, Hint: "Put the pooler block back into the runbook as it was.",
		Err: fmt.Errorf("a change of database %s in %s is recorded, and the runbook has no such pooler", c.Database, c.File),
	}
}

package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/pooler"
)

// poolers drives every pooler block of the cutover around a freeze: PAUSE before the hold (inside
// it PAUSE would wait for transactions that wait at the gate), the file and RELOAD in the switch,
// RESUME once a side is open, and after any failure.
type poolers struct {
	group  pooler.Group
	cp     engine.Checkpoint
	back   bool // towards the source: what the cutover wrote is taken back
	cursor *freezeCursor
	freed  bool      // since the last pause: RESUME was answered
	began  time.Time // of the latest PAUSE
	astray bool      // an entry could not be pointed back: the record stays, and who comes next tries it again
}

// resumeWithin bounds RESUME, which answers at once or not at all.
const resumeWithin = 5 * time.Second

func poolerGroup(env *Env) (pooler.Group, error) {
	c := env.Runbook.Cutover
	configs := make([]pooler.Config, len(c.Poolers))
	for i, p := range c.Poolers {
		configs[i] = pooler.Config{
			Name: p.Name, Admin: p.Admin, Database: p.Database, ConfigFile: p.ConfigFile, Connect: p.Connect,
			Timeout: p.Timeout, MaxBlock: max(c.MaxWriteBlock, env.Runbook.WriteBlock(true)),
		}
	}
	return pooler.NewGroup(configs)
}

// newPoolers reads what an earlier process left. On the way back the changes are those of the
// cutover.
func newPoolers(ctx context.Context, env *Env, cp engine.Checkpoint, back bool, cursor *freezeCursor) (*poolers, error) {
	group, err := poolerGroup(env)
	if err != nil {
		return nil, err
	}
	p := &poolers{group: group, cp: cp, back: back, cursor: cursor}
	if len(group) == 0 || !back {
		return p, nil
	}
	var forward freezeCursor
	if _, err := env.Journal.Checkpoint("freeze", env.Sink).Load(ctx, &forward); err != nil {
		return nil, err
	}
	if len(forward.Changes) > 0 { // once the way back is made they are only in its own
		cursor.Changes = forward.Changes
	}
	return p, nil
}

// settle ends what a dead process left: the poolers point to the side that takes writes, and
// clients go on.
func (p *poolers) settle(ctx context.Context, opened bool) error {
	if !p.cursor.Paused {
		return nil
	}
	err := p.lead(ctx, opened)
	p.astray = err != nil
	return errors.Join(err, p.resume(ctx))
}

// lead points the poolers to the side that is open. Where one fails, none is taken back: the other side is
// closed.
func (p *poolers) lead(ctx context.Context, opened bool) error {
	changes := p.cursor.Changes
	if opened != p.back { // the target is open
		changes = pooler.Reverse(changes)
	}
	return p.group.Undo(ctx, changes)
}

// pause makes clients wait in the pooler, bounded by each pooler's timeout.
func (p *poolers) pause(ctx context.Context) error {
	if len(p.group) == 0 {
		return nil
	}
	if p.astray {
		if err := p.cp.Save(ctx, nil, p.cursor); err != nil { // which a runner that was replaced cannot
			return err
		}
		if err := p.settle(ctx, false); err != nil {
			return err
		}
	}
	if !p.back {
		changes, err := p.group.Plan()
		if err != nil {
			return err
		}
		p.cursor.Changes = changes
	}
	p.cursor.Paused, p.freed = true, false
	if err := p.cp.Save(ctx, nil, p.cursor); err != nil {
		return err
	}
	p.began = time.Now()
	if err := p.group.Pause(ctx); err != nil {
		return errors.Join(fmt.Errorf("%w: %w", freeze.ErrNotNow, err), p.resume(ctx))
	}
	p.tell(markPause, "paused", p.began)
	failpoint.Hit("pooler.paused")
	return nil
}

// tell says what was done at the poolers, and how long it took.
func (p *poolers) tell(mark, did string, since time.Time) {
	took := time.Since(since)
	p.cp.Emit(engine.Event{Kind: engine.EventFreeze, Mark: mark, Elapsed: took, Message: fmt.Sprintf("%s %s in %s", engine.Plural(len(p.group), "pooler"), did, took.Round(time.Millisecond))})
}

// letGo sends RESUME.
func (p *poolers) letGo(ctx context.Context) error {
	began := time.Now()
	err := p.group.Resume(ctx)
	if err == nil && p.cursor.Paused {
		p.tell(markResume, "resumed", began)
	}
	return err
}

// free lets clients go on as soon as a side is open, before anything that may wait for a network. An
// error is met again in resume.
func (p *poolers) free(ctx context.Context) {
	if len(p.group) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeWithin)
	defer cancel()
	p.freed = p.letGo(ctx) == nil
}

// resume lets clients go on, whatever happened to the walk, and records it.
func (p *poolers) resume(ctx context.Context) error {
	if len(p.group) == 0 && !p.cursor.Paused {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeWithin)
	defer cancel()
	if !p.freed {
		if err := p.letGo(ctx); err != nil {
			return err
		}
	}
	if p.astray {
		return nil
	}
	p.cursor.Paused = false
	return p.cp.Save(ctx, nil, p.cursor)
}

// repoint is a switch step. A guardian that took its runner for dead may have recorded since that nothing is
// left: what is changed stands in the journal before.
func (p *poolers) repoint(ctx context.Context) error {
	p.cursor.Paused = true
	if err := p.cp.Save(ctx, nil, p.cursor); err != nil {
		return err
	}
	began := time.Now()
	var err error
	if p.back {
		err = p.group.Undo(ctx, p.cursor.Changes)
	} else {
		err = p.group.Apply(ctx, p.cursor.Changes)
	}
	if err == nil {
		p.tell(markRepoint, "repointed", began)
	}
	return err
}

func (p *poolers) undo(ctx context.Context) error {
	err := p.lead(ctx, false)
	p.astray = err != nil
	return err
}

// steps are the switch step that repoints the poolers, where there are any.
func (p *poolers) steps() []freeze.SwitchStep {
	for _, one := range p.group {
		if one.Repoints() {
			return []freeze.SwitchStep{{Name: "repoint the poolers", Timeout: resumeWithin, Do: p.repoint, Undo: p.undo}}
		}
	}
	return nil
}

func (p *poolers) close() {
	if p != nil {
		p.group.Close()
	}
}

// checkPoolers gives the findings of every pooler, for the plan.
func checkPoolers(ctx context.Context, env *Env) ([]engine.Finding, error) {
	if !env.Runbook.Cutover.Enabled || len(env.Runbook.Cutover.Poolers) == 0 {
		return nil, nil
	}
	group, err := poolerGroup(env)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	return group.Check(ctx)
}

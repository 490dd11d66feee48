package steps

import (
	"context"
	"fmt"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/pass"
)

// finalPass is the exact pass and the reload of at-freeze tables as one Pass of the freeze.
type finalPass struct {
	f    *flipper
	open *pass.Open
}

func (f *flipper) prepare(ctx context.Context) (_ freeze.Pass, err error) {
	if err := f.bothGated(ctx); err != nil {
		return nil, err
	}
	if err := f.whole(ctx); err != nil {
		return nil, err
	}
	if err := f.backStill(ctx); err != nil {
		return nil, err
	}
	if err := f.reload.prepare(ctx); err != nil {
		return nil, err
	}
	p := &finalPass{f: f}
	defer func() {
		if err != nil { // the tables' locks would stay until the next attempt
			p.Close(context.WithoutCancel(ctx))
		}
	}()
	if p.open, err = f.passer.Begin(ctx, pass.Options{}); err != nil {
		return nil, err
	}
	f.low = p.open.Low() // before the final pass: what it takes is counted once more
	return p, f.mayHold(ctx)
}

func (p *finalPass) Run(ctx context.Context) (freeze.PassResult, error) {
	p.f.env.watch.hold(true)
	res, err := p.open.Run(ctx, pass.Options{Prove: proveRows})
	if err != nil {
		return freeze.PassResult{}, err
	}
	p.f.final = res
	start := time.Now()
	rows, err := p.f.reload.run(ctx)
	if rate, took := p.f.reload.rate(time.Since(start)), time.Since(start); err == nil && rate > 0 {
		p.f.marked(engine.Event{Mark: markReload, Bytes: p.f.reload.bytes, Rate: rate, Elapsed: took, Message: fmt.Sprintf("reloaded %s in %s", engine.Plural(len(p.f.reload.tables), "table"), took.Round(time.Millisecond))})
	}
	return freeze.PassResult{ID: res.PassID, Rows: res.Rows + res.Deleted + rows, Position: res.Snapshot, At: res.SnapshotAt}, err
}

func (p *finalPass) Close(ctx context.Context) {
	p.f.env.watch.hold(false)
	if p.open != nil {
		p.open.Close(ctx)
	}
	p.f.reload.abandon(ctx)
}

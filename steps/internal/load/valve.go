package load

import (
	"context"
	"sync"
	"time"
)

const pollControl = time.Second

// valve applies the controls: how many workers run.
type valve struct {
	control func() Control

	mu    sync.Mutex
	now   Control
	asked time.Time
}

func newValve(control func() Control) *valve { return &valve{control: control} }

func (v *valve) get() Control {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ask()
}

func (v *valve) ask() Control {
	if time.Since(v.asked) >= pollControl {
		v.now, v.asked = v.control(), time.Now()
	}
	return v.now
}

// admit waits until worker n may take a chunk.
func (v *valve) admit(ctx context.Context, n int) error {
	for {
		if c := v.get(); !c.Paused && n < max(c.Workers, 1) {
			return ctx.Err()
		}
		if err := sleep(ctx, pollControl/2); err != nil {
			return err
		}
	}
}

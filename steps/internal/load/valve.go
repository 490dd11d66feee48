package load

import (
	"context"
	"sync"
	"time"
)

const pollControl = time.Second

// valve applies the controls: how many workers run, and how fast bytes go.
type valve struct {
	control func() Control

	mu    sync.Mutex
	now   Control
	asked time.Time
	free  time.Time // when the next byte may go
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

// take waits until n bytes may go.
func (v *valve) take(ctx context.Context, n int) error {
	v.mu.Lock()
	rate := v.ask().BytesPerSecond
	var wait time.Duration
	if now := time.Now(); rate > 0 {
		if v.free.Before(now) {
			v.free = now
		}
		wait = v.free.Sub(now)
		v.free = v.free.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	}
	v.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	return sleep(ctx, min(wait, 5*time.Second))
}

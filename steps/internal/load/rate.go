package load

import (
	"context"
	"sync"
	"time"
)

// rateLook is how often what waits for its turn looks whether the rate was changed.
const rateLook = 250 * time.Millisecond

// Rate counts bytes and keeps them at a speed that may be changed at any time. One serves
// everything that reads from a side at the same time.
type Rate struct {
	mu        sync.Mutex
	perSecond float64   // 0 is no limit
	free      time.Time // when the next byte may go
	changed   int       // how often perSecond was
	bytes     int64     // since began
	began     time.Time
}

// NewRate lets bytesPerSecond go; 0 is no limit.
func NewRate(bytesPerSecond float64) *Rate {
	return &Rate{perSecond: bytesPerSecond, began: time.Now()}
}

// Set changes the rate; who waits already goes.
func (r *Rate) Set(bytesPerSecond float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.perSecond == bytesPerSecond {
		return
	}
	r.perSecond, r.free = bytesPerSecond, time.Time{}
	r.changed++
}

// Take waits until n bytes may begin to go. It is a pg.Meter.
func (r *Rate) Take(ctx context.Context, n int) error {
	from, _, changed := r.reserve(int64(n))
	return r.wait(ctx, from, changed)
}

// Spent is for what cannot be slowed down while it goes, as a pass with table locks: it waits until
// n bytes would have gone.
func (r *Rate) Spent(ctx context.Context, n int64) error {
	_, until, changed := r.reserve(n)
	return r.wait(ctx, until, changed)
}

func (r *Rate) reserve(n int64) (from, until time.Time, changed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes += n
	now := time.Now()
	if r.perSecond <= 0 {
		return now, now, r.changed
	}
	if r.free.Before(now) {
		r.free = now
	}
	from = r.free
	r.free = r.free.Add(time.Duration(float64(n) / r.perSecond * float64(time.Second)))
	return from, r.free, r.changed
}

func (r *Rate) wait(ctx context.Context, until time.Time, changed int) error {
	for {
		left := time.Until(until)
		r.mu.Lock()
		now := r.changed
		r.mu.Unlock()
		if left <= 0 || now != changed {
			return ctx.Err()
		}
		if err := sleep(ctx, min(left, rateLook)); err != nil {
			return err
		}
	}
}

// Average gives bytes per second since it was last at or below max. Over it the time goes on, so
// that whoever stops then comes down to max again.
func (r *Rate) Average(max float64) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	seconds := time.Since(r.began).Seconds()
	if seconds <= 0 {
		return 0
	}
	average := float64(r.bytes) / seconds
	if average <= max {
		r.bytes, r.began = 0, time.Now()
	}
	return average
}

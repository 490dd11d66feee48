package view

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// What is shown goes through one goroutine: an output that nobody reads (Ctrl-S, a full pipe) must hold up no
// step, above all none that the application's writers wait for.
const (
	laneLength  = 4096                   // of what waits; beyond it events are counted and left out
	lanePatient = 100 * time.Millisecond // a caller waits so long for its line, and no later one until all is out
	laneEnds    = 5 * time.Second        // Close waits so long without any line going out
	laneEndsAt  = 30 * time.Second       // and so long at all
)

// errUnread is what Close gives when it could not wait any longer.
var errUnread = errors.New("nobody reads it")

// lane is what waits to be shown, in order.
type lane struct {
	patience time.Duration
	ends     time.Duration
	wake     chan struct{}

	mu    sync.Mutex
	queue []piece
	busy  bool // one is being shown
	late  bool // a caller has waited in vain
	left  int  // events for which there was no room since the last one that got in
	shown int  // counts
	over  bool // nothing is taken any more
}

type piece struct {
	show func()
	done chan struct{}
}

func newLane(patience time.Duration) *lane {
	if patience == 0 {
		patience = lanePatient
	}
	return &lane{patience: patience, ends: laneEnds, wake: make(chan struct{}, 1)}
}

// put queues a piece. Where there is no room it is counted, unless it must be shown.
func (l *lane) put(show func(), must bool, missing func(n int)) (done <-chan struct{}, wait bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return nil, false
	}
	if len(l.queue) >= laneLength && !must {
		l.left++
		return nil, false
	}
	if n := l.left; n > 0 {
		l.left = 0
		l.queue = append(l.queue, piece{func() { missing(n) }, make(chan struct{})})
	}
	p := piece{show, make(chan struct{})}
	l.queue = append(l.queue, p)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return p.done, !l.late
}

// drain shows what waits.
func (l *lane) drain() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.late = false
			l.mu.Unlock()
			return
		}
		p := l.queue[0]
		l.queue, l.busy = l.queue[1:], true
		l.mu.Unlock()
		p.show()
		close(p.done)
		l.mu.Lock()
		l.busy = false
		l.shown++
		l.mu.Unlock()
	}
}

// do shows something and, while the output is read, returns when it is out.
func (v *view) do(show func(), must bool) {
	done, wait := v.lane.put(show, must, v.missing)
	if !wait {
		return
	}
	timer := time.NewTimer(v.lane.patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		v.lane.mu.Lock()
		v.lane.late = v.lane.busy || len(v.lane.queue) > 0
		v.lane.mu.Unlock()
	}
}

// missing says what was left out, where it would have stood.
func (v *view) missing(n int) {
	if !v.ended {
		now := v.o.Now()
		v.said = later(v.said, now)
		v.r.event(engine.Event{Kind: engine.EventNote, At: v.said, Level: "warn", Message: engine.Plural(n, "event") + " left out here: the output was not read"}, now)
	}
}

// end waits until all is out, as long as lines go out, and takes nothing more.
func (l *lane) end() error {
	began, moved, before := time.Now(), time.Now(), -1
	for {
		l.mu.Lock()
		waits, shown := len(l.queue), l.shown
		if l.busy {
			waits++
		}
		l.over = waits == 0 || time.Since(moved) >= l.ends || time.Since(began) >= laneEndsAt
		over := l.over
		l.mu.Unlock()
		switch {
		case over && waits == 0:
			return nil
		case over:
			return fmt.Errorf("%w: %s did not get out", errUnread, engine.Plural(waits, "piece"))
		case shown != before:
			before, moved = shown, time.Now()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

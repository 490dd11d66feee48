package steps

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
)

// clock is a time of day that a test sets.
type clock struct {
	mu   sync.Mutex
	time time.Time
	next []time.Time // one for each coming look, before time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.next) > 0 {
		t := c.next[0]
		c.next = c.next[1:]
		return t
	}
	return c.time
}

func (c *clock) set(to time.Time, looks ...time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time, c.next = to, looks
}

// TestFreezeHeedsPauseAndWindow: while the window is closed or somebody says pause nobody is held, and
// what is said while it waits for the other, makes its passes or is about to hold is heard. An attempt
// that is put off does not count.
func TestFreezeHeedsPauseAndWindow(t *testing.T) {
	r := newRig(t, "cutover {\n max_write_block = \"60s\"\n attempts = 1\n window = \"02:00-05:00\"\n}")
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env), newCopy(r.env), newCatchUp(r.env), newConstraints(r.env), newReverse(r.env), newArm(r.env)))
	day := time.Date(2026, 3, 3, 0, 0, 0, 0, time.UTC)
	at := func(hour int) time.Time { return day.Add(time.Duration(hour) * time.Hour) }
	c := &clock{time: at(1)}
	pause := func(yes bool) {
		_, err := r.env.Journal.SetControl(t.Context(), "anna", func(c *journal.Control) { c.Paused = yes })
		if err != nil {
			t.Error(err)
		}
	}
	tries, holds := 0, 0
	paused, window := make(chan bool, 9), make(chan bool, 9)
	r.onEvent = func(e engine.Event) {
		switch {
		case e.Kind == engine.EventWaiting && strings.HasPrefix(e.Reason, "paused by anna"):
			paused <- true
		case e.Kind == engine.EventWaiting && strings.HasPrefix(e.Reason, "window "):
			window <- true
		case e.Mark == "hold":
			holds++
		case strings.HasPrefix(e.Message, "freeze attempt 1 of 1"): // its passes are over
			switch tries++; tries {
			case 1:
				pause(true)
			case 2:
				c.set(at(5).Add(-30 * time.Second)) // after the passes the window is open for less than max_write_block
			case 3:
				c.set(at(24+6), at(24+3)) // so did the poolers, after one more look
			}
		}
	}
	step := newFreeze(r.env, nil).(*freezeStep)
	step.now = c.now
	done := make(chan error, 1)
	go func() { done <- r.walk(t.Context(), step) }()
	heard := func(what string, said chan bool) {
		t.Helper()
		select {
		case <-said:
		case err := <-done:
			t.Fatalf("%s: the freeze ended after %d tries: %v", what, tries, err)
		case <-time.After(time.Minute):
			t.Fatalf("%s is not heard", what)
		}
		if holds > 0 {
			t.Errorf("writers were held before: %s", what)
		}
	}
	heard("the window is closed", window)
	pause(true)
	heard("a pause while it waits for the window", paused)
	c.set(at(3))
	pause(false)
	heard("a pause during the passes", paused)
	pause(false)
	heard("a window that is open for less than writes may be held", window)
	c.set(at(24 + 3))
	heard("the end of the window just before the hold", window)
	r.exec(r.source, "UPDATE shop.customer SET name = 'still here' WHERE id = 1")
	c.set(at(48 + 3))
	if err := <-done; err != nil || tries != 4 || holds != 1 {
		t.Errorf("after %d tries and %d holds it ended with %v", tries, holds, err)
	}
	r.same("shop.customer")
}

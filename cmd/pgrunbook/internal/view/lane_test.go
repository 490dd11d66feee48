package view

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// unread is an output that nobody reads until the gate is opened.
type unread struct {
	gate chan struct{}
	mu   sync.Mutex
	text bytes.Buffer
}

func (u *unread) Write(p []byte) (int, error) {
	<-u.gate
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.text.Write(p)
}

func (u *unread) String() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.text.String()
}

// An output that nobody reads holds up nobody: a step goes on, and the end does not wait for ever. What had to
// be left out meanwhile is counted where it is missing.
func TestNobodyReads(t *testing.T) {
	for _, mode := range []Mode{Plain, TTY, JSON, Quiet} {
		t.Run(string(mode), func(t *testing.T) {
			out := &unread{gate: make(chan struct{})}
			v := New(Options{Mode: mode, Stdout: out, Stderr: out, Width: 80, Getenv: func(string) string { return "" }}).(*view)
			const more = 7
			for i := range laneLength + more {
				v.Emit(engine.Event{Kind: engine.EventRetry, Step: "freeze", Message: fmt.Sprintf("line %d.", i)})
			}
			slog.New(v.Handler()).Warn("a diagnostic for which there is no room")
			resume := v.Suspend()
			close(out.gate)
			resume()
			for all := false; !all; time.Sleep(time.Millisecond) {
				v.lane.mu.Lock()
				all = len(v.lane.queue) == 0
				v.lane.mu.Unlock()
			}
			v.Emit(engine.Event{Kind: engine.EventRetry, Step: "freeze", Message: "read again"})
			v.Summary(Summary{Message: "the end"})
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			text := out.String()
			first, gap, again := strings.Index(text, "line 0."), strings.Index(text, "events left out here"), strings.Index(text, "read again")
			if first < 0 || gap < first || again < gap || strings.Contains(text, fmt.Sprintf("line %d.", laneLength+more-1)) {
				t.Errorf("first line at %d, what is missing at %d, what came after it at %d of %d bytes", first, gap, again, len(text))
			}
		})
	}
}

func TestTheEndDoesNotWaitForWhoDoesNotRead(t *testing.T) {
	out := &unread{gate: make(chan struct{})}
	v := New(Options{Mode: JSON, Stdout: out, Stderr: out}).(*view)
	v.lane.ends = 10 * time.Millisecond
	v.Emit(engine.Event{Kind: engine.EventNote, Message: "a note"})
	v.Summary(Summary{Message: "the end"})
	if err := v.Close(); !errors.Is(err, errUnread) {
		t.Errorf("got %v", err)
	}
	v.Emit(engine.Event{Kind: engine.EventNote, Message: "too late"})
	close(out.gate)
	<-v.done // its goroutine ends when it can
	if text := out.String(); !strings.Contains(text, "the end") || strings.Contains(text, "too late") {
		t.Errorf("once it was read:\n%s", text)
	}
}

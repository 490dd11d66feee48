package view

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
)

// Mode says how events are shown.
type Mode string

// The modes. Auto is TTY where stderr is a terminal that can move its cursor, else Plain.
const (
	Auto  Mode = "auto"
	TTY   Mode = "tty"
	Plain Mode = "plain"
	JSON  Mode = "json"
	Quiet Mode = "quiet" // warnings, errors and the closing lines
)

// Options say where and how to show. The zero value is Auto on the process's own outputs.
type Options struct {
	Mode       Mode
	Stdout     io.Writer                                    // results and the JSON stream. Defaults to os.Stdout
	Stderr     io.Writer                                    // text for people. Defaults to os.Stderr
	Color      string                                       // auto, always, never. Defaults to auto: NO_COLOR, CLICOLOR_FORCE, TERM and whether Stderr is a terminal
	Width      int                                          // columns. Defaults to the terminal's, else 100
	Verbose    bool                                         // also debug lines, and every skipped step
	FPS        float64                                      // redraws a second. Defaults to 8 on a terminal, to 0.1 elsewhere; lines never come faster than one a second
	Version    string                                       // of pgrunbook, in the first JSON line
	Now        func() time.Time                             // Defaults to time.Now
	Getenv     func(string) string                          // Defaults to os.Getenv
	NewHandler func(w io.Writer, o LogOptions) slog.Handler // Defaults to LogHandler
	Redact     func(string) string                          // applied to every text. Defaults to none

	terminal *bool            // for tests: whether Stderr is one
	ticks    <-chan time.Time // for tests: in place of a ticker
	patience time.Duration    // for tests: in place of lanePatient
}

// View shows a run while it happens. Its methods may be called from many goroutines.
type View interface {
	engine.Sink
	// Handler is for diagnostics: its lines go where the view's own go, above a live block.
	Handler() slog.Handler
	// Suspend takes the live block away while a person is asked something; lines wait. The
	// function that it returns brings all back; it may be called twice.
	Suspend() (resume func())
	// Summary shows how it ended. Events after it are not shown.
	Summary(s Summary)
	// Close waits until all is out, for as long as somebody reads it, stops drawing and gives the first error of
	// writing.
	Close() error
}

// Summary is how a command ended.
type Summary struct {
	ExitCode int
	Err      error // what the exit code comes from
	Outcomes []engine.Outcome
	Elapsed  time.Duration
	Message  string // one line: "the target takes writes"
	Next     string // the command to type next
}

// renderer draws in one mode. Its methods are called one at a time, by one goroutine.
type renderer interface {
	event(e engine.Event, now time.Time)
	tick(now time.Time)
	summary(s Summary, now time.Time)
	write(p []byte) // lines of a log handler
}

type view struct {
	o       Options
	handler slog.Handler

	lane *lane

	// Of the goroutine that shows.
	r         renderer
	said      time.Time // when the latest event was
	ended     bool
	suspended bool // a person is asked something: no line of progress in between

	quit   chan struct{}
	once   sync.Once
	done   chan struct{}
	out    []*errWriter
	unread error // what Close could not wait for
}

// New makes a view. Close must be called.
func New(o Options) View {
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.NewHandler == nil {
		o.NewHandler = LogHandler
	}
	stderr := o.Stderr
	isTTY := isTerminal(stderr)
	if o.terminal != nil {
		isTTY = *o.terminal
	}
	if o.Mode == "" || o.Mode == Auto {
		o.Mode = Plain
		if isTTY && o.Getenv("TERM") != "dumb" && o.Getenv("TERM") != "" {
			o.Mode = TTY
		}
	}
	color := UseColor(o.Color, isTTY, o.Getenv)
	stdoutErr, stderrErr := &errWriter{w: o.Stdout}, &errWriter{w: stderr}
	o.Stdout, o.Stderr = stdoutErr, stderrErr
	v := &view{o: o, lane: newLane(o.patience), quit: make(chan struct{}), done: make(chan struct{}), out: []*errWriter{stdoutErr, stderrErr}}
	lo := LogOptions{Color: color, Verbose: o.Verbose, Quiet: o.Mode == Quiet}
	width := func() int { return widthOf(o.Width, stderr) }
	switch o.Mode {
	case JSON:
		v.r = newJSON(o)
	case TTY:
		v.r = newTTY(o, lo, width)
	default:
		v.r = newPlain(o, lo)
	}
	v.handler = o.NewHandler(writerFunc(v.log), lo)
	go v.loop()
	if j, ok := v.r.(*jsonView); ok {
		v.do(j.begin, true)
	}
	return v
}

// loop shows and redraws until Close. A panic in it would end the process without a summary; there is
// nothing in it but drawing from memory.
func (v *view) loop() {
	defer close(v.done)
	ticks := v.o.ticks
	if ticks == nil {
		t := time.NewTicker(v.interval())
		defer t.Stop()
		ticks = t.C
	}
	for {
		select {
		case <-v.quit:
			return
		case <-v.lane.wake:
			v.lane.drain()
		case <-ticks:
			v.tick()
		}
	}
}

// tick lets the renderer look at the clock.
func (v *view) tick() {
	if !v.ended && !v.suspended {
		now := v.o.Now()
		v.said = later(v.said, now)
		v.r.tick(now)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (v *view) interval() time.Duration {
	if v.o.Mode != TTY {
		return time.Second
	}
	return perSecond(v.o.FPS, 8)
}

// perSecond turns a frequency into an interval.
func perSecond(fps, otherwise float64) time.Duration {
	if fps <= 0 {
		fps = otherwise
	}
	return time.Duration(float64(time.Second) / min(fps, 60))
}

// Emit shows an event. It waits for nobody who does not read. One that another came before on its way here is
// said to be as late as that: the times of the lines never go back.
func (v *view) Emit(e engine.Event) {
	now := v.o.Now()
	if e.At.IsZero() {
		e.At = now
	}
	e = v.clean(e)
	v.do(func() {
		if e.At.Before(v.said) {
			e.At = v.said
		}
		if v.said = e.At; !v.ended {
			v.r.event(e, now)
		}
	}, false)
}

// clean redacts every text of an event.
func (v *view) clean(e engine.Event) engine.Event {
	if v.o.Redact == nil {
		return e
	}
	for _, p := range []*string{&e.Message, &e.Object, &e.Reason, &e.Hint} {
		*p = v.o.Redact(*p)
	}
	if e.Blockers != nil {
		b := make([]string, len(e.Blockers))
		for i := range b {
			b[i] = v.o.Redact(e.Blockers[i])
		}
		e.Blockers = b
	}
	if e.Finding != nil {
		f := *e.Finding
		f.Text, f.Fix, f.Object = v.o.Redact(f.Text), v.o.Redact(f.Fix), v.o.Redact(f.Object)
		e.Finding = &f
	}
	return e
}

// Suspend stops drawing until the function that it returns is called.
func (v *view) Suspend() func() {
	v.suspend(true)
	return sync.OnceFunc(func() { v.suspend(false) })
}

func (v *view) suspend(on bool) {
	v.do(func() {
		if t, ok := v.r.(*tty); ok {
			t.suspend(on, v.o.Now())
		}
		v.suspended = on
	}, true)
}

// Handler gives the handler for diagnostics.
func (v *view) Handler() slog.Handler { return v.handler }

func (v *view) log(p []byte) {
	text := string(p) // the handler uses p again
	if v.o.Redact != nil {
		text = v.o.Redact(text)
	}
	v.do(func() { v.r.write([]byte(text)) }, false)
}

// Summary shows how it ended, once.
func (v *view) Summary(s Summary) {
	if s.Err != nil {
		s.Err = shown{text: engine.Text(s.Err), err: s.Err}
	}
	if v.o.Redact != nil {
		s.Message, s.Next = v.o.Redact(s.Message), v.o.Redact(s.Next)
		if s.Err != nil {
			s.Err = shown{text: v.o.Redact(s.Err.Error()), err: s.Err}
		}
	}
	v.do(func() {
		if !v.ended {
			v.ended = true
			v.r.summary(s, v.o.Now())
		}
	}, true)
}

// shown is an error in the words that it is shown in.
type shown struct {
	text string
	err  error
}

func (s shown) Error() string { return s.text }
func (s shown) Unwrap() error { return s.err }

// Close stops drawing. Without a Summary before it, it shows one with exit code 1 in JSON.
func (v *view) Close() error {
	v.once.Do(func() {
		if v.o.Mode == JSON || v.o.Mode == TTY {
			v.Summary(Summary{ExitCode: 1, Message: "ended without a result"})
		}
		v.unread = v.lane.end()
		close(v.quit)
		if v.unread == nil {
			<-v.done
		}
	})
	if v.unread != nil { // its writer is at it still
		return v.unread
	}
	for _, w := range v.out {
		if err := w.first(); err != nil {
			return err
		}
	}
	return nil
}

// errWriter remembers the first error and goes on.
type errWriter struct {
	w   io.Writer
	mu  sync.Mutex
	err error
}

func (w *errWriter) Write(p []byte) (int, error) {
	_, err := w.w.Write(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return len(p), nil
}

func (w *errWriter) first() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// funcWriter is used by pointer: charmbracelet/log keeps writers as keys of a map.
type funcWriter struct{ f func(p []byte) }

func writerFunc(f func(p []byte)) io.Writer { return &funcWriter{f} }

func (w *funcWriter) Write(p []byte) (int, error) { w.f(p); return len(p), nil }

// ParseMode reads a mode's name as typed.
func ParseMode(s string) (Mode, bool) {
	m := Mode(strings.ToLower(s))
	switch m {
	case Auto, TTY, Plain, JSON, Quiet:
		return m, true
	}
	return "", false
}

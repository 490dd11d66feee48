package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/pgrunbook/pgrunbook/cmd/pgrunbook/internal/view"
)

// stopWithin is how long a command may take to reach a safe point after the first signal.
const stopWithin = 5 * time.Second

// lastWords is how long the last line before the end may take.
const lastWords = time.Second

// removeWithin is how long demo may take: it stops its servers and removes what it made.
const removeWithin = 30 * time.Second

func main() { os.Exit(run(os.Args[1:])) }

// run is main without the exit.
func run(argv []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	a := newApp(os.Stdin, os.Stdout, os.Stderr, os.LookupEnv)
	w := signalWatch{cancel: cancel, patience: stopWithin, say: a.notice, exit: os.Exit, first: finishing, second: stopping}
	if len(argv) > 0 && argv[0] == "demo" {
		w.patience, w.first, w.second = removeWithin, removing, leaving
	}
	if a.ofDemo() {
		w.first, w.second = ending, endingNow
	}
	defer w.start()()
	return execute(ctx, a, argv)
}

// What a person reads who presses Ctrl-C.
const (
	finishing = "finishing the piece at hand, then stopping; press Ctrl-C again to stop at once"
	stopping  = "stopping at once: what is done is kept, and the same command goes on from here"
	removing  = "stopping the demo's servers and removing what it made; press Ctrl-C again to leave it there"
	leaving   = "stopping at once: what the demo made is left in the temporary directory"
	ending    = "finishing the piece at hand, then stopping" // a command that the demo runs
	endingNow = "stopping at once"
)

// signalWatch ends the context with the first signal, and the process with the second one or when
// the time is up. It says so.
type signalWatch struct {
	cancel        context.CancelCauseFunc
	patience      time.Duration
	say           func(text string, last bool)
	exit          func(code int)
	first, second string
}

// start listens until stop.
func (w signalWatch) start() (stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go w.watch(signals, done)
	return func() { signal.Stop(signals); close(done) }
}

func (w signalWatch) watch(signals <-chan os.Signal, done <-chan struct{}) {
	var first signalError
	select {
	case s := <-signals:
		first = signalError{s}
		w.cancel(first) // before anything that may wait for whoever reads the output
		w.say(first.Error()+": "+w.first, false)
	case <-done:
		return
	}
	select {
	case <-signals:
		soon(func() { w.say(w.second, true) })
	case <-time.After(w.patience):
		soon(func() { w.say(fmt.Sprintf("not done after %s: %s", w.patience, w.second), true) })
	case <-done:
		return
	}
	w.exit(first.code())
}

// soon gives last words up where nobody reads them.
func soon(say func()) {
	said := make(chan struct{})
	go func() { say(); close(said) }()
	select {
	case <-said:
	case <-time.After(lastWords):
	}
}

// execute runs one command line, shows how it ended, and gives the exit code.
func execute(ctx context.Context, a *app, argv []string) int {
	err := a.run(ctx, argv)
	code := codeOf(ctx, err)
	if err == nil {
		code = a.exit
	}
	if a.view == nil && err != nil && a.json {
		a.show()
	}
	if a.view == nil {
		a.complain(err)
		return code
	}
	s := a.summary
	s.ExitCode, s.Elapsed = code, time.Since(a.began)
	if a.ofDemo() {
		s.Next = "" // by then there are no servers
	}
	var shown *shownError
	if !errors.As(err, &shown) || a.mode() == view.JSON {
		s.Err = err
	}
	a.view.Summary(s)
	if closeErr := a.view.Close(); closeErr != nil && code == exitDone {
		soon(func() { fmt.Fprintln(a.stderr, "writing the output:", closeErr) })
		return exitFailed
	}
	return code
}

// run executes the command; a panic becomes an error with its trace on stderr, masked like
// everything else.
func (a *app) run(ctx context.Context, argv []string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			fmt.Fprintf(a.stderr, "panic: %v\n\n%s\n", r, debug.Stack())
			err = fmt.Errorf("this is a bug in pgrunbook (please report it with the trace above): %v", r)
		}
	}()
	root := newRoot(a)
	argv = normalise(root, argv)
	for _, word := range argv {
		a.json = a.json || word == "--json" || word == "--json=true"
	}
	root.SetArgs(argv)
	return root.ExecuteContext(ctx)
}

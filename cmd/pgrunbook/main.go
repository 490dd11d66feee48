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

// removeWithin is how long demo may take: it stops its servers and removes what it made.
const removeWithin = 30 * time.Second

func main() { os.Exit(run(os.Args[1:])) }

// run is main without the exit.
func run(argv []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	patience := stopWithin
	if len(argv) > 0 && argv[0] == "demo" {
		patience = removeWithin
	}
	stop := watchSignals(cancel, patience)
	defer stop()
	return execute(ctx, newApp(os.Stdin, os.Stdout, os.Stderr, os.LookupEnv), argv)
}

// watchSignals ends the context with the first signal, and the process with the second one or when
// the time is up.
func watchSignals(cancel context.CancelCauseFunc, patience time.Duration) (stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		var first signalError
		select {
		case s := <-signals:
			first = signalError{s}
			cancel(first)
		case <-done:
			return
		}
		select {
		case <-signals:
		case <-time.After(patience):
		case <-done:
			return
		}
		os.Exit(first.code())
	}()
	return func() { signal.Stop(signals); close(done) }
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
	var shown *shownError
	if !errors.As(err, &shown) || a.mode() == view.JSON {
		s.Err = err
	}
	a.view.Summary(s)
	if closeErr := a.view.Close(); closeErr != nil && code == exitDone {
		fmt.Fprintln(a.stderr, "writing the output:", closeErr)
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

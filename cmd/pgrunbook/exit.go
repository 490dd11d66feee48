package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/pgrunbook/pgrunbook/engine"
)

// The exit codes that no engine.Class stands for.
const (
	exitDone    = 0
	exitFailed  = 1
	exitPending = 2 // plan --detailed-exitcode
	exitDiffers = 3 // fmt --check
	exitUsage   = 4
)

// exitCodes is the published table. Codes are added, never changed.
var exitCodes = []struct {
	code int
	text string
}{
	{exitDone, "done, or stopped where asked (--until)"},
	{exitFailed, "failed; the message says what to mend, the same command continues"},
	{exitPending, "plan --detailed-exitcode: work is pending"},
	{exitDiffers, "fmt --check: a file differs"},
	{exitUsage, "runbook or command line wrong; nothing was changed"},
	{10, "the plan is stale"},
	{11, "another runner holds the run"},
	{12, "verify found differences"},
	{13, "preflight failed"},
	{14, "needs an approval that was not given"},
	{15, "a person must look: ownership is unclear, or a side failed over; do not retry"},
	{16, "no cutover this time: writes are on the source, run again"},
	{130, "interrupted (SIGINT)"},
	{143, "terminated (SIGTERM)"},
}

// classCodes maps what an error asks of the user to its exit code.
var classCodes = map[engine.Class]int{
	engine.ClassFailed:      exitFailed,
	engine.ClassRunbook:     exitUsage,
	engine.ClassStale:       10,
	engine.ClassHeld:        11,
	engine.ClassDifferences: 12,
	engine.ClassPreflight:   13,
	engine.ClassApproval:    14,
	engine.ClassAmbiguous:   15,
	engine.ClassNoCutover:   16,
}

func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes (CI may retry 1, 16 and 143):\n")
	for _, c := range exitCodes {
		fmt.Fprintf(&b, "  %3d  %s\n", c.code, c.text)
	}
	return b.String()
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal os.Signal }

func (e signalError) Error() string {
	if e.signal == syscall.SIGTERM {
		return "terminated"
	}
	return "interrupted"
}

func (e signalError) code() int {
	if e.signal == syscall.SIGTERM {
		return 143
	}
	return 130
}

// shownError has been shown to the user already; only its code is left to say.
type shownError struct {
	code int
	err  error
}

func (e *shownError) Error() string { return e.err.Error() }
func (e *shownError) Unwrap() error { return e.err }

// usageError is a mistake on the command line.
func usageError(hint, format string, args ...any) error {
	return engine.Errorf(engine.ClassRunbook, hint, format, args...)
}

// codeOf gives the exit code of a command's error. A signal wins over what it made fail, but not
// over an ownership that is unclear.
func codeOf(ctx context.Context, err error) int {
	if err == nil {
		return exitDone
	}
	class := engine.ClassOf(err)
	if class == engine.ClassAmbiguous {
		return classCodes[class]
	}
	var sig signalError
	if errors.As(err, &sig) || errors.As(context.Cause(ctx), &sig) {
		return sig.code()
	}
	var shown *shownError
	if errors.As(err, &shown) {
		return shown.code
	}
	return classCodes[class]
}

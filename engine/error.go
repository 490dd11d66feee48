package engine

import (
	"errors"
	"fmt"
	"strings"
)

// Class says what an error asks of the user; cmd maps it to an exit code.
type Class int

// The classes. The zero value is an ordinary failure: mend, run the same command again.
const (
	ClassFailed      Class = iota // exit 1
	ClassRunbook                  // exit 4: runbook or command line wrong, no server touched
	ClassStale                    // exit 10: plan stale
	ClassHeld                     // exit 11: another runner holds the run
	ClassDifferences              // exit 12: verify found differences
	ClassPreflight                // exit 13
	ClassApproval                 // exit 14: needs an approval that was not given
	ClassAmbiguous                // exit 15: a person must look; no retry
	ClassNoCutover                // exit 16: writes are on the source, run again
)

// Error is an error that the user can do something about.
type Error struct {
	Class  Class
	Step   StepID // filled in by the walk
	Op     string // what was being done: "arming the gate"
	Object string // to what: "public.orders"
	Hint   string // what to type or change next, a whole sentence
	Err    error
}

// Error gives "op object: cause".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Object != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.Object)
	}
	if e.Err != nil {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf builds an Error of a class whose cause is the formatted text.
func Errorf(class Class, hint, format string, args ...any) *Error {
	return &Error{Class: class, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// ClassOf finds the class of the outermost Error in err's chain that has one other than
// ClassFailed.
func ClassOf(err error) Class {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ClassFailed
		}
		if e.Class != ClassFailed {
			return e.Class
		}
		err = e.Err
	}
	return ClassFailed
}

// HintOf finds the first hint in err's chain.
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

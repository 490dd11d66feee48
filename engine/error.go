package engine

import (
	"errors"
	"fmt"
	"slices"
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

// Text gives an error as it is shown: what two layers of it say one after the other is said once.
func Text(err error) string {
	parts := strings.Split(err.Error(), ": ")
	for n := 1; 2*n <= len(parts); n++ {
		for i := 0; i+2*n <= len(parts); {
			if slices.Equal(parts[i:i+n], parts[i+n:i+2*n]) {
				parts = slices.Delete(parts, i, i+n)
			} else {
				i++
			}
		}
	}
	return strings.Join(parts, ": ")
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

// HintOf finds the first hint in err's chain, else what a server's own error asks for.
func HintOf(err error) string {
	state := sqlState(err)
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			break
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return stateHints[state]
}

// stateHints says what to change where a server refuses for want of something
// (https://www.postgresql.org/docs/current/errcodes-appendix.html).
var stateHints = map[string]string{
	"28000": "Let the role in (pg_hba.conf, pg_ident.conf), and run the same command again: it goes on.",
	"28P01": "Give the role's new password where the runbook takes it from, and run the same command again: it goes on.",
	"42501": "Grant our role what the message names. As long as writes are on the source, pgrunbook plan RUNBOOK names each missing right with its GRANT. Then run the same command again: it goes on.",
	"53100": "Make room on that server, and run the same command again: it goes on.",
	"53200": "Raise max_locks_per_transaction on that server and restart it, and run the same command again: it goes on.",
	"53300": "Lower workers in the copy block or raise max_connections (or the role's CONNECTION LIMIT), and run the same command again: it goes on.",
	"53400": "Raise the limit that the message names for our role (ALTER ROLE ... SET temp_file_limit = -1), and run the same command again: it goes on.",
	"57P01": "Somebody ended our session there, or that server was stopped: run the same command again once it answers.",
}

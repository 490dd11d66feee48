package engine

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// What a layer of an error repeats of the one below it is shown once.
func TestTextSaysNothingTwice(t *testing.T) {
	for want, err := range map[string]error{
		"reading the gate: gone":           fmt.Errorf("reading the gate: %w", errors.New("reading the gate: gone")),
		"loading public.t: line 1: a: bad": &Error{Op: "loading", Object: "public.t", Err: errors.New("loading public.t: line 1: a: bad")},
		"a: b: c":                          errors.New("a: b: a: b: a: b: c"),
		"a: b: a":                          errors.New("a: b: a"),
		"plain":                            errors.New("plain"),
	} {
		if got := Text(err); got != want {
			t.Errorf("%q is shown as %q, want %q", err, got, want)
		}
	}
}

// What a server says of itself gets a hint where nobody has a better one.
func TestHintOfAServersError(t *testing.T) {
	for state, want := range map[string]string{"42501": "pgrunbook plan RUNBOOK names each missing right with its GRANT", "57P01": "run the same command again", "42P01": ""} {
		err := fmt.Errorf("loading: %w", &Error{Op: "copying", Err: &pgconn.PgError{Code: state}})
		if got := HintOf(err); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: hint %q, want %q", state, got, want)
		}
		if got := HintOf(&Error{Hint: "Better.", Err: err}); got != "Better." {
			t.Errorf("%s: hint %q hides the better one", state, got)
		}
	}
}

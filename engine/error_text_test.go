package engine

import (
	"errors"
	"fmt"
	"testing"
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

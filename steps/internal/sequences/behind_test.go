package sequences

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

func TestBehind(t *testing.T) {
	state := func(name string, last int64, called bool, step int64) State {
		return State{Name: scope.Name{Schema: "s", Name: name}, Last: last, Called: called, Increment: step, Min: -1000, Max: 1000}
	}
	from := []State{state("ahead", 10, true, 1), state("used", 10, true, 1), state("down", -10, true, -1), state("same", 11, false, 1)}
	to := []State{state("ahead", 20, true, 1), state("used", 9, true, 1), state("down", -9, true, -1), state("same", 10, true, 1)}
	got := Behind(from, to)
	want := []scope.Name{{Schema: "s", Name: "used"}, {Schema: "s", Name: "down"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

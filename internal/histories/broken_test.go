package histories_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestBrokenHistories: a program that neither waits for writers in flight nor counts what came after its final pass
// loses commits, and each oracle names them by itself. Of the program with every rule, TestHistories shows that the
// same seeds lose nothing.
func TestBrokenHistories(t *testing.T) {
	const rules, tries = "freeze.no_drain,freeze.no_count", 6
	source, _, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	wanted := []*regexp.Regexp{
		regexp.MustCompile(`transaction \d+ \(acknowledged\) is in 0 of its \d+ lists: lost`),
		regexp.MustCompile(`after the flip to side 1: h\.\S+: missing`),
	}
	for seed := uint64(1); seed <= tries && len(wanted) > 0; seed++ {
		h := generate(seed, source, false)
		h.NoVerify, h.Commands = true, []Command{{Args: "apply"}}
		r := playWithout(f("broken%d", seed), h, rules)
		all, left := strings.Join(r.errs, "\n"), []*regexp.Regexp{}
		for _, want := range wanted {
			if said := want.FindString(all); said != "" {
				t.Logf("seed %d: %s", seed, said)
			} else {
				left = append(left, want)
			}
		}
		if wanted = left; seed == tries && len(left) > 0 {
			t.Errorf("in %d histories without %s nobody said %q; of the last: %s\n%s", tries, rules, left, all, spoken(r.said))
		}
	}
}

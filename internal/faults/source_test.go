package faults_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// registered finds the names of all failpoints by reading the source.
func registered(t *testing.T) []string {
	t.Helper()
	where := calls(t, "Hit", true)
	if len(where) < 50 {
		t.Fatalf("found only %d failpoints: is this the source?", len(where))
	}
	return slices.Sorted(maps.Keys(where))
}

// calls gives the names that the source calls a function of package failpoint with, and where.
func calls(t *testing.T, function string, once bool) map[string]string {
	t.Helper()
	hit := regexp.MustCompile(`failpoint\.` + function + `\("([a-z_]+\.[a-z_]+)"\)`)
	where := map[string]string{}
	for _, root := range []string{"../../cmd", "../../engine", "../../steps", "../../internal/pg"} {
		err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range hit.FindAllSubmatch(text, -1) {
				name := string(m[1])
				if once && where[name] != "" {
					t.Errorf("failpoint %s is in %s and in %s", name, where[name], path)
				}
				where[name] = path
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return where
}

// TestEveryMutant: each mutant in the source has a scenario that notices it. The scenarios are in
// the packages themselves, which are built with the tag failpoint for that; TestBrokenPrograms has whole migrations.
func TestEveryMutant(t *testing.T) {
	files, err := filepath.Glob("../../steps/internal/*/mutants_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var scenarios strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		scenarios.Write(text)
	}
	mutants := calls(t, "Mutant", false)
	for name, where := range mutants {
		if !strings.Contains(scenarios.String(), `"`+name+`"`) {
			t.Errorf("%s: no scenario notices mutant %s", where, name)
		}
	}
	for _, p := range plots {
		for _, b := range p.broken {
			for name := range strings.SplitSeq(b.rules, ",") {
				if mutants[name] == "" {
					t.Errorf("%s: the source has no mutant %s", p.name, name)
				}
			}
		}
	}
	if len(mutants) < 20 {
		t.Errorf("there are only %d mutants: is this the source?", len(mutants))
	}
}

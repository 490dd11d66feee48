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

// elsewhere are names that an undisturbed run passes only by chance, or never, with the test that
// dies there.
var elsewhere = map[string]string{
	"dump.concurrently": "TestF01DeathInConcurrentBuild",
	"load.again":        "TestF01DeathsInSecondLoad",
	"load.emptied":      "TestF01DeathsInSecondLoad",
	"alone.locked":      "TestRollbackWithoutTarget",
	"alone.switched":    "TestRollbackWithoutTarget",
	"alone.repointed":   "TestRollbackWithoutTarget",
	"alone.opening":     "TestRollbackWithoutTarget",
	"alone.opened":      "TestRollbackWithoutTarget",
	"alone.resumed":     "TestRollbackWithoutTarget",
	"catch_up.accepted": "TestF01DeathsInSecondLoad",
	"ddl.changed":       "TestF40DeathsInCarriedDDL",
	"ddl.rearmed":       "TestF40DeathsInCarriedDDL",
	"ddl.accepted":      "TestF40DeathsInCarriedDDL",
	"pooler.paused":     "TestR14KilledBehindPoolers",
	"freeze.letgo":      "TestOverBudget",
	"join.prepared":     "TestF41DeathsWhenTablesJoin",
	"join.recorded":     "TestF41DeathsWhenTablesJoin",
	"join.armed":        "TestF41DeathsWhenTablesJoin",
	"leave.dropped":     "TestF41DeathsWhenTablesLeave",
	"leave.forgotten":   "TestF41DeathsWhenTablesLeave",
	"ddl.dropped":       "TestF41DeathsWhenTablesLeave",
}

// TestElsewhere: each test that elsewhere names is there, and its file names the failpoint.
func TestElsewhere(t *testing.T) {
	var files []string
	for _, dir := range []string{".", "../cutover"} {
		list, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(list) == 0 {
			t.Fatalf("no tests in %s: %v", dir, err)
		}
		files = append(files, list...)
	}
	all := registered(t)
	for name, test := range elsewhere {
		if !slices.Contains(all, name) {
			t.Errorf("the source has no failpoint %s any more", name)
		}
		if !slices.ContainsFunc(files, func(file string) bool {
			text, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(text), "func "+test+"(") && regexp.MustCompile(`"([a-z_]+\.[a-z_]+[^"]*[;/])?`+regexp.QuoteMeta(name)+`["@:;]`).Match(text)
		}) {
			t.Errorf("no file has %s and names failpoint %s", test, name)
		}
	}
}

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
// the packages themselves, which are built with the tag failpoint for that.
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
	if len(mutants) < 20 {
		t.Errorf("there are only %d mutants: is this the source?", len(mutants))
	}
}

package examples_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// TestCITwoJobs runs both scripts as two machines would: each in a fresh copy of the example, with
// the word of a person in between.
func TestCITwoJobs(t *testing.T) {
	sourceURL, targetURL := testpg.Pair(t)
	script(t, sourceURL, `CREATE SCHEMA shop; CREATE TABLE shop.article (id bigserial PRIMARY KEY, name text NOT NULL);
		INSERT INTO shop.article (name) SELECT 'article ' || g FROM generate_series(1, 2000) g`)
	w := startWriters(t, sourceURL, "UPDATE shop.article SET name = 'n' || $1::int WHERE id = 1 + $1 % 2000", "INSERT INTO shop.article (name) VALUES ('new ' || $1::int)")

	job := func(name string, code int, env ...string) (*program, string) {
		t.Helper()
		p := newProgram(t, "ci-two-jobs", append(env, "SOURCE_URL="+sourceURL, "TARGET_URL="+targetURL)...)
		for i, e := range p.env {
			if path, ok := strings.CutPrefix(e, "PATH="); ok {
				p.env[i] = "PATH=" + filepath.Dir(p.path) + ":" + path
			}
		}
		out, got := p.start(filepath.Join(p.dir, name))
		if got != code {
			t.Fatalf("%s ended with %d, want %d:\n%s", name, got, code, out)
		}
		return p, out
	}
	job("job-b.sh", 1, "APPROVED_BY=eve") // too early: there is no run
	a, out := job("job-a.sh", 0)
	for _, part := range []string{"pgrunbook approve go --by WHO", "The source takes writes"} {
		if !strings.Contains(out, part) {
			t.Errorf("job A does not say %q:\n%s", part, out)
		}
	}
	if text, err := os.ReadFile(filepath.Join(a.dir, "plan.md")); err != nil || !strings.Contains(string(text), "shop.article") {
		t.Errorf("the plan for the reviewer: %v\n%.300s", err, text)
	}
	job("job-a.sh", 0) // tried again by the pipeline: it finds the run where it stands
	w.more()           // between the jobs
	refused(t, targetURL, "DELETE FROM shop.article")

	_, out = job("job-b.sh", 0, "APPROVED_BY=ada")
	w.stop()
	for _, part := range []string{"go approved by ada", "flip", "write block"} {
		if !strings.Contains(out, part) {
			t.Errorf("job B does not say %q:\n%s", part, out)
		}
	}
	same(t, sourceURL, targetURL)
	w.kept(targetURL)
	refused(t, sourceURL, "DELETE FROM shop.article")
	w.moveTo(targetURL)
	job("job-b.sh", 2) // nobody's name
}

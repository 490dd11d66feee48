package steps

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/runbook"
)

// twoKeys has a table whose rows can be told apart by either of two keys, and one that makes many chunks.
const twoKeys = `
CREATE TABLE public.item (a int NOT NULL UNIQUE, b int NOT NULL UNIQUE, v text);
INSERT INTO public.item SELECT g, -g, 'v' FROM generate_series(1, 200) g;
CREATE TABLE public.large (id int PRIMARY KEY, pad text);
ALTER TABLE public.large ALTER pad SET STORAGE PLAIN;
INSERT INTO public.large SELECT g, repeat('x', 1000) FROM generate_series(1, 2000) g;
ANALYZE`

const keyedRunbook = `table "public.item" { key = ["a"] }
table "public.large" { chunk = "64KiB" }
copy { workers = 1 }
`

// amended is a run whose runbook changes between two applies.
type amended struct {
	*testing.T
	env            *Env
	source, target string
}

func newAmended(t *testing.T, more string) *amended {
	t.Helper()
	env, source, target := planned(t, twoKeys, keyedRunbook+more)
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil || p.Blocking() {
		t.Fatalf("planning: %v %+v", err, p.Findings)
	}
	env.Plan = p
	return &amended{t, env, source, target}
}

// changed is the run's runbook with one text in another's place, as the next command reads it.
func (a *amended) changed(old, now string) *Env {
	a.Helper()
	text := string(a.env.Runbook.Text)
	if strings.Count(text, old) != 1 {
		a.Fatalf("%q is not in the runbook once", old)
	}
	rb := parsed(a.T, a.TempDir(), strings.Replace(text, old, now, 1), map[string]string{"SOURCE_URL": a.source, "TARGET_URL": a.target})
	env, err := NewEnv(rb, a.env.Log, a.env.Sink)
	if err != nil {
		a.Fatal(err)
	}
	return env
}

// apply is one command: it goes on with a runbook, which may be another one, up to a step.
func (a *amended) apply(ctx context.Context, env *Env, until engine.StepID) error {
	run, err := LookForRun(a.Context(), env.Target)
	if err != nil {
		return err
	}
	amend := run != nil && !run.SameRunbook(env)
	switch {
	case amend:
		if env.Plan, err = AmendRun(a.Context(), env, "test"); err != nil {
			return err
		}
	case run != nil:
		env.Plan = run.Plan
	}
	env.Scope = nil
	if err := OpenRun(a.Context(), env, OpenOptions{ToolVersion: "test", Amend: amend}); err != nil {
		return err
	}
	defer env.Journal.Close(context.Background())
	_, err = Walk(ctx, env, WalkOptions{Until: until, Show: engine.SinkFunc(func(engine.Event) {})})
	return err
}

// goOn applies the runbook with one text in another's place, and keeps it.
func (a *amended) goOn(old, now string, until engine.StepID) {
	a.Helper()
	a.env = a.changed(old, now)
	a.must(a.apply(a.Context(), a.env, until))
}

func (a *amended) must(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

// chunks asks for the large table's: the only one that has more than one.
func (a *amended) chunks(what string) string {
	a.Helper()
	return query(a.T, a.target, "SELECT ("+what+")::text FROM pgrunbook.item WHERE tbl = (SELECT tbl FROM pgrunbook.item GROUP BY tbl ORDER BY count(*) DESC LIMIT 1)")
}

func (a *amended) same() {
	a.Helper()
	diffs, err := testpg.Diff(a.Context(), a.source, a.target, []string{"public.item", "public.large"})
	a.must(err)
	for _, d := range diffs {
		a.Error(d)
	}
}

// F07: by another key the deltas that are there would be read wrongly. A runbook that names one is refused between any
// two applies, and the run goes on with the accepted one.
func TestF07KeyChangesBetweenTwoApplies(t *testing.T) {
	a := newAmended(t, "")
	refused := func(after engine.StepID) {
		t.Helper()
		const key = `table "public.item" { key = ["a"] }`
		for _, now := range []string{`table "public.item" { key = ["b"] }`, `table "public.item" { key = ["a", "b"] }`, ``, `table "public.item" { identity = "full_row" }`} {
			_, err := AmendRun(t.Context(), a.changed(key, now), "test")
			hint := engine.HintOf(err)
			if engine.ClassOf(err) != engine.ClassStale || !strings.HasSuffix(err.Error(), ": table blocks (their chunk may change)") || !strings.Contains(hint, "Go back to the accepted runbook") || !strings.Contains(hint, "abort") {
				t.Errorf("after %s, with %q: %v, hint %q", after, now, err, hint)
			}
		}
	}
	for _, c := range []struct {
		until engine.StepID
		then  string
	}{
		{"schema", "UPDATE public.item SET v = 'before' WHERE a < 50"},
		{"capture", "UPDATE public.item SET b = b - 1000, v = 'w' WHERE a < 20; UPDATE public.item SET a = a + 1000 WHERE b BETWEEN -30 AND -25; DELETE FROM public.item WHERE a = 100"},
		{"copy", "UPDATE public.item SET a = a + 5000 WHERE a < 10; DELETE FROM public.item WHERE b = -150"},
		{"catch_up", "UPDATE public.item SET b = b - 5000 WHERE a > 190"},
	} {
		a.must(a.apply(t.Context(), a.env, c.until))
		refused(c.until)
		query(t, a.source, c.then)
	}
	a.must(a.apply(t.Context(), a.env, "catch_up"))
	a.same()
}

// F07: before its load a table is cut by the size that the runbook has by then, and the accepted plan says the same.
func TestF07ChunkChangesBeforeTheLoad(t *testing.T) {
	const patterns = "table \"public.i*\" { chunk = \"2MiB\" }\ntable \"public.*m\" { chunk = \"2MiB\" }\n"
	a := newAmended(t, patterns)
	planned := func(table, want string) {
		t.Helper()
		run, err := LookForRun(t.Context(), a.env.Target)
		a.must(err)
		c := tablesOf(run.Plan)[table]
		if got := fmt.Sprintf("%d of %s", c.Chunks, runbook.FormatSize(float64(c.Chunk))); got != want {
			t.Errorf("the plan has of %s: %s, want %s", table, got, want)
		}
	}
	a.must(a.apply(t.Context(), a.env, "capture"))
	planned("public.large", "36 of 64.0KiB")
	planned("public.item", "1 of 2.0MiB")
	a.goOn(patterns, strings.ReplaceAll(patterns, "2MiB", "4MiB"), "capture")
	planned("public.item", "1 of 4.0MiB")
	if _, err := AmendRun(t.Context(), a.changed(`"public.i*" { chunk = "4MiB" }`, `"public.i*" { chunk = "8MiB" }`), "test"); engine.ClassOf(err) != engine.ClassRunbook {
		t.Errorf("sizes that disagree: %v", err)
	}
	a.goOn(`"64KiB"`, `"1MiB"`, "catch_up")
	planned("public.large", "3 of 1.0MiB")
	if n := a.chunks("count(*)"); n != "3" {
		t.Errorf("the table was cut into %s chunks", n)
	}
	a.goOn(`"1MiB"`, `"128KiB"`, "catch_up")
	planned("public.large", "3 of 128.0KiB")
	a.same()
}

// F07: in the middle of the load, the chunks that a table was cut into stay, and none is loaded twice or left out.
func TestF07ChunkChangesInTheLoad(t *testing.T) {
	a := newAmended(t, "limit \"copy_rate\" {\n  max  = \"400KiB\"\n  then = \"slow\"\n}\n")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	a.must(a.apply(t.Context(), a.env, "capture"))
	ended := make(chan error, 1)
	go func() { ended <- a.apply(ctx, a.env, "copy") }()
	for a.chunks("count(*) FILTER (WHERE state = 'done') < 2") == "true" {
		select {
		case err := <-ended:
			t.Fatalf("the load ended before some chunks were done: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()
	if err := <-ended; err == nil {
		t.Fatal("the load was done before it was stopped: this proves nothing")
	}
	cut := a.chunks("count(*)")
	if a.chunks("bool_and(state = 'done')") == "true" {
		t.Fatal("no chunk is left: this proves nothing")
	}
	query(t, a.source, "UPDATE public.large SET pad = 'new' WHERE id % 7 = 0; DELETE FROM public.large WHERE id % 11 = 0")
	for _, sizes := range [][2]string{{"64KiB", "8KiB"}, {"8KiB", "100MiB"}} {
		a.goOn(`chunk = "`+sizes[0]+`"`, `chunk = "`+sizes[1]+`"`, "capture")
	}
	a.goOn(`"400KiB"`, `"100MiB"`, "catch_up")
	if n := a.chunks("count(*)"); n != cut {
		t.Errorf("the table was cut into %s chunks, and %s are there", cut, n)
	}
	a.same()
}

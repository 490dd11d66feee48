package steps

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/load"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Tables of every method: a plain one, a tree whose leaves are more chunks than its bytes, one without a
// key, one for the freeze, one each that others load.
const estimatedSQL = `
CREATE TABLE public.flat (id int PRIMARY KEY, name text, other int);
CREATE UNIQUE INDEX flat_name ON public.flat (name);
CREATE TABLE public.tree (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
CREATE TABLE public.tree_1 PARTITION OF public.tree FOR VALUES FROM (0) TO (4000);
CREATE TABLE public.tree_2 PARTITION OF public.tree FOR VALUES FROM (4000) TO (8000);
CREATE TABLE public.tree_3 PARTITION OF public.tree FOR VALUES FROM (8000) TO (9000);
CREATE TABLE public.tree_4 PARTITION OF public.tree FOR VALUES FROM (9000) TO (9500);
CREATE TABLE public.tree_5 PARTITION OF public.tree DEFAULT;
CREATE TABLE public.bag (word text);
CREATE TABLE public.small (word text);
CREATE TABLE public.dumped (id int PRIMARY KEY, note text);
CREATE TABLE public.foreigner (id int PRIMARY KEY, note text);
INSERT INTO public.flat SELECT g, 'name ' || g, g FROM generate_series(1, 5000) g;
ALTER TABLE public.flat ADD FOREIGN KEY (other) REFERENCES public.flat;
INSERT INTO public.tree SELECT g, repeat('x', 50) FROM generate_series(1, 8999) g;
INSERT INTO public.bag SELECT g::text FROM generate_series(1, 5000) g;
INSERT INTO public.small SELECT g::text FROM generate_series(1, 100) g;
INSERT INTO public.dumped SELECT g, repeat('x', 50) FROM generate_series(1, 5000) g;
INSERT INTO public.foreigner SELECT g, repeat('x', 50) FROM generate_series(1, 5000) g;
ANALYZE`

const estimatedBody = `
copy { chunk = "128KiB" }
table "public.bag" { identity = "full_row" }
table "public.dumped" { method = "pg_dump" }
table "public.foreigner" { method = "external" }
`

// A plan says of every step that takes time how long, and what disk it needs on either side and on the
// machine that runs it; of each table the chunks that the load really makes.
func TestEstimates(t *testing.T) {
	env, _, _ := planned(t, estimatedSQL, estimatedBody)
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil || p.Blocking() {
		t.Fatalf("the plan: %v, %+v", err, p.Findings)
	}
	steps := map[engine.StepID]engine.StepPlan{}
	for _, s := range p.Steps {
		steps[s.ID] = s
		if s.Estimate.Seconds <= 0 && s.ID != catchUpID { // how long that takes, the application decides
			t.Errorf("step %s has no estimate of its time", s.ID)
		}
	}
	table := map[string]scope.Table{}
	for _, tab := range env.Scope.Tables {
		table[tab.Name.Name] = tab
	}
	copying := steps["copy"]
	if e := copying.Estimate; e.RunnerDisk != table["dumped"].Bytes || e.SourceDisk < 5000*deltaLeast || e.TargetDisk < e.Bytes {
		t.Errorf("disk of the copy: %+v", e)
	}
	for _, want := range []string{"TMPDIR", "when every row changes once"} {
		if !strings.Contains(fmt.Sprint(copying.Hazards), want) {
			t.Errorf("no hazard of the copy says %q: %+v", want, copying.Hazards)
		}
	}
	if e := steps["freeze"].Estimate; e.Rows != 100 || e.Bytes != table["small"].Bytes || e.Seconds != p.Predictions.WriteBlock.Seconds() {
		t.Errorf("the freeze: %+v, predicted %s", e, p.Predictions.WriteBlock)
	}
	// One unique index and one foreign key, of a table with itself, read it three times.
	if e := steps["constraints"].Estimate; e.Bytes != 3*table["flat"].Bytes {
		t.Errorf("constraints read %d bytes, of a table of %d", e.Bytes, table["flat"].Bytes)
	}
	chunksAreMade(t, env.Source, table)

	env.Runbook = parsed(t, t.TempDir(), "runbook \"plan\" {}\nsource { url = \"postgresql://a@x/y\" }\ntarget { url = \"postgresql://a@z/y\" }\nlimit \"delta_size\" { max = \"64KiB\" }", nil)
	if bytes, hazard := deltaDisk(env.Runbook, env.Scope.Tables); bytes != 64<<10 || !strings.Contains(hazard.Text, "64KiB") {
		t.Errorf("with a limit of 64 KiB the deltas take %d: %s", bytes, hazard.Text)
	}
}

// deltaLeast is what a captured key takes at least: a row's header, three columns and its index entry.
const deltaLeast = 60

// chunksAreMade compares the plan's numbers with what the load cuts.
func chunksAreMade(t *testing.T, source *pg.Server, table map[string]scope.Table) {
	t.Helper()
	conn, err := source.Connect(t.Context(), pg.Use{Name: "test", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for _, name := range []string{"flat", "tree", "bag"} {
		items, err := load.Chunks(t.Context(), conn, table[name])
		if err != nil {
			t.Fatal(err)
		}
		if table[name].Chunks != int64(len(items)) {
			t.Errorf("%s: the plan says %d chunks, the load makes %d", name, table[name].Chunks, len(items))
		}
	}
	whole := (table["tree"].Bytes + table["tree"].Chunk - 1) / table["tree"].Chunk
	if table["tree"].Chunks <= whole || table["flat"].Chunks < 2 || table["bag"].Chunks != 1 {
		t.Errorf("chunks: tree %d (%d by its bytes), flat %d, bag %d", table["tree"].Chunks, whole, table["flat"].Chunks, table["bag"].Chunks)
	}
	for _, name := range []string{"dumped", "foreigner", "small"} {
		if table[name].Chunks != 0 {
			t.Errorf("%s is not loaded in chunks; the plan says %d", name, table[name].Chunks)
		}
	}
}

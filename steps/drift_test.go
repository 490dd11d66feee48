package steps

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// planned is a runbook on two fresh databases, and its environment.
func planned(t *testing.T, sourceSQL, body string) (env *Env, source, target string) {
	t.Helper()
	source, target = testpg.Pair(t)
	query(t, source, sourceSQL)
	text := `runbook "plan" {}
variable "source_url" {
  type      = string
  sensitive = true
  default   = env("SOURCE_URL")
}
variable "target_url" {
  type      = string
  sensitive = true
  default   = env("TARGET_URL")
}
source { url = var.source_url }
target { url = var.target_url }
` + body
	rb := parsed(t, t.TempDir(), text, map[string]string{"SOURCE_URL": source, "TARGET_URL": target})
	env, err := NewEnv(rb, slog.New(slog.DiscardHandler), engine.SinkFunc(func(engine.Event) {}))
	if err != nil {
		t.Fatal(err)
	}
	return env, source, target
}

const twoTables = `CREATE TABLE public.orders (id int PRIMARY KEY, note text); CREATE TABLE public.item (id int PRIMARY KEY)`

func TestPlanIsReadOnlyAndWithoutSecrets(t *testing.T) {
	env, source, target := planned(t, twoTables, "")
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil {
		t.Fatal(err)
	}
	if p.Blocking() {
		t.Fatalf("findings: %+v", p.Findings)
	}
	var ids []string
	for _, s := range p.Steps {
		ids = append(ids, string(s.ID))
	}
	want := []string{"schema", "capture", "copy", "catch_up", "constraints", "verify", "arm", "freeze"}
	if got := slices.DeleteFunc(ids, func(id string) bool { return !slices.Contains(want, id) }); !slices.Equal(got, want) {
		t.Errorf("steps are %v", got)
	}
	if p.Source.Same(p.Target) || p.Source.SystemIdentifier == "" || len(p.Shapes) != 2 || p.Predictions.WriteBlock <= 0 {
		t.Errorf("source %+v, target %+v, shapes %v, prediction %+v", p.Source, p.Target, p.Shapes, p.Predictions)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{source, target} {
		if strings.Contains(string(text), url) {
			t.Error("the plan holds a connection string")
		}
		if got := query(t, url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgrunbook'"); got != "0" {
			t.Error("planning wrote something")
		}
	}
	again, err := MakePlan(t.Context(), env, "test")
	if err != nil {
		t.Fatal(err)
	}
	if again.Digest() != p.Digest() || Drift(p, again) != nil {
		t.Errorf("two plans of the same thing differ: %v", Drift(p, again))
	}
}

func TestF07DriftNamesWhatChanged(t *testing.T) {
	env, source, _ := planned(t, twoTables, "")
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckDrift(t.Context(), env, p); err != nil {
		t.Errorf("nothing changed: %v", err)
	}
	query(t, source, `ALTER TABLE public.orders ADD COLUMN extra int; ALTER TABLE public.orders DROP COLUMN note;
ALTER TABLE public.item ALTER COLUMN id TYPE bigint; CREATE TABLE public.late (id int PRIMARY KEY)`)
	err = CheckDrift(t.Context(), env, p)
	if engine.ClassOf(err) != engine.ClassStale {
		t.Fatalf("error is %v", err)
	}
	for _, want := range []string{"table public.orders: column extra added", "table public.orders: column note dropped", "table public.item: column id is bigint, was integer", "table public.late is new"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "table public.orders changed") {
		t.Errorf("said twice: %v", err)
	}
}

// A saved plan of tables that are already there was made for empty ones: applied once more, long after
// the cutover, it must not close the gate of the side that is live.
func TestSavedPlanMeetsALiveTarget(t *testing.T) {
	env, _, target := planned(t, twoTables, "schema { mode = \"existing\" }")
	query(t, target, twoTables)
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil || p.Blocking() {
		t.Fatalf("the plan: %v, %+v", err, p.Findings)
	}
	if err := CheckDrift(t.Context(), env, p); err != nil {
		t.Fatalf("nothing changed: %v", err)
	}
	query(t, target, "INSERT INTO public.orders VALUES (1)")
	err = CheckDrift(t.Context(), env, p)
	if engine.ClassOf(err) != engine.ClassPreflight || !strings.Contains(err.Error(), "public.orders") || engine.HintOf(err) == "" {
		t.Errorf("a target that took rows: %v, hint %q", err, engine.HintOf(err))
	}
}

func TestPlanOnOneDatabaseIsBlocked(t *testing.T) {
	env, _, _ := planned(t, twoTables, "")
	env.Target = env.Source
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil {
		t.Fatal(err)
	}
	if !p.Blocking() {
		t.Errorf("findings: %+v", p.Findings)
	}
}

// One plan names everything, whatever else is wrong: a table that cannot be followed, a key that is none, and
// what the preflight finds.
func TestWrongTablesHideNoOtherFinding(t *testing.T) {
	env, source, target := planned(t, twoTables+"; CREATE TABLE public.log (line text)",
		"table \"public.item\" { key = [\"nothing\"] }\ntable \"public.log\" { data = \"live\" }\n")
	query(t, source, "CREATE PUBLICATION everything FOR ALL TABLES")
	query(t, target, "CREATE TABLE public.orders (id int)")
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{scope.CodeKeyless, scope.CodeKey, "PRE150", "PRE160"} {
		if !slices.ContainsFunc(p.Findings, func(f engine.Finding) bool { return f.Code == want && f.Severity == engine.SeverityError }) {
			t.Errorf("%s is not in the plan: %+v", want, p.Findings)
		}
	}
	if len(p.Steps) > 0 {
		t.Errorf("planned with tables that cannot be used: %d steps", len(p.Steps))
	}
}

func TestDifferingTargetBlocksThePlan(t *testing.T) {
	env, source, target := planned(t, twoTables, "schema {\n  mode = \"existing\"\n}\n")
	query(t, target, strings.Replace(twoTables, "note text", "note int", 1)+"; ALTER TABLE public.item DROP CONSTRAINT item_pkey")
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, f := range p.Findings {
		if f.Code == "PRE190" && f.Severity == engine.SeverityError && f.Object == "schema" && f.Fix == likeSource {
			text += f.Text
		}
	}
	if !strings.Contains(text, "column note") || !strings.Contains(text, "item\" has no unique index") {
		t.Errorf("findings: %+v", p.Findings)
	}
	if _, planned := p.Step("freeze"); !planned {
		t.Error("the other steps are not planned")
	}
	// A step before it may make them alike.
	text = strings.Replace(string(env.Runbook.Text), "existing\"\n", "existing\"\n  before {\n    step \"approve\" \"alike\" { message = \"make them alike\" }\n  }\n", 1)
	if env.Runbook = parsed(t, t.TempDir(), text, map[string]string{"SOURCE_URL": source, "TARGET_URL": target}); len(env.Runbook.Hooks["schema"].Before) != 1 {
		t.Fatal("the step is not there")
	}
	p, err = MakePlan(t.Context(), env, "test")
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := p.Step("schema"); p.Blocking() || len(s.Hazards) != 2 {
		t.Errorf("with a step before the hazards are %+v, the findings %+v", s.Hazards, p.Findings)
	}
}

func TestLoadPlanSeesChangedFiles(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "x.sql", "SELECT 1")
	writeFile(t, dir, "notice.txt", "moved")
	rb := parsed(t, dir, sheet("copy {\n before {\n step \"sql\" \"x\" {\n on = \"source\"\n file = \"x.sql\"\n undo = \"${file(\"x.sql\")}; SELECT 3\"\n }\n }\n}\ncutover { closed_message = \"gone: ${file(\"notice.txt\")}\" }"), nil)
	if diags := Check(rb); diags.HasErrors() {
		t.Fatal(printed(t, rb, diags))
	}
	p := &engine.Plan{Runbook: pinRunbook(rb), ToolVersion: "dev"}
	none := func(string) (string, bool) { return "", false }
	if _, err := LoadPlan(p, runbook.Options{Getenv: none}); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	writeFile(t, dir, "x.sql", "SELECT 2")
	if _, err := LoadPlan(p, runbook.Options{Getenv: none}); engine.ClassOf(err) != engine.ClassStale || !strings.Contains(err.Error(), "file x.sql changed") {
		t.Errorf("error is %v", err)
	}
	for _, name := range []string{"x.sql", "notice.txt"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		got, err := LoadPlan(p, runbook.Options{Getenv: none})
		if engine.ClassOf(err) != engine.ClassStale || !strings.Contains(err.Error(), "file "+name+" is gone") {
			t.Errorf("without %s the error is %v", name, err)
		}
		if got.Source.URL != rb.Source.URL || len(got.Hooks["copy"].Before) != 1 {
			t.Errorf("without %s the runbook is not complete", name)
		}
		steps, diags := people(&Env{Runbook: got}, Place{engine.PhaseCopy, Before}, got.Hooks["copy"].Before)
		if diags.HasErrors() {
			t.Fatal(printed(t, got, diags))
		}
		for i, run := range []func() error{
			func() error { return steps[0].Apply(t.Context(), engine.StepPlan{}, nil) },
			func() error { return steps[0].(engine.Undoer).Undo(t.Context(), nil) },
		} {
			if err := run(); engine.ClassOf(err) != engine.ClassStale || !strings.Contains(err.Error(), "x.sql") || !strings.Contains(engine.HintOf(err), "Put the reviewed file back") {
				t.Errorf("without %s its step (%d) ends with: %v", name, i, err)
			}
		}
		if got.Cutover.ClosedMessage != "gone: " && name == "notice.txt" {
			t.Errorf("without its text the message is %q", got.Cutover.ClosedMessage)
		}
	}
}

func TestF07AmendTakesTunablesAndRefusesScope(t *testing.T) {
	env, source, target := planned(t, twoTables, "copy { workers = 1 }\n")
	p, err := MakePlan(t.Context(), env, "dev")
	if err != nil || p.Blocking() {
		t.Fatalf("planning: %v %+v", err, p.Findings)
	}
	env.Plan = p
	if err := OpenRun(t.Context(), env, OpenOptions{ToolVersion: "dev"}); err != nil {
		t.Fatal(err)
	}
	defer env.Journal.Close(t.Context())
	vars := map[string]string{"SOURCE_URL": source, "TARGET_URL": target}
	change := func(old, now string) *Env {
		t.Helper()
		text := strings.Replace(string(env.Runbook.Text), old, now, 1)
		e, err := NewEnv(parsed(t, t.TempDir(), text, vars), env.Log, env.Sink)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	amended, err := AmendRun(t.Context(), change("workers = 1", "workers = 7"), "dev")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p.Shapes, amended.Shapes); d != "" || amended.Digest() == p.Digest() {
		t.Errorf("amended plan: %s", d)
	}
	_, err = AmendRun(t.Context(), change("copy {", "tables { exclude = [\"public.item\"] }\ncopy {"), "dev")
	if engine.ClassOf(err) != engine.ClassStale || !strings.Contains(err.Error(), "tables { exclude }") || !strings.Contains(engine.HintOf(err), "abort") {
		t.Errorf("error is %v, hint %q", err, engine.HintOf(err))
	}
	_, err = AmendRun(t.Context(), change("copy {", "table \"public.item\" { data = \"none\" }\ncopy {"), "dev")
	if engine.ClassOf(err) != engine.ClassStale {
		t.Errorf("error is %v", err)
	}
}

// planner is a step whose Plan does something with its servers.
type planner struct {
	engine.Step
	plan func(ctx context.Context) error
}

func (p planner) ID() engine.StepID   { return "planner" }
func (p planner) Phase() engine.Phase { return engine.PhaseSchema }
func (p planner) Plan(ctx context.Context) (engine.StepPlan, error) {
	return engine.StepPlan{}, p.plan(ctx)
}

// Whatever a step's Plan connects with, it cannot write, and afterwards the servers are as before.
func TestPlanOfAStepCannotWrite(t *testing.T) {
	env, source, target := planned(t, twoTables, "")
	env.Source, env.Target = env.Source.ForRun("run", "mark"), env.Target.ForRun("run", "mark")
	env.Plan = &engine.Plan{}
	const write = "CREATE TABLE public.written (id int)"
	into := func(server **pg.Server, use pg.Use) func(context.Context) error {
		return func(ctx context.Context) error {
			conn, err := (*server).Connect(ctx, use)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(ctx) }()
			_, err = conn.Exec(ctx, write)
			return err
		}
	}
	program := func(ctx context.Context) error {
		vars, err := env.Target.LibpqEnv(ctx, "plan", nil)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "psql", "-X", "-v", "VERBOSITY=sqlstate", "-c", write)
		cmd.Env = vars
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	for name, try := range map[string]func(context.Context) error{
		"source":         into(&env.Source, pg.Use{}),
		"target":         into(&env.Target, pg.Use{}),
		"marked session": into(&env.Target, pg.Use{Marked: true, Replica: true, AsyncCommit: true}),
		"program":        program,
		"both sides": func(ctx context.Context) error {
			sides, err := openSides(ctx, env, "plan")
			if err != nil {
				return err
			}
			defer sides.close(ctx)
			_, err = sides.source.Exec(ctx, "UPDATE public.orders SET note = note")
			return err
		},
	} {
		if _, err := planOf(t.Context(), env, []engine.Step{planner{plan: try}}); err == nil || !strings.Contains(err.Error(), "25006") {
			t.Errorf("%s: planning wrote, or failed otherwise: %v", name, err)
		}
	}
	for _, url := range []string{source, target} {
		if n := query(t, url, "SELECT count(*) FROM pg_class WHERE relname = 'written'"); n != "0" {
			t.Error("planning made a table")
		}
	}
	if err := into(&env.Source, pg.Use{})(t.Context()); err != nil {
		t.Errorf("after planning: %v", err)
	}
}

func TestReadOnlyDefaultIsSaidAndNotCarried(t *testing.T) {
	env, source, _ := planned(t, twoTables, "")
	query(t, source, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = true', current_database());
EXECUTE format('ALTER DATABASE %I SET work_mem = 5120', current_database()); END $$`)
	p, err := MakePlan(t.Context(), env, "test")
	if err != nil {
		t.Fatal(err)
	}
	if env.Scope.ReadOnlyDefault != "true" || !slices.ContainsFunc(p.Findings, func(f engine.Finding) bool { return f.Code == "PRE183" }) {
		t.Errorf("the source's default is %q, findings: %+v", env.Scope.ReadOnlyDefault, p.Findings)
	}
	carried := ""
	for _, a := range p.Steps[0].Actions {
		carried += a.SQL + "\n"
	}
	if !strings.Contains(carried, "work_mem") || strings.Contains(carried, "default_transaction_read_only") {
		t.Errorf("carried to the target: %s", carried)
	}
}

package suites_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// some are the specs of the full form: of each kind one or two.
var some = []string{
	"alter-table-1", "create-trigger", "delete-abort-savept", "detach-partition-concurrently-1", "eval-plan-qual", "fk-contention", "fk-deadlock",
	"fk-partitioned-1", "fk-snapshot", "insert-conflict-do-update", "insert-conflict-do-nothing", "insert-conflict-specconflict", "lock-update-delete", "merge-delete",
	"merge-update", "multiple-row-versions", "partition-key-update-1", "partition-key-update-2", "predicate-hash", "prepared-transactions-cic",
	"receipt-report", "serializable-parallel", "skip-locked", "truncate-conflict", "tuplelock-conflict", "update-conflict-out", "simple-write-skew", "total-cash",
}

// perGroup is how many specs have their tables at the same time.
const perGroup = 40

// isolation is one spec at work.
type isolation struct {
	name, schema string
	spec         spec
	filled       int64  // rows that its setup wrote before a permutation, to captured tables
	wrote        int64  // rows that its steps wrote
	why          string // its setup fails
	differs      bool
	refused      string // by the program, with this reason
}

// TestIsolation runs PostgreSQL's isolation specs against captured tables, in groups: the tables of a
// group are made and join the run, the specs run while the program makes passes, both sides are
// compared, and the tables are dropped and leave the run. Groups with their tables come twice: under
// the same names again.
func TestIsolation(t *testing.T) {
	dir, err := testpg.Suites(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tester, err := testpg.IsolationTester(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "src/test/isolation/specs/*.spec"))
	if err != nil || len(files) < 100 {
		t.Fatalf("%d specs: %v", len(files), err)
	}
	var specs []*isolation
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".spec")
		if !soak() && !slices.Contains(some, name) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		specs = append(specs, &isolation{name: name, spec: parseSpec(string(text))})
	}
	i := &isolations{rig: newRig(t), tester: tester, specs: specs}
	i.run()
}

// isolations are the specs over one migration.
type isolations struct {
	*rig
	tester string
	specs  []*isolation
}

// runs reports whether a spec is still run.
func (s *isolation) runs() bool { return s.why == "" && s.refused == "" }

// catchUp drops the tables of specs that the program refuses.
func (r *isolations) catchUp() {
	r.t.Helper()
	r.follow(func(schema, why string) {
		i := slices.IndexFunc(r.specs, func(s *isolation) bool { return s.schema == schema && s.refused == "" })
		if i < 0 {
			r.t.Fatalf("the program does not follow: %s\n%s", why, r.said)
		}
		r.specs[i].refused = stable(why, schema)
		r.tearDown(r.specs[i])
	})
}

func (r *isolations) run() {
	specs := r.specs
	for group := range slices.Chunk(specs, perGroup) {
		began := time.Now()
		for _, s := range group {
			r.prepare(s)
		}
		r.catchUp()
		passes := r.following()
		for _, s := range group {
			began := time.Now()
			r.play(s)
			r.t.Logf("%s: %s", s.name, time.Since(began).Round(100*time.Millisecond))
			if passes.stuck.Load() {
				passes.end()
				r.catchUp()
				passes = r.following()
			}
		}
		passes.end()
		r.catchUp()
		for _, s := range group {
			if s.runs() {
				s.differs = !r.equal(s.schema)
			}
		}
		for _, s := range group {
			r.tearDown(s)
		}
		r.catchUp()
		r.gone()
		r.t.Logf("%d specs from %s on: %s", len(group), group[0].name, time.Since(began).Round(time.Second))
	}
	again := specs[:min(len(specs), perGroup/2)]
	for _, s := range again { // under the same names
		if s.runs() {
			r.makeTables(s)
		}
	}
	r.catchUp()
	for _, s := range again {
		if s.runs() {
			r.equal(s.schema)
			r.tearDown(s)
		}
	}
	r.catchUp()
	r.gone()
	r.report()
}

func (r *isolations) report() {
	specs := r.specs
	var lines []string
	wrote, refused := 0, 0
	for _, s := range specs {
		line := s.name + ": writes nothing"
		switch {
		case s.why != "":
			line = s.name + ": not run: " + s.why
		case s.refused != "":
			line = s.name + ": refused: " + s.refused
			refused++
		case s.differs:
			line = s.name + ": differs"
		case s.wrote > 0:
			line = s.name + ": equal"
			wrote++
		case s.filled > 0:
			line = s.name + ": equal, written by its setup alone"
			wrote++
		}
		lines = append(lines, line)
	}
	head := fmt.Sprintf("%d of %d isolation specs wrote to captured tables and left both sides equal, %d were refused.\n\n", wrote, len(specs), refused)
	r.t.Logf("%d passes; %s%s", r.passes, head, strings.Join(lines, "\n"))
	golden(r.t, "isolation.txt", head, lines, soak())
	if soak() && wrote < 80 {
		r.t.Errorf("only %d specs wrote to captured tables", wrote)
	}
}

// keylessSQL counts tables of a schema without a key that identifies rows.
const keylessSQL = `SELECT count(*)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND NOT EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisunique AND x.indimmediate AND x.indpred IS NULL AND x.indexprs IS NULL
        AND NOT EXISTS (SELECT FROM unnest(x.indkey::int2[]) k (num) JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.num WHERE NOT a.attnotnull))`

// prepare makes a spec's tables, in a schema that says how they are followed.
func (r *isolations) prepare(s *isolation) {
	r.t.Helper()
	base := strings.ReplaceAll(s.name, "-", "_")
	s.schema = keyed + base
	r.makeTables(s)
	if s.why == "" && r.column(r.source, keylessSQL, s.schema)[0] != "0" {
		r.tearDown(s)
		s.schema = whole + base
		r.makeTables(s)
	}
}

func (r *isolations) makeTables(s *isolation) {
	r.t.Helper()
	r.must(r.sql("", "CREATE SCHEMA IF NOT EXISTS "+s.schema))
	for _, block := range s.spec.setup {
		if err := r.sql(s.schema, block); err != nil {
			s.why = "its setup fails: " + err.Error()
			r.tearDown(s)
			return
		}
	}
}

// tearDown drops what a spec drops at its end, and the rest.
func (r *isolations) tearDown(s *isolation) {
	r.t.Helper()
	for _, block := range s.spec.teardown {
		for _, sql := range split(block) {
			_ = r.sql(s.schema, sql) // a step may have dropped it
		}
	}
	r.drop(s.schema)
}

// emptySQL empties the tables of a schema that are there.
const emptySQL = `DO $$ DECLARE list text; BEGIN
  SELECT string_agg(c.oid::regclass::text, ', ') INTO list FROM pg_class c WHERE c.relnamespace = '%s'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition;
  IF list <> '' THEN EXECUTE 'TRUNCATE ' || list || ' CASCADE'; END IF; END $$;`

// refill makes a spec's tables what its setup had made of them; what a step has changed so that it
// cannot be stays as it is.
func (s *isolation) refill() string {
	var b strings.Builder
	fmt.Fprintf(&b, "setup { %s }\n", fmt.Sprintf(emptySQL, s.schema))
	for _, sql := range s.spec.fills() {
		fmt.Fprintf(&b, "setup { DO $fill$ BEGIN EXECUTE $sql$ %s $sql$; EXCEPTION WHEN OTHERS THEN NULL; END $fill$; }\n", sql)
	}
	return b.String()
}

// play runs the permutations of a spec on its tables while the program makes passes.
func (r *isolations) play(s *isolation) {
	r.t.Helper()
	if !s.runs() || len(r.captured(s.schema)) == 0 {
		return
	}
	before := r.writes(s.schema)
	between := before
	if len(s.spec.fills()) > 0 { // what they write is not the steps'
		r.test(s, s.refill()+"session fill\nstep nothing { SELECT 1; }\npermutation nothing\n")
		between = r.writes(s.schema)
	}
	n := r.test(s, s.refill()+s.spec.rest)
	s.filled = between - before
	s.wrote = r.writes(s.schema) - between - int64(n)*s.filled
}

// test gives a spec to isolationtester, and says how many permutations it ran.
func (r *isolations) test(s *isolation, text string) int {
	ctx, cancel := context.WithTimeout(r.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.tester, r.url(s.schema))
	cmd.Stdin = strings.NewReader(text)
	cmd.Env = append(os.Environ(), "PG_TEST_TIMEOUT_DEFAULT=20", "PGAPPNAME=isolation")
	out, _ := cmd.CombinedOutput() // many steps fail, as they shall
	return strings.Count(string(out), "starting permutation: ")
}

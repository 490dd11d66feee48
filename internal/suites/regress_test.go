package suites_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// selection are the regression tests of the full form: they are about rows of tables, and need one schema only.
var selection = []string{"insert", "insert_conflict", "update", "delete", "truncate", "alter_table", "merge", "generated", "identity", "foreign_key", "triggers", "partition_prune", "with", "arrays", "numeric"}

// apart are those that are left out of the long form, each with its cause.
var apart = map[string]string{
	"test_setup":       "comes before all others",
	"infinite_recurse": "fills the stack, and may end the server",
}

// pauses is how often a test waits at most until the program has made a pass over its new tables; before it drops any
// it waits once more.
const pauses = 6

// regress is one regression test at work.
type regress struct {
	name, schema string
	wrote, base  int64           // rows that were written to captured tables; the counters at the last pause
	tables       map[string]bool // that were captured and compared
	refused      []string
}

// TestRegress runs PostgreSQL's regression tests one after the other, in the full form some of them, each in a schema of
// its own that is captured. After some of its CREATE TABLE psql waits until its tables have joined the run, so that
// the rest of the test writes to captured tables, alters and drops them; before the next DROP TABLE both sides
// are compared. At its end they are compared as well, and all of it leaves the run. In the long form, a test that wrote
// comes a second time, with tables that are followed in the other way, while the program makes passes all the time.
func TestRegress(t *testing.T) {
	dir, err := testpg.Suites(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	schedule, err := os.ReadFile(filepath.Join(dir, "src/test/regress/parallel_schedule"))
	if err != nil {
		t.Fatal(err)
	}
	r := &regresses{rig: newRig(t), dir: filepath.Join(dir, "src/test/regress")}
	r.psql("", "test_setup", nil)
	only := os.Getenv("PGRUNBOOK_REGRESS") // names, with commas
	for line := range strings.Lines(string(schedule)) {
		names, ok := strings.CutPrefix(line, "test:")
		if !ok {
			continue
		}
		for _, name := range strings.Fields(names) {
			if apart[name] != "" || !soak() && only == "" && !slices.Contains(selection, name) || only != "" && !slices.Contains(strings.Split(only, ","), name) {
				continue
			}
			began := time.Now()
			first := r.play(name, false)
			if first.wrote > 0 && (soak() || only != "") {
				r.again = append(r.again, r.play(name, true))
			}
			r.all = append(r.all, first)
			t.Logf("%s: %s", name, time.Since(began).Round(100*time.Millisecond))
		}
	}
	r.report()
}

// regresses are the tests over one migration.
type regresses struct {
	*rig
	dir    string
	now    *regress
	all    []*regress
	again  []*regress // while passes were made all the time
	beside *follower  // that makes them
}

var (
	identifies  = regexp.MustCompile(`(?i)primary\s+key`)
	createTable = regexp.MustCompile(`(?i)\bcreate\s+(unlogged\s+)?table\b`)
	dropTable   = regexp.MustCompile(`(?i)^drop\s+(table|schema)\b`)
	endsHere    = regexp.MustCompile(`;\s*(--.*)?$`)
)

func (r *regresses) play(name string, following bool) *regress {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, "sql", name+".sql"))
	r.must(err)
	// Where most tables have no key, all are followed by whole rows; the second time it is the other way.
	byKey := len(identifies.FindAll(text, -1))*2 >= len(createTable.FindAll(text, -1))
	r.now = &regress{name: name, schema: cond(byKey != following, keyed, whole) + strings.ReplaceAll(name, ".", "_"), tables: map[string]bool{}}
	r.must(r.sql("", "CREATE SCHEMA "+r.now.schema))
	r.on(following)
	seen, every, joined := 0, max(1, len(createTable.FindAll(text, -1))/pauses), false
	r.psql(r.now.schema, name, func(line string) (before, after bool) {
		if dropTable.MatchString(line) {
			before, joined = joined, false
		}
		if createTable.MatchString(line) {
			seen++
			after = seen%every == 0
			joined = joined || after
		}
		return before, after
	})
	r.off()
	r.pause()
	r.drop(r.now.schema)
	r.must(r.sql("", outsideSQL))
	r.catchUp()
	r.gone()
	return r.now
}

// on lets the program make passes from now on, off ends that.
func (r *regresses) on(following bool) {
	if following {
		r.beside = r.following()
	}
}

// off says whether it did.
func (r *regresses) off() bool {
	if r.beside == nil {
		return false
	}
	r.beside.end()
	r.beside = nil
	return true
}

// compared compares both sides, and counts what is captured. A table that only certain roles or settings can read, by
// functions in its indexes, is left out of it and dropped.
func (r *regresses) compared() {
	r.t.Helper()
	for _, table := range r.captured(r.now.schema) {
		diffs, err := testpg.Diff(r.t.Context(), r.source, r.target, []string{table})
		if err != nil {
			r.now.refused = append(r.now.refused, stable("the comparison cannot read it: "+err.Error(), r.now.schema))
			r.must(r.sql("", "DROP TABLE "+table+" CASCADE"))
			continue
		}
		r.now.tables[table] = true
		for _, d := range diffs[:min(len(diffs), 10)] {
			r.t.Errorf("%s", d)
		}
		if len(diffs) > 0 {
			r.t.Logf("in %s, of which the program said %s", r.now.name, r.said)
		}
	}
}

// outsideSQL drops what tests leave outside of their schemas, and would stop the run after they have ended.
const outsideSQL = `SELECT lo_unlink(oid) FROM pg_largeobject_metadata;
DO $$ DECLARE one text; BEGIN
  FOR one IN SELECT format('PUBLICATION %I', pubname) FROM pg_publication UNION ALL SELECT format('LANGUAGE %I CASCADE', lanname) FROM pg_language WHERE oid >= 16384
       UNION ALL SELECT format('FOREIGN DATA WRAPPER %I CASCADE', fdwname) FROM pg_foreign_data_wrapper WHERE oid >= 16384
       UNION ALL SELECT format('EVENT TRIGGER %I', evtname) FROM pg_event_trigger WHERE evtname NOT LIKE '%pgrunbook%' LOOP
    EXECUTE 'DROP ' || one;
  END LOOP;
END $$`

var tableName = regexp.MustCompile(`"((?:keyed|whole)_[a-z0-9_]+)"\."((?:[^"]|"")+)"`)

// catchUp drops the one table that the program refuses, or all of the test where it names none.
func (r *regresses) catchUp() {
	r.t.Helper()
	tried := map[string]bool{}
	r.follow(func(schema, why string) {
		if schema != "" && schema != r.now.schema {
			r.t.Fatalf("the program does not follow: %s\n%s", why, r.said)
		}
		r.now.refused = append(r.now.refused, stable(why, r.now.schema))
		m := tableName.FindString(why)
		if m == "" || tried[m] || r.sql("", "DROP TABLE "+m+" CASCADE") != nil {
			r.drop(r.now.schema)
			r.must(r.sql("", outsideSQL))
		}
		tried[m] = true
	})
}

// psql runs a file of regress/sql in one session. Before a line, or after the statement that it begins, wherever wait
// says so, it stands still, outside of a transaction, until the program has followed.
func (r *regresses) psql(schema, name string, wait func(line string) (before, after bool)) {
	r.t.Helper()
	bin, err := testpg.ClientBinDir(r.t.Context(), 15)
	r.must(err)
	text, err := os.ReadFile(filepath.Join(r.dir, "sql", name+".sql"))
	r.must(err)
	cmd := exec.CommandContext(r.t.Context(), filepath.Join(bin, "psql"), "-X", "-q", r.url(schema)+cond(strings.Contains(r.url(schema), "?"), "&", "?")+"application_name=regress")
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "PG_ABS_SRCDIR="+r.dir, "PG_ABS_BUILDDIR="+r.rig.dir, "PG_LIBDIR=/nowhere", "PG_DLSUFFIX=.so", "PGTZ=PST8PDT", "PGDATESTYLE=Postgres, MDY")
	in, err := cmd.StdinPipe()
	r.must(err)
	out, err := cmd.StdoutPipe()
	r.must(err)
	r.must(cmd.Start())
	answers := make(chan string, 1000)
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			if n, ok := strings.CutPrefix(lines.Text(), "pause "); ok {
				answers <- n
			}
		}
		close(answers)
	}()
	asked := 0
	still := func() bool {
		asked++
		if _, err := fmt.Fprintf(in, "SELECT pg_stat_force_next_flush();\n\\echo pause %d\n", asked); err != nil {
			return false
		}
		if answered(answers, fmt.Sprint(asked)) && // not in a string, say
			r.column(r.source, "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'regress' AND state = 'idle'")[0] == "1" {
			r.pause()
		}
		return true
	}
	complete, after := true, false
	for line := range strings.Lines(string(text)) {
		if wait != nil {
			before, then := wait(line)
			if after = after || then; before && complete && !still() {
				break
			}
		}
		if _, err := io.WriteString(in, line); err != nil {
			break // \q, or a session that the test ends
		}
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "--") {
			complete = endsHere.MatchString(line) || strings.HasPrefix(line, `\`)
		}
		if complete && after {
			if after = false; !still() {
				break
			}
		}
	}
	_ = in.Close()
	for range answers {
	}
	_ = cmd.Wait()                                                                                             // many statements fail, as they shall
	for late := time.Now().Add(30 * time.Second); time.Now().Before(late); time.Sleep(20 * time.Millisecond) { // statistics are sent when the session ends
		if r.column(r.source, "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'regress'")[0] == "0" {
			break
		}
	}
}

// answered waits until psql has come to where it was asked to say so.
func answered(answers <-chan string, what string) bool {
	for late := time.After(5 * time.Second); ; {
		select {
		case got, ok := <-answers:
			if !ok || got == what {
				return ok
			}
		case <-late:
			return false
		}
	}
}

// pause lets the program follow, compares, and counts what was written to captured tables before.
func (r *regresses) pause() {
	r.t.Helper()
	defer r.on(r.off())
	r.now.wrote += max(0, r.writes(r.now.schema)-r.now.base)
	r.catchUp()
	r.compared()
	r.now.base = r.writes(r.now.schema)
}

// report prints what was captured while the tests wrote, and compares what was refused with testdata.
func (r *regresses) report() {
	var lines []string
	tables := 0
	for _, s := range r.all {
		line := s.name + ": no captured table with new rows"
		if s.wrote > 0 {
			line = s.name + ": equal"
			tables += len(s.tables)
		}
		r.t.Logf("%s, %d tables captured, %d rows", line, len(s.tables), s.wrote)
		for _, why := range s.refused {
			line += "\n    refused: " + why
		}
		lines = append(lines, strings.Split(line, "\n")...)
	}
	r.t.Logf("%d passes; tests wrote to %d captured tables\n%s", r.passes, tables, strings.Join(lines, "\n"))
	for _, s := range r.again {
		r.t.Logf("beside passes: %s: equal, %d tables captured, %d rows; refused: %q", s.name, len(s.tables), s.wrote, s.refused)
	}
	if *update {
		lines = r.renewed(lines)
	}
	wrote, all := 0, 0
	for _, line := range lines {
		all += cond(strings.HasPrefix(line, " "), 0, 1)
		wrote += cond(strings.HasSuffix(line, ": equal"), 1, 0)
	}
	head := fmt.Sprintf("%d of %d regression tests wrote to captured tables and left both sides equal.\n\n", wrote, all)
	golden(r.t, "regress.txt", head, lines, true)
}

// renewed are the lines of testdata, with what these say of the tests that were played.
func (r *regresses) renewed(lines []string) []string {
	r.t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "regress.txt"))
	r.must(err)
	_, old, _ := strings.Cut(strings.TrimSpace(string(raw)), "\n\n")
	said, name := map[string][]string{}, ""
	for _, line := range append(strings.Split(old, "\n"), lines...) {
		if !strings.HasPrefix(line, " ") {
			name, _, _ = strings.Cut(line, ":")
			said[name] = nil // the latest counts
		}
		said[name] = append(said[name], line)
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(said)) {
		all = append(all, said[name]...)
	}
	return all
}

package suites_test

import (
	"bufio"
	"fmt"
	"io"
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

// selection are the regression tests that are about rows of tables, and need one schema only.
var selection = []string{"insert", "insert_conflict", "update", "delete", "truncate", "alter_table", "merge", "generated", "identity", "foreign_key", "triggers", "partition_prune", "with", "arrays", "numeric"}

// pauses is how often a test waits at most until the program has made a pass over its new tables.
const pauses = 5

// regress is one regression test at work.
type regress struct {
	name, schema string
	wrote, base  int64           // rows that were written to captured tables; the counters at the last pause
	tables       map[string]bool // that were captured and compared
	refused      []string
}

// TestRegress runs some of PostgreSQL's regression tests one after the other, each in a schema of its own that
// is captured. After some of its CREATE TABLE psql waits until its tables have joined the run, so that
// the rest of the test writes to captured tables, alters and drops them while the program makes
// passes. At its end both sides are compared, and all of it leaves the run.
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
	for line := range strings.Lines(string(schedule)) {
		names, ok := strings.CutPrefix(line, "test:")
		if !ok {
			continue
		}
		for _, name := range strings.Fields(names) {
			if !slices.Contains(selection, name) {
				continue
			}
			began := time.Now()
			r.play(name)
			if t.Failed() {
				return
			}
			t.Logf("%s: %s", name, time.Since(began).Round(100*time.Millisecond))
		}
	}
	r.report()
}

// regresses are the tests over one migration.
type regresses struct {
	*rig
	dir string
	now *regress
	all []*regress
}

var (
	primary     = regexp.MustCompile(`(?i)primary\s+key`)
	createTable = regexp.MustCompile(`(?i)\bcreate\s+(unlogged\s+)?table\b`)
	endsHere    = regexp.MustCompile(`;\s*(--.*)?$`)
)

func (r *regresses) play(name string) {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, "sql", name+".sql"))
	r.must(err)
	r.now = &regress{name: name, schema: cond(primary.Match(text), keyed, whole) + name, tables: map[string]bool{}}
	r.all = append(r.all, r.now)
	r.must(r.sql("", "CREATE SCHEMA "+r.now.schema))
	every := max(1, len(createTable.FindAll(text, -1))/pauses)
	r.psql(r.now.schema, name, func(made int) bool { return made%every == 0 })
	r.pause()
	r.drop(r.now.schema)
	r.catchUp()
	r.gone()
}

// compared compares both sides, and counts what is captured.
func (r *regresses) compared() {
	r.t.Helper()
	for _, table := range r.captured(r.now.schema) {
		r.now.tables[table] = true
	}
	r.equal(r.now.schema)
}

var tableName = regexp.MustCompile(`"((?:keyed|whole)_[a-z0-9_]+)"\."((?:[^"]|"")+)"`)

// catchUp drops the one table that the program refuses, or all of the test where it names none.
func (r *regresses) catchUp() {
	r.t.Helper()
	tried := map[string]bool{}
	r.follow(func(schema, why string) {
		if schema != r.now.schema {
			r.t.Fatalf("the program does not follow: %s\n%s", why, r.said)
		}
		r.now.refused = append(r.now.refused, stable(why, schema))
		m := tableName.FindString(why)
		if m == "" || tried[m] || r.sql("", "DROP TABLE "+m+" CASCADE") != nil {
			r.drop(schema)
		}
		tried[m] = true
	})
}

// psql runs a file of regress/sql in one session. After a CREATE TABLE for which wait says so it
// stands still, outside of a transaction, until the program has followed.
func (r *regresses) psql(schema, name string, wait func(made int) bool) {
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
	made, asked, complete := 0, 0, false
	for line := range strings.Lines(string(text)) {
		if _, err := io.WriteString(in, line); err != nil {
			break // \q, or a session that the test ends
		}
		if createTable.MatchString(line) {
			made, complete = made+1, false
		}
		if complete = complete || endsHere.MatchString(strings.TrimRight(line, "\n")); !complete || wait == nil || made == 0 || !wait(made) {
			continue
		}
		made = 0
		asked++
		if _, err := fmt.Fprintf(in, "SELECT pg_stat_force_next_flush();\n\\echo pause %d\n", asked); err != nil {
			break
		}
		if !answered(answers, fmt.Sprint(asked)) { // in a string, say
			continue
		}
		if r.column(r.source, "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'regress' AND state = 'idle'")[0] == "1" {
			r.pause()
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
	r.now.wrote += max(0, r.writes(r.now.schema)-r.now.base)
	r.catchUp()
	r.compared()
	r.now.base = r.writes(r.now.schema)
}

func (r *regresses) report() {
	var lines []string
	wrote := 0
	for _, s := range r.all {
		line := s.name + ": no captured table with new rows is left to compare"
		if s.wrote > 0 {
			line = fmt.Sprintf("%s: equal, %d tables", s.name, len(s.tables))
			wrote++
		}
		for _, why := range s.refused {
			line += "\n    refused: " + why
		}
		lines = append(lines, strings.Split(line, "\n")...)
	}
	head := fmt.Sprintf("%d of %d regression tests wrote to captured tables and left both sides equal.\n\n", wrote, len(r.all))
	r.t.Logf("%d passes; %s%s", r.passes, head, strings.Join(lines, "\n"))
	golden(r.t, "regress.txt", head, lines, true)
}

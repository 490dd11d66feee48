package faults_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// broken is the program without some rules of the protocol.
type broken struct {
	rules string // as PGRUNBOOK_MUTANT takes them
	seen  string // what the oracles must say, as a regular expression
	// tool is what the program itself says in place of that: it stops, or gives an attempt up, and nothing
	// is lost. Another rule covers for the one that is missing.
	tool string
}

// plot is a migration in which rules matter: with all of them it ends well.
type plot struct {
	name   string
	full   bool // also in the form of continuous integration
	play   func(r *rig)
	broken []broken
}

// TestBrokenPrograms plays whole migrations with the program, and with programs that leave a rule out: the oracles that
// all tests here rest on say nothing of the first and must name what the others lose. That such a program fails
// is not enough.
func TestBrokenPrograms(t *testing.T) {
	for _, p := range plots {
		if !p.full && !soak() {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			t.Run("with every rule", func(t *testing.T) {
				t.Parallel()
				r := newPlot(t, p, "")
				for _, w := range r.wrong() {
					t.Error(w)
				}
			})
			for _, b := range p.broken {
				t.Run(b.rules, func(t *testing.T) {
					t.Parallel()
					if b.seen != "" {
						noticed(t, p, b)
						return
					}
					r := newPlot(t, p, b.rules)
					for _, w := range r.wrong() {
						t.Error(w)
					}
					if said := regexp.MustCompile(b.tool).FindString(r.log.String()); said == "" {
						t.Errorf("without %s the program does not say %s", b.rules, b.tool)
					} else {
						t.Logf("without %s the program says: %s", b.rules, said)
					}
				})
			}
		})
	}
}

// noticed plays until the oracles see it: most faults need a moment that does not come every time.
func noticed(t *testing.T, p plot, b broken) {
	const tries = 4
	seen := regexp.MustCompile(b.seen)
	for try := 1; try <= tries; try++ {
		said := ""
		t.Run(fmt.Sprintf("try %d", try), func(t *testing.T) {
			r := newPlot(t, p, b.rules)
			all := strings.Join(r.wrong(), "\n")
			if said = seen.FindString(all); said == "" {
				t.Logf("nothing was noticed but %q\n%s", all, r.log.String())
			}
		})
		if said != "" {
			t.Logf("without %s, try %d: %s", b.rules, try, said)
			return
		}
	}
	t.Errorf("without %s no oracle said %s in %d migrations", b.rules, b.seen, tries)
}

// newPlot is a rig in which a plot was played.
func newPlot(t *testing.T, p plot, without string) *rig {
	r := newRig(t)
	r.without = without
	r.sql(r.source, `CREATE TABLE app.aim (id int PRIMARY KEY, v text); INSERT INTO app.aim SELECT g, 'old' FROM generate_series(1, 500) g;
		CREATE TABLE app.many (id int PRIMARY KEY)`)
	p.play(r)
	return r
}

// wrong is all that the oracles have against the migration as it stands; the clients end.
func (r *rig) wrong() (wrong []string) {
	r.t.Helper()
	if len(r.found) > 0 { // what came after it may have hidden it, or have ended the session that kept the snapshot
		r.stop()
		return r.found
	}
	at := r.source
	switch closed := [2]bool{testpg.Refuses(r.t.Context(), r.source, probeSQL), testpg.Refuses(r.t.Context(), r.target, probeSQL)}; closed {
	case [2]bool{true, false}:
		wrong, at = r.carried(0, 1), r.target
	case [2]bool{true, true}:
		wrong = append(wrong, "no side takes writes")
	case [2]bool{false, false}:
		wrong = append(wrong, "both sides are left open")
	}
	r.stop()
	if r.uneven != "" {
		wrong = append(wrong, r.uneven)
	}
	report, err := r.ledger.Check(r.t.Context(), at)
	r.must(err)
	if !report.OK() || report.Acknowledged == 0 {
		wrong = append(wrong, "the ledger: "+report.String())
	}
	if err := r.sides.Err(); err != nil {
		wrong = append(wrong, err.Error())
	}
	return wrong
}

// ended repeats a command until it is done. A broken program may fail for ever: that is not what is asked.
func (r *rig) ended(args ...string) {
	r.t.Helper()
	if r.without == "" {
		r.finally(args...)
		return
	}
	for range 2 {
		if o := r.run("", args...); o.code == 0 && o.signal == 0 {
			return
		}
	}
}

// A moment is a hit of a failpoint, at which the program waits until something was done.
type moment struct {
	point string
	do    func()
}

// meanwhile runs apply, does something at its moments, where it gets there, and runs it until it is done.
func (r *rig) meanwhile(points string, moments ...moment) {
	r.t.Helper()
	if o := r.during(points, moments, applyArgs...).end(); o.code != 0 || o.signal != 0 {
		r.ended(applyArgs...)
	}
}

// during is a command that has done something at its moments, where it got there, and is about to end.
func (r *rig) during(points string, moments []moment, args ...string) *process {
	r.t.Helper()
	files := make([]string, len(moments))
	for i, m := range moments {
		files[i] = filepath.Join(r.dir, fmt.Sprintf("moment%d-%d", r.runs, i))
		points += fmt.Sprintf(";%s:wait=%s", m.point, files[i])
	}
	over := func(i int) { _ = os.WriteFile(files[i], nil, 0o600) }
	defer func() { // also where the test has failed
		for i := range files {
			over(i)
		}
	}()
	p := r.start(strings.TrimPrefix(points, ";"), args...)
	done := make([]bool, len(moments))
	for ; p.state() != "Z"; time.Sleep(2 * time.Millisecond) {
		for i, m := range moments {
			if _, err := os.Stat(files[i] + ".here"); err == nil && !done[i] {
				m.do()
				done[i] = true
				over(i)
			}
		}
	}
	return p
}

// begin is a client in the midst of a transaction on the source.
func (r *rig) begin(sql string) *pgx.Conn {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), r.source)
	r.must(err)
	r.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.PgConn().Exec(r.t.Context(), "BEGIN; "+sql).ReadAll()
	r.must(err)
	return conn
}

// end goes on in one and ends it; one that has ended stays as it is. What was not acknowledged cannot be lost.
func (r *rig) end(conn *pgx.Conn, how string) {
	if conn.PgConn().TxStatus() == 'I' {
		return
	}
	if _, err := conn.PgConn().Exec(r.t.Context(), how).ReadAll(); err != nil {
		r.t.Logf("%s was not acknowledged: %v", how, err)
	}
}

// some lets clients commit on the source, as far as they are let.
func (r *rig) some() { r.writes(0, 400*time.Millisecond) }

// unverified leaves everything to the oracles.
func (r *rig) unverified() {
	r.t.Helper()
	r.edit("cutover {", "verify { enabled = false }\n\ncutover {")
	r.edit(`rollback { keep_for = "1h" }`, "rollback { enabled = false }") // making ready for the way back tests captures of its own
}

// summed adds the target's accounts up from now on until the clients end: each pass brings them to a later moment of the
// source, so that half a transaction is never seen, not even between two passes.
func (r *rig) summed() {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), r.target)
	r.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	end := r.cancel
	r.cancel = func() {
		end()
		cancel()
	}
	r.wait.Go(func() {
		defer func() { _ = conn.Close(context.Background()) }()
		seen := 0
		for ; ctx.Err() == nil && r.uneven == ""; time.Sleep(time.Millisecond) {
			rows, _ := conn.Query(context.Background(), r.ledger.Torn()) // the rows give its error
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				r.t.Errorf("adding the target's accounts up: %v", err)
				return
			}
			if seen++; len(lines) > 0 {
				r.uneven = "the target shows " + lines[0]
			}
		}
		r.t.Logf("the target's accounts were added up %d times", seen)
	})
}

// kill ends a command where a query on a side answers something else than 0.
func (r *rig) kill(points, url, query string) {
	r.t.Helper()
	p := r.start(points, applyArgs...)
	for p.state() != "Z" && r.number(url, query) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	p.signal(syscall.SIGKILL)
	p.end()
	r.ended(applyArgs...)
}

package faults_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// ownServers is a rig on servers of its own, which survive power loss as far as PostgreSQL does.
func ownServers(t *testing.T, settings map[string]string) (r *rig, clusters [2]*testpg.Cluster) {
	t.Helper()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	source, target := majors(t)
	for i, major := range []int{source, target} {
		clusters[i] = testpg.StartT(t, testpg.Options{Major: major, Fsync: true, Settings: settings})
	}
	return newRigOn(t, testpg.NewDB(t, clusters[0]), testpg.NewDB(t, clusters[1])), clusters
}

func (r *rig) number(url, sql string) (n int) {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), url)
	r.must(err)
	defer func() { _ = conn.Close(r.t.Context()) }()
	r.must(conn.QueryRow(r.t.Context(), sql).Scan(&n))
	return n
}

// lives counts how often a server began to take connections.
func lives(c *testpg.Cluster) int { return strings.Count(c.Log(), "ready to accept connections") }

// crash ends a server, or one of the program's processes in it, and waits until it is back.
func (r *rig) crash(c *testpg.Cluster, how string) {
	r.t.Helper()
	before := lives(c)
	switch how {
	case "fast":
		r.must(c.Restart(r.t.Context()))
	case "immediate":
		r.must(c.Stop(r.t.Context(), testpg.Immediate))
		r.must(c.Start(r.t.Context()))
	case "postmaster":
		r.must(c.KillPostmaster())
		r.must(c.Start(r.t.Context()))
	case "backend":
		pid := r.number(c.ConnString(), "SELECT max(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgrunbook%'")
		r.must(syscall.Kill(pid, syscall.SIGKILL))
	default:
		r.t.Fatalf("no crash %q", how)
	}
	for deadline := time.Now().Add(time.Minute); lives(c) <= before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: the server did not come back\n%s", how, c.Log())
		}
	}
}

// A crash is one server's end at a boundary, with the words for it.
type crash struct {
	name string
	side int
	how  string
	at   string
	n    int
	upTo string // the runner is kept from the flip
}

var crashes = []crash{
	{"F10 target killed while its structure is made", 1, "postmaster", "schema.restored", 1, "schema"},
	{"F10 source stopped while captures are put up", 0, "immediate", "capture.triggers", 2, "capture"},
	{"F10 source stopped in mid-load", 0, "immediate", "load.claimed", 3, "copy"},
	{"F10 target killed in mid-load", 1, "postmaster", "load.claimed", 3, "copy"},
	{"F10 target restarted in mid-load", 1, "fast", "load.claimed", 2, "copy"},
	{"F10 F11 backend on the source killed while a pass reads", 0, "backend", "pass.read", 1, "catch_up"},
	{"F10 target killed right after a pass", 1, "postmaster", "pass.committed", 1, "catch_up"},
	{"F10 target killed while indexes are made", 1, "postmaster", "constraints.indexes", 1, "constraints"},
	{"F10 backend on the target killed while rows are compared", 1, "backend", "compare.opened", 1, "verify"},
	{"F10 source restarted while its gate is put up", 0, "fast", "gate.armed", 2, "arm"},
	{"F10 source killed in the freeze", 0, "postmaster", "freeze.held", 1, ""},
	{"F10 target stopped in the freeze", 1, "immediate", "freeze.passed", 1, ""},
}

// TestF10F11Servers ends either server, in every way, in every phase; fsync is on. The runner goes on
// by itself or with the next command. What a crash empties without a trigger is emptied here too.
func TestF10F11Servers(t *testing.T) {
	t.Parallel()
	r, clusters := ownServers(t, nil)
	const volatile = "SELECT count(*) FROM app.volatile"
	r.sql(r.source, "CREATE UNLOGGED TABLE app.volatile (id int PRIMARY KEY, text text)")
	const fill = "INSERT INTO app.volatile SELECT g, 'gone in a crash' FROM generate_series(1, 300) g ON CONFLICT DO NOTHING"
	arrives := func(rows int) {
		t.Helper()
		r.finally("apply", "--auto-approve", "--until", "catch_up")
		if n := r.number(r.target, volatile); n != rows {
			t.Fatalf("the target has %d UNLOGGED rows, want %d", n, rows)
		}
	}
	for range cond(soak(), 10, 1) {
		r.sql(r.source, fill)
		for i, c := range crashes {
			if c.upTo == "catch_up" && crashes[i-1].upTo == "copy" {
				r.finally("apply", "--auto-approve", "--until", "copy")
				r.sql(r.source, fill)
				arrives(300)
			}
			r.crashed(clusters, c)
			if c.upTo == "copy" && crashes[i+1].upTo == "copy" && r.number(r.target, "SELECT count(*) FROM pgrunbook.item WHERE state = 'pending'") < crashes[i+1].n {
				r.finally(abortArgs...) // the load went on by itself, almost or quite to its end: the next crash wants one
			}
			switch {
			case strings.HasPrefix(c.name, "F10 F11"): // of the source
				if n := r.number(r.source, volatile); n != 0 {
					t.Fatalf("the crash left %d rows in an UNLOGGED table", n)
				}
				arrives(0)
				r.sql(r.source, fill)
				arrives(300)
			case c.at == "pass.committed": // the target's copy is empty, and nothing has changed on the source
				arrives(300)
			}
		}
		if soak() {
			r.finally(abortArgs...)
		}
	}
	// The target is gone between the COMMITs of the flip, and opened once it is back.
	r.crashedBetween(clusters, 1, applyArgs)
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

// crashedBetween ends a server between the COMMITs of a command's flip, and gets the command done.
func (r *rig) crashedBetween(clusters [2]*testpg.Cluster, side int, args []string) {
	r.t.Helper()
	p := r.into(clusters, crash{fmt.Sprintf("F10 side %d stopped between the COMMITs of %s", side, args[0]), side, "immediate", "freeze.between", 1, ""}, "sleep=1s", args)
	o := p.end()
	r.t.Log(o)
	if r.acceptable(o); o.code != 0 {
		r.finally(args...)
	}
}

// into runs a command into a crash, at whose boundary it does something first.
func (r *rig) into(clusters [2]*testpg.Cluster, c crash, first string, args []string) *process {
	r.t.Helper()
	p := r.start(fmt.Sprintf("%s@%d:%s", c.at, c.n, first), args...)
	if !p.passed(c.at, c.n) {
		r.t.Fatalf("%s: the runner did not pass %s", c.name, c.at)
	}
	r.crash(clusters[c.side], c.how)
	r.t.Log(c.name)
	return p
}

// kept lets a boundary last, and keeps the runner from the flip.
const kept = "sleep=500ms;freeze.decided:kill"

// crashed runs apply into a crash.
func (r *rig) crashed(clusters [2]*testpg.Cluster, c crash) {
	r.t.Helper()
	args := applyArgs
	if c.upTo != "" {
		args = []string{"apply", "--auto-approve", "--until", c.upTo}
	}
	o := r.into(clusters, c, kept, args).end()
	r.t.Log(o)
	if o.signal == 0 {
		r.acceptable(o)
	}
	r.writing(0)
}

// backCrashes come while writes are on the target: between what a reverse pass does, and with writes held for the way back.
var backCrashes = []crash{
	{"F10 source stopped while a reverse pass is applied", 0, "immediate", "pass.staged", 1, "follow"},
	{"F10 target stopped while a reverse pass reads", 1, "immediate", "pass.read", 1, "follow"},
	{"F10 source killed when a reverse pass is committed there", 0, "postmaster", "pass.committed", 1, "follow"},
	{"F10 target killed when a reverse pass is committed", 1, "postmaster", "pass.committed", 1, "follow"},
	{"F10 target restarted in a reverse pass", 1, "fast", "pass.marked", 1, "follow"},
	{"F10 backend on the source killed in a reverse pass", 0, "backend", "pass.marked", 1, "follow"},
	{"F10 source stopped with the target held", 0, "immediate", "freeze.held", 1, "rollback"},
	{"F10 target stopped while it is held", 1, "immediate", "freeze.held", 1, "rollback"},
	{"F10 source killed after the last reverse pass", 0, "postmaster", "freeze.passed", 1, "rollback"},
	{"F10 target killed after the last reverse pass", 1, "postmaster", "freeze.passed", 1, "rollback"},
}

// TestF10WayBack ends either server in reverse passes, in the freeze of the way back and between its COMMITs.
func TestF10WayBack(t *testing.T) {
	t.Parallel()
	r, clusters := ownServers(t, nil)
	r.finally(applyArgs...)
	r.moved(0, 1)
	r.writing(1)
	r.turn(1)
	for range cond(soak(), 5, 1) {
		for _, c := range backCrashes {
			r.crashedBack(clusters, c)
		}
	}
	for side := range 2 {
		r.crashedBetween(clusters, side, rollbackArgs)
		r.moved(1, 0)
		r.writing(0)
		if side == 0 {
			r.turn(0)
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.turn(1)
		}
	}
	r.balance(r.source)
}

// crashedBack runs a command of the way back into a crash. Reverse passes go on by themselves, or the command ends and
// says why; whatever was held is let go.
func (r *rig) crashedBack(clusters [2]*testpg.Cluster, c crash) {
	r.t.Helper()
	args := rollbackArgs
	if c.upTo == "follow" {
		args = []string{"follow"}
		r.writing(1) // something to carry
	}
	p := r.into(clusters, c, kept, args)
	if c.upTo == "follow" {
		_, count := p.hits()
		for whole := count["pass.forgotten"]; p.state() != "Z" && count["pass.forgotten"] <= whole; _, count = p.hits() {
			if time.Since(p.began) > p.limit {
				r.t.Fatalf("%s: no pass is made any more\n%s", c.name, p.said())
			}
			time.Sleep(20 * time.Millisecond)
		}
		p.signal(syscall.SIGINT)
	}
	o := p.end()
	r.t.Log(o)
	if o.signal == 0 && o.code != 130 {
		r.acceptable(o)
	}
	r.writing(1)
}

// TestF19SnapshotError: the snapshot of a pass meets a row that somebody else has changed since, and
// the server refuses. The pass is made again, from a new snapshot.
func TestF19SnapshotError(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.finally("apply", "--auto-approve", "--until", "copy")
	r.sql(r.source, "UPDATE app.item SET net = net + 1 WHERE id % 10 = 0")
	p := r.start("pass.read@1:sleep=1s", applyArgs...)
	if !p.passed("pass.read", 1) {
		t.Fatal("the runner made no pass")
	}
	// What a VACUUM FULL or a curious administrator does: every delta row gets another version.
	r.sql(r.source, `DO $$
		DECLARE r record;
		BEGIN
		  FOR r IN SELECT c.oid::regclass AS t, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1
		            WHERE c.relnamespace = 'pgrunbook'::regnamespace AND c.relname LIKE 'delta%' AND c.relkind = 'r' LOOP
		    EXECUTE format('UPDATE %s SET %I = %2$I', r.t, r.attname);
		  END LOOP;
		END $$`)
	o := p.end()
	if !strings.Contains(o.text, "the pass is made again") || !strings.Contains(o.text, "could not serialize access") {
		t.Fatalf("the snapshot met nothing: %s\n%s", o, o.text)
	}
	if r.acceptable(o); o.code != 0 {
		r.finally(applyArgs...)
	}
	r.moved(0, 1)
	r.writing(1)
	r.balance(r.target)
}

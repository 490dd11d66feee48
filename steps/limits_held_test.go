package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// busy is how many workers read a chunk right now.
func (l *limited) busy() int {
	return l.number(l.source, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook%load%' AND xact_start IS NOT NULL")
}

// quiet reports that no chunk is under way: a worker's transaction on the target spans it, but for a
// moment between two of them.
func (l *limited) quiet() bool {
	for range 3 {
		if l.number(l.target, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook%load%' AND xact_start IS NOT NULL") > 0 {
			return false
		}
	}
	return true
}

// still demands that what is counted stays as it is while something holds it.
func (l *limited) still(what string, count func() int) {
	l.t.Helper()
	before := count()
	for range 15 {
		time.Sleep(100 * time.Millisecond)
		if now := count(); now != before {
			l.t.Fatalf("%s went from %d to %d during a pause", what, before, now)
		}
	}
}

// stored begins the run anew with the steps of a load in its plan and its events in the journal:
// status reads both.
func (l *limited) stored() {
	l.t.Helper()
	ctx := l.t.Context()
	l.env.Journal.Close(ctx)
	l.exec(l.target, "DROP SCHEMA pgrunbook CASCADE")
	l.env.Plan, l.env.Journal = l.plan(), nil
	for _, s := range []engine.Step{newSchema(l.env), newCapture(l.env), newCopy(l.env), newCatchUp(l.env)} {
		l.env.Plan.Steps = append(l.env.Plan.Steps, engine.StepPlan{ID: s.ID(), Phase: engine.PhaseCopy})
	}
	l.must(OpenRun(ctx, l.env, OpenOptions{ToolVersion: "test"}))
	run := l.env.Journal
	l.t.Cleanup(func() { run.Close(context.Background()) })
	l.env.report(engine.SinkFunc(l.emit))
}

// status is what a person sees of the run.
func (l *limited) status() string {
	l.t.Helper()
	st, err := ReadStatus(l.t.Context(), l.env.Target, l.env.Source)
	l.must(err)
	return st.Held
}

// fewer waits until one worker is left for a second: longer than the chunk of a worker that had begun
// before it was told, and than the moment between two chunks of two busy ones.
func (l *limited) fewer() {
	l.t.Helper()
	l.until("one worker less, and it stays so", func() bool {
		for range 20 {
			if l.busy() > 1 {
				return false
			}
			time.Sleep(50 * time.Millisecond)
		}
		return true
	})
}

// obeys is what people say from elsewhere while rows are copied: it acts without a restart, and what
// holds the load is told. How soon is printed; 5 s are promised.
func (l *limited) obeys() {
	l.t.Helper()
	took := func(what string, change func(*journal.Control), is func() bool) {
		l.t.Helper()
		at := time.Now()
		l.set(change)
		l.until(what, is)
		l.t.Logf("%s: after %s", what, time.Since(at).Round(10*time.Millisecond))
	}
	took("pause: no chunk is copied", func(c *journal.Control) { c.Paused = true }, func() bool { return l.heard("paused by a person") && l.quiet() })
	l.still("the rows copied", l.copied)
	if held := l.status(); !strings.Contains(held, "paused by a person") {
		l.t.Errorf("status says %q of a pause", held)
	}
	before := l.copied()
	took("unpause: rows are copied", func(c *journal.Control) { c.Paused = false }, func() bool { return l.copied() > before })
	took("set workers=1: one is busy", func(c *journal.Control) { c.Workers = 1 }, func() bool { return l.busy() < 2 })
	time.Sleep(2 * limitsEvery)
	l.fewer()
	took("set workers=2: both are busy", func(c *journal.Control) { c.Workers = 2 }, func() bool { return l.busy() == 2 })
}

// violation is a limit with the way to exceed it and the way out.
type violation struct {
	kind, max string
	begin     func(l *limited)
	end       func(l *limited)
}

// violations gives each measured kind of limit. standby is of the cluster behind the rig.
func violations(standby *testpg.Cluster) []violation {
	replay := func(sql string) func(*limited) {
		return func(l *limited) { l.must(standby.Exec(l.t.Context(), "postgres", sql)) }
	}
	var sleepers, locker []*pgx.Conn
	closeAll := func(list *[]*pgx.Conn) {
		for _, c := range *list {
			_ = c.PgConn().Conn().Close()
		}
		*list = nil
	}
	connect := func(l *limited, url string) *pgx.Conn {
		conn, err := pgx.Connect(l.t.Context(), url)
		l.must(err)
		return conn
	}
	return []violation{
		{"replica_lag", "1s", func(l *limited) {
			replay("SELECT pg_wal_replay_pause()")(l)
			l.exec(l.source, "SELECT pg_logical_emit_message(true, '', '')") // there is something to replay, whatever else is written
		}, replay("SELECT pg_wal_replay_resume()")},
		{"sessions", "1", func(l *limited) {
			for range 2 {
				c := connect(l, l.source)
				sleepers = append(sleepers, c)
				c.PgConn().Frontend().SendQuery(&pgproto3.Query{String: "SELECT pg_sleep(600)"})
				l.must(c.PgConn().Frontend().Flush())
			}
		}, func(l *limited) {
			closeAll(&sleepers)
			l.exec(l.source, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()")
		}},
		{"delta_size", "300KiB", func(l *limited) { // a locked table keeps passes from working it off
			l.until("the small table is loaded", func() bool { return l.follows("early") })
			c := connect(l, l.target)
			locker = append(locker, c)
			_, err := c.Exec(l.t.Context(), "BEGIN; LOCK TABLE shop.early IN EXCLUSIVE MODE", pgx.QueryExecModeSimpleProtocol)
			l.must(err)
			l.exec(l.source, strings.Repeat("UPDATE shop.early SET pad = 'y';", 100))
		}, func(*limited) { closeAll(&locker) }},
	}
}

// follows reports that a table is loaded: from then on only passes work off its delta.
func (l *limited) follows(name string) bool {
	l.t.Helper()
	tables, err := loaded(l.t.Context(), l.env)
	l.must(err)
	return slices.ContainsFunc(tables, func(t scope.Table) bool { return t.Name.Name == name })
}

// TestLimits exceeds each kind of limit with each of its ends, while rows are copied, and measures
// what it does; then while they are caught up. Without PGRUNBOOK_FULL each kind has one end.
// The reason is in the events and in status.
func TestLimits(t *testing.T) {
	late := lateAfter
	lateAfter = time.Second
	defer func() { lateAfter = late }()
	sourceMajor, targetMajor, err := testpg.PairMajors()
	if err != nil {
		t.Fatal(err)
	}
	source := testpg.StartT(t, testpg.Options{Major: sourceMajor})
	standby, err := source.Standby(t.Context(), "follower")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Remove(); err != nil {
			t.Error(err)
		}
	})
	ends := []string{"slow", "pause", "stop"}
	for i, v := range violations(standby) {
		then := ends
		if !testpg.Full() {
			then = ends[i%3 : i%3+1]
		}
		for _, then := range then {
			t.Run(v.kind+" "+then, func(t *testing.T) {
				extra := fmt.Sprintf("table \"shop.early\" { chunk = \"1GiB\" }\ncopy {\n  workers = 2\n  chunk = \"256KiB\"\n}\nlimit \"copy_rate\" { max = \"1MiB/s\" }\nlimit %q {\n  max = %q\n  then = %q\n}\n", v.kind, v.max, then)
				r := newRigOn(t, testpg.NewDB(t, source), testpg.NewDB(t, testpg.Shared(t, targetMajor)), limitedSetup, extra)
				l := &limited{rig: r}
				l.stored()
				l.must(l.walk(t.Context(), newSchema(l.env), newCapture(l.env)))
				l.whileCopying(v, then)
				l.must(<-l.ended)
				if v.kind == "delta_size" {
					l.must(l.walk(t.Context(), newCatchUp(l.env)))
				} else {
					l.whileCatchingUp(v, then)
				}
				l.same("shop.big", "shop.early")
			})
		}
	}
}

func (l *limited) whileCopying(v violation, then string) {
	l.t.Helper()
	reason := fmt.Sprintf("limit %s is over %s: %s", v.kind, v.max, then)
	l.start(newCopy(l.env))
	l.until("two workers copy", func() bool { return l.copied() > 0 && l.busy() == 2 })
	v.begin(l)
	defer v.end(l)
	if then == "stop" {
		err := <-l.ended
		if err == nil || !strings.Contains(err.Error(), "holding limit") || !strings.Contains(err.Error(), v.kind) {
			l.t.Fatalf("over its limit the copy ended with %v", err)
		}
		if n := l.copied(); n == limitedRows {
			l.t.Error("all rows were copied: the limit came too late to prove anything")
		}
		v.end(l)
		l.setting("copy_rate", Unlimited)
		l.settled(v)
		l.start(newCopy(l.env))
		return
	}
	l.until("the reason is said", func() bool { return l.heard(reason) })
	l.until("the reason is in status", func() bool { return strings.Contains(l.status(), reason) })
	switch then {
	case "pause":
		l.until("chunks in flight end", l.quiet)
		l.still("the rows copied", l.copied)
	case "slow":
		l.fewer()
	}
	if n := l.copied(); n == limitedRows {
		l.t.Error("all rows were copied: the limit came too late to prove anything")
	}
	v.end(l)
	l.setting("copy_rate", Unlimited)
}

// settled waits until a limit is kept again.
func (l *limited) settled(v violation) {
	if v.kind == "delta_size" {
		l.setting("delta_size", Unlimited) // only passes bring it down, and they need a command that goes on
	}
	time.Sleep(100 * time.Millisecond)
}

func (l *limited) whileCatchingUp(v violation, then string) {
	l.t.Helper()
	reason := fmt.Sprintf("limit %s is over %s: %s", v.kind, v.max, then)
	l.exec(l.source, "UPDATE shop.big SET pad = 'changed ' || id")
	applied := func() int {
		return l.number(l.target, "SELECT count(*) FROM shop.big WHERE pad LIKE 'changed%'")
	}
	l.set(func(c *journal.Control) { c.Paused = true })
	l.mu.Lock()
	l.events = nil
	l.mu.Unlock()
	l.start(newCatchUp(l.env))
	l.until("a person's pause is said", func() bool { return l.heard("paused by a person") })
	l.still("the rows applied", applied)
	v.begin(l)
	defer v.end(l)
	if then == "stop" {
		if err := <-l.ended; err == nil || !strings.Contains(err.Error(), "holding limit") {
			l.t.Fatalf("over its limit catch_up ended with %v", err)
		}
		v.end(l)
		l.set(func(c *journal.Control) { c.Paused = false })
		l.settled(v)
		l.start(newCatchUp(l.env))
		l.must(<-l.ended)
		return
	}
	l.until("the reason is said", func() bool { return l.heard(reason) })
	l.set(func(c *journal.Control) { c.Paused = false })
	if then == "pause" {
		time.Sleep(2 * limitsEvery)
		l.still("the rows applied", applied)
		if n := applied(); n != 0 {
			l.t.Errorf("%d rows were applied during a pause", n)
		}
		v.end(l)
	}
	l.must(<-l.ended) // passes that are slowed down come to an end while the limit is exceeded
}

package steps

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// Only passes shrink the deltas, so a limit on their size must not make wait what passes wait for.
func TestDeltaLimitDoesNotStandInItsOwnWay(t *testing.T) {
	r := newRig(t, `limit "delta_size" { max = "8KiB" }`)
	r.must(r.walk(t.Context(), newSchema(r.env), newCapture(r.env)))
	r.exec(r.source, "UPDATE shop.customer SET name = name || '!'; INSERT INTO shop.customer SELECT g, 'more' FROM generate_series(1000, 3000) g; UPDATE shop.customer SET name = name || '?'")
	r.must(r.walk(t.Context(), newCopy(r.env), newCatchUp(r.env)))
	r.same("shop.customer", "shop.invoice")
	if !r.heard("limit delta_size is over") {
		t.Error("the limit was never over: the test proves nothing")
	}
}

// Small tables take far more room on disk than in COPY: what is done tells how much is left.
func TestExpectedLearnsFromWhatIsDone(t *testing.T) {
	for _, c := range []struct{ all, doneBytes, doneSize, want int64 }{
		{1000, 0, 0, 1000},
		{1000, 50, 500, 100},
		{1000, 90, 1000, 1000},
		{0, 10, 0, 10},
	} {
		if got := expected(c.all, c.doneBytes, c.doneSize); got != c.want {
			t.Errorf("expected(%d, %d, %d) = %d, want %d", c.all, c.doneBytes, c.doneSize, got, c.want)
		}
	}
}

// limitedSetup has a table of 20 MB, and a small one that is loaded before it: chunks go by size on
// disk, and most of it is dead.
const limitedSetup = `
CREATE SCHEMA shop;
CREATE TABLE shop.lock (id int PRIMARY KEY);
CREATE TABLE shop.big (id int PRIMARY KEY, pad text NOT NULL);
ALTER TABLE shop.big ALTER pad SET STORAGE PLAIN;
INSERT INTO shop.big SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g;
CREATE TABLE shop.early (id int PRIMARY KEY, pad text NOT NULL) WITH (autovacuum_enabled = off);
ALTER TABLE shop.early ALTER pad SET STORAGE PLAIN;
INSERT INTO shop.early SELECT g, repeat('x', 1000) FROM generate_series(1, 25000) g;
DELETE FROM shop.early WHERE id > 100;`

const limitedRows = 20000

// limited is a load that a test slows down, so that there is time to look at it.
type limited struct {
	*rig
	ended chan error
}

func (l *limited) set(change func(*journal.Control)) {
	l.t.Helper()
	_, err := l.env.Journal.SetControl(l.t.Context(), "a person", change)
	l.must(err)
}

func (l *limited) setting(kind, value string) {
	l.t.Helper()
	l.set(func(c *journal.Control) {
		if c.Settings == nil {
			c.Settings = map[string]string{}
		}
		c.Settings[kind] = value
	})
}

// start runs steps beside the test.
func (l *limited) start(list ...engine.Step) {
	l.ended = make(chan error, 1)
	go func() { l.ended <- l.walk(l.t.Context(), list...) }()
}

func (l *limited) number(url, sql string) int {
	l.t.Helper()
	conn, err := pgx.Connect(l.t.Context(), url)
	l.must(err)
	defer func() { _ = conn.Close(context.Background()) }()
	var n int
	l.must(conn.QueryRow(l.t.Context(), sql).Scan(&n))
	return n
}

func (l *limited) until(what string, is func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-l.ended:
			l.t.Fatalf("the load ended before this: %s: %v", what, err)
		default:
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("waited in vain: %s", what)
		}
	}
}

func (l *limited) copied() int { return l.number(l.target, "SELECT count(*) FROM shop.big") }

// busy is how many workers read a chunk right now.
func (l *limited) busy() int {
	return l.number(l.source, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgrunbook%load%' AND xact_start IS NOT NULL")
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

// status is what a person sees of the run.
func (l *limited) status() string {
	l.t.Helper()
	st, err := ReadStatus(l.t.Context(), l.env.Target, l.env.Source)
	l.must(err)
	return st.Held
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
	connect := func(l *limited) *pgx.Conn {
		conn, err := pgx.Connect(l.t.Context(), l.source)
		l.must(err)
		return conn
	}
	return []violation{
		{"replica_lag", "1s", replay("SELECT pg_wal_replay_pause()"), replay("SELECT pg_wal_replay_resume()")},
		{"sessions", "1", func(l *limited) {
			for range 2 {
				c := connect(l)
				sleepers = append(sleepers, c)
				c.PgConn().Frontend().SendQuery(&pgproto3.Query{String: "SELECT pg_sleep(600)"})
				l.must(c.PgConn().Frontend().Flush())
			}
		}, func(l *limited) {
			closeAll(&sleepers)
			l.exec(l.source, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()")
		}},
		{"delta_size", "600KiB", func(l *limited) { // a locked table keeps passes from working it off
			c := connect(l)
			locker = append(locker, c)
			_, err := c.Exec(l.t.Context(), "UPDATE shop.early SET pad = 'y'")
			for range 99 {
				if err == nil {
					_, err = c.Exec(l.t.Context(), "UPDATE shop.early SET pad = 'y'")
				}
			}
			if err == nil {
				_, err = c.Exec(l.t.Context(), "BEGIN; LOCK TABLE shop.early IN ACCESS EXCLUSIVE MODE")
			}
			l.must(err)
		}, func(*limited) { closeAll(&locker) }},
	}
}

// TestLimits exceeds each kind of limit with each of its ends, while rows are copied, and measures
// what it does; then while they are caught up. The reason is in the events and in status.
func TestLimits(t *testing.T) {
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
	for _, v := range violations(standby) {
		for _, then := range []string{"slow", "pause", "stop"} {
			t.Run(v.kind+" "+then, func(t *testing.T) {
				extra := fmt.Sprintf("copy {\n  workers = 2\n  chunk = \"256KiB\"\n}\nlimit \"copy_rate\" { max = \"1MiB/s\" }\nlimit %q {\n  max = %q\n  then = %q\n}\n", v.kind, v.max, then)
				r := newRigOn(t, testpg.NewDB(t, source), testpg.NewDB(t, testpg.Shared(t, targetMajor)), limitedSetup, extra)
				l := &limited{rig: r}
				l.must(l.walk(t.Context(), newSchema(l.env), newCapture(l.env)))
				l.whileCopying(v, then)
				l.must(<-l.ended)
				if v.kind != "delta_size" {
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
		l.until("chunks in flight end", func() bool { return l.busy() == 0 })
		l.still("the rows copied", l.copied)
	case "slow":
		l.until("one worker less", func() bool { return l.busy() < 2 })
		for range 15 {
			time.Sleep(50 * time.Millisecond)
			if n := l.busy(); n > 1 {
				l.t.Errorf("%d workers are busy", n)
			}
		}
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
		l.setting("delta_size", Unlimited) // a delta's room comes back with the next vacuum
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

// TestCopyRate keeps the copy at a rate, lets it go, and pauses and stops one that is over it.
func TestCopyRate(t *testing.T) {
	const runbook = "copy {\n  workers = 2\n  chunk = \"256KiB\"\n}\nlimit \"copy_rate\" {\n  max = \"1MiB/s\"\n  then = %q\n}\n"
	rate := func(l *limited, during time.Duration) float64 { // rows of a kilobyte a second
		before, at := l.copied(), time.Now()
		for time.Since(at) < during && l.copied() < limitedRows {
			time.Sleep(20 * time.Millisecond)
		}
		return float64(l.copied()-before) / time.Since(at).Seconds()
	}
	for _, then := range []string{"slow", "pause", "stop"} {
		t.Run(then, func(t *testing.T) {
			t.Parallel()
			source, target := testpg.Pair(t)
			l := &limited{rig: newRigOn(t, source, target, limitedSetup, fmt.Sprintf(runbook, then))}
			l.must(l.walk(t.Context(), newSchema(l.env), newCapture(l.env)))
			if then == "stop" {
				err := l.walk(t.Context(), newCopy(l.env))
				if err == nil || !strings.Contains(err.Error(), "over 1MiB/s") {
					t.Fatalf("over its rate the copy ended with %v", err)
				}
				return
			}
			if then == "pause" {
				l.setting("copy_rate", "2MiB/s") // does what the runbook's limit does
			}
			l.start(newCopy(l.env))
			l.until("rows are copied", func() bool { return l.copied() > 0 })
			limit := map[string]float64{"slow": 1048, "pause": 2097}[then]
			held := rate(l, 5*time.Second)
			if then == "pause" && !l.heard("limit copy_rate is over 2MiB/s: pause") {
				t.Error("no pause was said")
			}
			l.setting("copy_rate", Unlimited)
			time.Sleep(2 * limitsEvery) // well within the 5 s in which a setting has to act
			free := rate(l, 5*time.Second)
			l.must(<-l.ended)
			t.Logf("%s: %.0f rows/s at a limit of %.0f, %.0f without", then, held, limit, free)
			if then == "slow" && held > 1.3*limit || then == "pause" && held > 3*limit {
				t.Errorf("%.0f rows/s were copied at a limit of %.0f", held, limit)
			}
			l.same("shop.big", "shop.early")
		})
	}
}

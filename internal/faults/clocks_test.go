package faults_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/testpg"
)

// skew is how far clocks are off.
const skew = time.Hour

// clocked is a rig with a clock of its own on one side.
func clocked(t *testing.T, side int) (r *rig, c *testpg.Cluster) {
	t.Helper()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
	var urls [2]string
	source, target := majors(t)
	for i, major := range []int{source, target} {
		on := testpg.Shared(t, major)
		if i == side {
			on = testpg.StartT(t, testpg.Options{Major: major, Clock: true})
			c = on
		}
		urls[i] = testpg.NewDB(t, on)
	}
	r = newRigOn(t, urls[0], urls[1])
	r.edit(`keep_for = "1h"`, `keep_for = "30m"`) // an hour is what nobody may read anywhere
	return r, c
}

// setClock sets a server's clock; sessions that are open see it as well.
func (r *rig) setClock(c *testpg.Cluster, ahead time.Duration) {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), c.ConnString())
	r.must(err)
	defer func() { _ = conn.Close(r.t.Context()) }()
	r.must(c.SetClock(ahead))
	var at time.Time
	r.must(conn.QueryRow(r.t.Context(), "SELECT clock_timestamp()").Scan(&at))
	if got := time.Until(at).Round(time.Minute); got != ahead {
		r.t.Fatalf("the clock is %s ahead, want %s", got, ahead)
	}
}

// nonsense is a figure that only clocks can give which are off, or have jumped: less than nothing, or about an hour.
var nonsense = regexp.MustCompile(`[=( ]-\d[\d.]*( ?[µm]?s\b|[mh]\d*\b| ?%| rows| [KMG]?i?B\b)|\b1h\d*m?\d*|\b5[5-9]m\d+|\b3[56]\d\d(\.\d+)?s\b`)

// sensible: nothing that the program said has a figure that cannot be.
func (r *rig) sensible() {
	r.t.Helper()
	for line := range strings.Lines(r.log.String()) {
		if m := nonsense.FindString(line); m != "" && !strings.HasPrefix(line, "--- ") { // with what we said
			r.t.Errorf("the program says %q in: %s", m, line)
		}
	}
}

// TestF08WrongClocks makes whole migrations, there and back, with a server whose clock is an hour ahead of the machine's, or
// behind it.
func TestF08WrongClocks(t *testing.T) {
	for _, c := range []struct {
		name  string
		side  int
		ahead time.Duration
	}{
		{"F08 the source is ahead", 0, skew},
		{"F08 the source is behind", 0, -skew},
		{"F08 the target is ahead", 1, skew},
		{"F08 the target is behind", 1, -skew},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, server := clocked(t, c.side)
			r.setClock(server, c.ahead)
			r.finally(untilCatchUp...)
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.turn(1)
			r.finally(rollbackArgs...)
			r.moved(1, 0)
			r.writing(0)
			r.sensible()
			r.balance(r.source)
		})
	}
}

// endedByServer is an attempt whose hold had been idle for too long, by the server's clock.
var endedByServer = regexp.MustCompile(`attempt \d+: .*idle-in-transaction timeout`)

// TestF08JumpsInARun lets the clock of one server jump by an hour, there and back, in the load, between what a pass does, and
// with writes held: each attempt that held them ends in the flip, on both ways.
func TestF08JumpsInARun(t *testing.T) {
	for side := range 2 {
		for _, first := range []time.Duration{skew, -skew} {
			t.Run(fmt.Sprintf("F08 side %d, first %s", side, cond(first > 0, "ahead", "behind")), func(t *testing.T) {
				t.Parallel()
				r, server := clocked(t, side)
				r.edit(`max_write_block = "5s"`, `max_write_block = "20s"`) // an hour is more, whatever the machine does beside
				ahead, jumps := time.Duration(0), 0
				jump := func() {
					ahead, jumps = first-ahead, jumps+1
					r.setClock(server, ahead)
				}
				hold := func() { // for longer than the server lets a silent hold live
					jump()
					time.Sleep(1200 * time.Millisecond)
				}
				walk := func(args []string, points ...string) {
					t.Helper()
					var moments []moment
					for _, point := range points {
						moments = append(moments, moment{point, cond(strings.HasPrefix(point, "freeze."), hold, jump)})
					}
					jumps = 0
					p := r.during("", moments, args...)
					_, count := p.hits()
					o := p.end()
					if o.code != 0 || jumps != len(points) {
						t.Fatalf("%s with a clock that jumps (%d times of %d): %s\n%s", args, jumps, len(points), o, o.text)
					}
					// PostgreSQL itself counts by this clock how long a session is idle, and may end the hold between two heartbeats.
					if ended := len(endedByServer.FindAllString(o.text, -1)); count["freeze.held"] != 1+ended {
						t.Errorf("%s held writes %d times, of which the server ended %d: a jump of the clock ended a hold\n%s", args, count["freeze.held"], ended, o.text)
					}
				}
				walk(applyArgs, "load.claimed@3", "load.marked@4", "pass.begun@1", "pass.read@1", "pass.committed@1",
					"freeze.prepared@1", "freeze.held@1", "freeze.proved@1", "freeze.passed@1", "freeze.decided@1", "freeze.between@1")
				r.moved(0, 1)
				r.writing(1)
				r.turn(1)
				walk(rollbackArgs, "pass.read@1", "pass.committed@1", "freeze.held@1", "freeze.passed@1", "freeze.between@1")
				r.moved(1, 0)
				r.writing(0)
				r.sensible()
				r.balance(r.source)
			})
		}
	}
}

// TestF08BudgetOverAJump: a clock that goes back while writes are held gives the freeze no more time.
func TestF08BudgetOverAJump(t *testing.T) {
	for side := range 2 {
		t.Run(fmt.Sprintf("F08 side %d", side), func(t *testing.T) {
			t.Parallel()
			r, server := clocked(t, side)
			jumped := false
			p := r.during("", []moment{{"freeze.passed@1", func() {
				time.Sleep(time.Second) // of the budget
				r.setClock(server, -skew)
				jumped = true
				r.writing(0)
			}}}, applyArgs...)
			_, count := p.hits()
			o := p.end()
			if !jumped || !strings.Contains(o.text, "the write block reached its budget") {
				t.Errorf("no budget was used up: %s\n%s", o, o.text)
			}
			if o.code != 0 || count["freeze.held"] < 2 {
				t.Errorf("after an attempt over its budget: %s, writes were held %d times\n%s", o, count["freeze.held"], o.text)
			}
			r.moved(0, 1)
			r.writing(1)
			r.sensible()
			r.balance(r.target)
		})
	}
}

// TestF08StoppedBesideAJump stops a runner that holds writes, and the clock by which a server would end its hold goes back
// within the second in which it does: writers go on all the same.
func TestF08StoppedBesideAJump(t *testing.T) {
	for side := range 2 {
		t.Run(fmt.Sprintf("F08 side %d", side), func(t *testing.T) {
			t.Parallel()
			r, server := clocked(t, side)
			p := r.start("freeze.passed@1:stop", applyArgs...)
			t.Cleanup(func() { p.signal(syscall.SIGKILL) }) // the clients wait for its hold's end
			if !p.passed("freeze.passed", 1) {
				t.Fatalf("the runner did not come to its pass:\n%s", p.said())
			}
			r.must(server.SetClock(-skew))
			r.stopped(p)
			r.writing(0)
			held := fmt.Sprintf("ended the runner's hold, which its server had left there, on the %s\n", []string{"source", "target"}[side])
			for deadline := time.Now().Add(time.Minute); !strings.Contains(p.said(), held) && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			if said := p.said(); !strings.Contains(said, held) {
				t.Errorf("the server ended the hold itself: nothing is proved\n%s", said)
			}
			p.signal(syscall.SIGCONT)
			p.end()
			r.finally(applyArgs...)
			r.moved(0, 1)
			r.writing(1)
			r.balance(r.target)
		})
	}
}

// lagSaid is how far status --json says that the target is behind.
var lagSaid = regexp.MustCompile(`"lag_seconds":([0-9.e-]+)`)

// TestF08LagBesideWrongClocks: how far the target is behind, one clock says: the source's, or the runner's as it looked last
// where nobody can ask the source.
func TestF08LagBesideWrongClocks(t *testing.T) {
	for side := range 2 {
		for _, ahead := range []time.Duration{skew, -skew} {
			t.Run(fmt.Sprintf("F08 side %d is %s", side, cond(ahead > 0, "ahead", "behind")), func(t *testing.T) {
				t.Parallel()
				r, server := clocked(t, side)
				r.setClock(server, ahead)
				r.finally(untilCatchUp...)
				for _, way := range []string{"", "postgresql://nobody@127.0.0.1:1/nowhere"} {
					r.via[0] = way
					o := r.run("", "status", "--json")
					said := lagSaid.FindStringSubmatch(o.text)
					if said == nil {
						t.Fatalf("status says no lag: %s\n%s", o, o.text)
					}
					if lag, err := strconv.ParseFloat(said[1], 64); err != nil || lag <= 0 || lag > (skew/2).Seconds() {
						t.Errorf("by way of %q, status says a lag of %s s\n%s", way, said[1], o.text)
					}
					r.run("", "status")
				}
				r.via[0] = ""
				r.sensible()
				r.writing(0)
				r.balance(r.source)
			})
		}
	}
}

// goneSaid is since when there is no way back.
var goneSaid = regexp.MustCompile(`first seen at (\S+); it was possible at ([^)\s]+)`)

// TestF08FinishBesideAWrongClock: keep_for runs by the clock that wrote when the target took over, however far that one is
// off: finish is refused for as long as the runbook says, and goes through when that is over.
func TestF08FinishBesideAWrongClock(t *testing.T) {
	for _, ahead := range []time.Duration{skew, -skew} {
		t.Run("F08 the target is "+cond(ahead > 0, "ahead", "behind"), func(t *testing.T) {
			t.Parallel()
			r, server := clocked(t, 1)
			r.setClock(server, ahead)
			r.finally(applyArgs...)
			r.moved(0, 1)
			early := []string{"finish", "--auto-approve"}
			if o := r.run("", early...); o.code != 1 || !regexp.MustCompile(`keeps the way back for another (29m\d+s|30m0s)`).MatchString(o.text) {
				t.Errorf("finish at once: %s, want 1 and half an hour\n%s", o, o.text)
			}
			r.writing(1)

			// When the way back was seen to be gone comes after it was there, and not by an hour.
			r.sql(r.target, "ALTER TABLE app.item ADD COLUMN stays int")
			o := r.run("", rollbackArgs...)
			said := goneSaid.FindStringSubmatch(o.text)
			if o.code == 0 || said == nil {
				t.Fatalf("rollback over a changed table: %s\n%s", o, o.text)
			}
			var at [2]time.Time
			for i := range at {
				var err error
				at[i], err = time.Parse(time.RFC3339, said[1+i])
				r.must(err)
			}
			if after := at[0].Sub(at[1]); after < 0 || after > skew/2 {
				t.Errorf("the way back is gone %s after it was there: %s", after, said[0])
			}
			r.sql(r.target, "UPDATE pgrunbook.owner SET since = since - interval '31 min'")
			r.finally(early...)
			r.writing(1)
			r.balance(r.target)
		})
	}
}
